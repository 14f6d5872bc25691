//! Random record operations do to the store what they do to a map, over restarts too.

#[path = "support/sample.rs"]
mod sample;

use std::collections::BTreeMap;

use hearth_model::InstanceId;
use hearth_store::{InstanceRecord, Lookup, RecordError, Store};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Act {
    Insert { id: u8, name: u8 },
    Update { id: u8, name: u8, generation: u64 },
    Remove { id: u8 },
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..6_u8, 0..5_u8).prop_map(|(id, name)| Act::Insert { id, name }),
        4 => (0..6_u8, 0..5_u8, any::<u64>()).prop_map(|(id, name, generation)| Act::Update { id, name, generation }),
        2 => (0..6_u8).prop_map(|id| Act::Remove { id }),
        1 => Just(Act::Restart),
    ];
    proptest::collection::vec(act, 1..30)
}

fn is_taken(error: &RecordError) -> bool {
    matches!(error, RecordError::Taken { .. })
}

fn name(number: u8) -> String {
    format!("web-{number}")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_store_is_a_map_with_unique_names(acts in acts()) {
        let dir = tempfile::tempdir().expect("a directory");
        let mut store = Some(Store::open(dir.path()).expect("opens"));
        let mut map: BTreeMap<InstanceId, InstanceRecord> = BTreeMap::new();
        for act in acts {
            let open = store.as_ref().expect("open between acts");
            match act {
                Act::Insert { id, name: n } => {
                    let record = sample::instance(id, &name(n));
                    let taken = map.values().any(|r| r.id == record.id || r.spec.name == record.spec.name);
                    match open.insert_instance(&record) {
                        Ok(()) => {
                            prop_assert!(!taken);
                            map.insert(record.id.clone(), record);
                        }
                        Err(error) => prop_assert!(taken && is_taken(&error), "{error}"),
                    }
                }
                Act::Update { id, name: n, generation } => {
                    let record = InstanceRecord { generation, ..sample::instance(id, &name(n)) };
                    let taken = map.values().any(|r| r.id != record.id && r.spec.name == record.spec.name);
                    let there = map.contains_key(&record.id);
                    match open.update_instance(&record) {
                        Ok(()) => {
                            prop_assert!(there && !taken);
                            map.insert(record.id.clone(), record);
                        }
                        Err(RecordError::Absent { .. }) => prop_assert!(!there),
                        Err(error) => prop_assert!(taken && is_taken(&error), "{error}"),
                    }
                }
                Act::Remove { id } => {
                    open.remove_instance(&sample::instance_id(id)).expect("removes");
                    map.remove(&sample::instance_id(id));
                }
                Act::Restart => {
                    drop(store.take());
                    store = Some(Store::open(dir.path()).expect("opens again"));
                }
            }
            let open = store.as_ref().expect("open between acts");
            let all: BTreeMap<_, _> =
                open.instances().expect("lists").into_iter().map(|r| (r.id.clone(), r)).collect();
            prop_assert_eq!(&all, &map);
            for record in map.values() {
                let found = open.find_instance(record.spec.name.as_str()).expect("looks");
                prop_assert_eq!(found, Lookup::Found(record.clone()));
            }
        }
    }
}
