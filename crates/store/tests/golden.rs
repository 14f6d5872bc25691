//! A database of every version that was ever written opens in this one, with all that is in it.
//!
//! `golden/v<n>.sql` is a dump that never changes. A new version adds a file and a test here.

#[path = "support/sample.rs"]
mod sample;

use hearth_model::RestartStatus;
use hearth_store::{DATABASE_FILE, InstanceRecord, Lookup, ProgramExit, Store};

#[test]
fn version_1_opens() {
    let dir = tempfile::tempdir().expect("a directory");
    let raw = rusqlite::Connection::open(dir.path().join(DATABASE_FILE)).expect("makes a file");
    raw.execute_batch(include_str!("golden/v1.sql")).expect("the dump is SQL");
    let version: i64 = raw.query_row("PRAGMA user_version", [], |row| row.get(0)).expect("has a version");
    assert_eq!(version, 1);
    drop(raw);

    let store = Store::open(dir.path()).expect("opens");
    // Addresses, slots, restarting, and all of an end but its code and message came later.
    let full = sample::instance(1, "web");
    let exit =
        full.exit.clone().map(|exit| ProgramExit { signal: None, out_of_memory: false, console: vec![], ..exit });
    let (spec, restart) = (sample::spec("web"), RestartStatus::default());
    let instance = InstanceRecord { address: None, slot: None, spec, restart, exit, ..full };
    assert_eq!(store.instances().expect("lists"), std::slice::from_ref(&instance));
    assert_eq!(store.find_instance("web").expect("looks"), Lookup::Found(instance.clone()));
    assert_eq!(store.snapshots().expect("lists"), [sample::snapshot(1, "before")]);
    assert_eq!(store.images().expect("lists"), [sample::image("app")]);
    assert_eq!(store.timelines(&instance.id, 10).expect("lists"), [sample::timeline(&instance.id, 7)]);
}
