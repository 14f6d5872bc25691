//! Stories of the store on a real directory: records survive, names are unique, one daemon at a time.

#[path = "support/sample.rs"]
mod sample;

use std::sync::Arc;

use hearth_model::error::{ErrorKind, Kind};
use hearth_model::{InstanceState, Op, Phase};
use hearth_store::{InstanceRecord, Lookup, OpenError, RecordError, Store, TIMELINES_KEPT};

#[test]
fn records_are_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("var/hearth");
    let (instance, snapshot, image) = (sample::instance(1, "web"), sample::snapshot(1, "before"), sample::image("app"));
    let store = Store::open(&data).expect("opens a new directory");
    store.insert_instance(&instance).expect("inserts");
    store.insert_snapshot(&snapshot).expect("inserts");
    store.insert_image(&image).expect("inserts");
    store.append_timeline(&sample::timeline(&instance.id, 7)).expect("appends");
    drop(store);

    let store = Store::open(&data).expect("opens it again");
    assert_eq!(store.instance(&instance.id).expect("reads"), Some(instance.clone()));
    assert_eq!(store.snapshot(&snapshot.id).expect("reads"), Some(snapshot));
    assert_eq!(store.image(&image.name).expect("reads"), Some(image));
    assert_eq!(store.timelines(&instance.id, 10).expect("reads"), [sample::timeline(&instance.id, 7)]);
}

#[test]
fn a_name_belongs_to_one_instance() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let first = sample::instance(1, "web");
    store.insert_instance(&first).expect("inserts");
    let error = store.insert_instance(&sample::instance(2, "web")).expect_err("the name is taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(error.to_string(), "instance web exists already");
    assert!(error.hint().expect("a hint").contains(first.id.as_str()));

    store.insert_instance(&sample::instance(2, "db")).expect("another name is free");
    let error = store.update_instance(&sample::instance(2, "web")).expect_err("a rename into it is refused too");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    store.remove_instance(&first.id).expect("removes");
    store.remove_instance(&first.id).expect("twice is once");
    store.insert_instance(&sample::instance(3, "web")).expect("the name is free again");
}

#[test]
fn what_is_gone_cannot_be_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let kinds = [
        store.update_instance(&sample::instance(1, "web")).map_err(|e| e.kind()),
        store.update_snapshot(&sample::snapshot(1, "before")).map_err(|e| e.kind()),
        store.update_image(&sample::image("app")).map_err(|e| e.kind()),
    ];
    assert_eq!(kinds, [Err(ErrorKind::NotFound); 3]);
}

#[test]
fn an_instance_is_found_by_id_name_or_prefix() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let (web, db) = (sample::instance(1, "web"), sample::instance(2, "db"));
    store.insert_instance(&web).expect("inserts");
    store.insert_instance(&db).expect("inserts");
    for text in [web.id.as_str(), "web", &web.id.as_str()[..6]] {
        assert_eq!(store.find_instance(text).expect("looks"), Lookup::Found(web.clone()), "{text}");
    }
    let Lookup::NotFound { similar } = store.find_instance("wep").expect("looks") else { panic!("found wep") };
    assert_eq!(similar, ["web"]);
    // Not a pattern of SQL.
    assert_eq!(store.find_instance("%").expect("looks"), Lookup::NotFound { similar: vec![] });
}

#[test]
fn snapshots_of_two_instances_may_share_a_name_and_internal_ones_are_not_listed() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let first = sample::snapshot(1, "before");
    let mut second = sample::snapshot(2, "before");
    assert_eq!(first.source_instance, second.source_instance);
    store.insert_snapshot(&first).expect("inserts");
    let error = store.insert_snapshot(&second).expect_err("one source, one name");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.hint().expect("a hint").contains(first.id.as_str()));

    second.source_instance = sample::instance_id(9);
    store.insert_snapshot(&second).expect("another source");
    assert!(matches!(store.find_snapshot("before").expect("looks"), Lookup::Ambiguous { .. }));

    let mut internal = sample::snapshot(3, "standby");
    internal.name = None;
    internal.internal = true;
    store.insert_snapshot(&internal).expect("inserts");
    assert_eq!(store.listed_snapshots().expect("lists"), [first, second]);
    assert_eq!(store.snapshots().expect("lists").len(), 3);
    let found = store.find_snapshot(internal.id.as_str()).expect("looks");
    assert!(matches!(found, Lookup::NotFound { .. }), "{found:?}");
    assert_eq!(store.snapshot(&internal.id).expect("reads"), Some(internal));
}

#[test]
fn several_names_lead_to_one_image() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let (one, two) = (sample::image("app:1"), sample::image("app:latest"));
    store.insert_image(&one).expect("inserts");
    store.insert_image(&two).expect("inserts");
    assert_eq!(store.images_with_digest(&one.digest).expect("lists"), [one.clone(), two.clone()]);
    let error = store.insert_image(&one).expect_err("the name is taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    store.remove_image(&one.name).expect("removes");
    assert_eq!(store.images_with_digest(&one.digest).expect("lists"), [two]);
}

#[test]
fn the_newest_timelines_are_kept_and_go_with_their_instance() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let (web, db) = (sample::instance(1, "web"), sample::instance(2, "db"));
    store.insert_instance(&web).expect("inserts");
    store.insert_instance(&db).expect("inserts");
    store.append_timeline(&sample::timeline(&db.id, 0)).expect("appends");
    for at in 0..i64::try_from(TIMELINES_KEPT).expect("small") + 5 {
        store.append_timeline(&sample::timeline(&web.id, at)).expect("appends");
    }
    let kept: Vec<i64> = store.timelines(&web.id, usize::MAX).expect("lists").iter().map(|t| t.at_ms).collect();
    assert_eq!(kept, (5..105).rev().collect::<Vec<_>>());
    assert_eq!(store.timelines(&web.id, 2).expect("lists").len(), 2);
    assert_eq!(store.timelines(&db.id, 10).expect("lists").len(), 1, "another instance's stay");

    store.remove_instance(&web.id).expect("removes");
    assert_eq!(store.timelines(&web.id, 10).expect("lists"), []);
    store.append_timeline(&sample::timeline(&web.id, 200)).expect("the delete's own timeline has nowhere to go");
    assert_eq!(store.timelines(&web.id, 10).expect("lists"), []);
}

#[test]
fn where_an_operation_led_is_written_with_its_timeline_or_not_at_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).expect("opens");
    let mut web = sample::instance(1, "web");
    store.insert_instance(&web).expect("inserts");
    store.insert_instance(&sample::instance(2, "db")).expect("inserts");
    let timeline = sample::timeline(&web.id, 7);
    web.phase = Phase::Resting(InstanceState::Running);
    store.conclude(&web, &timeline).expect("writes");
    assert_eq!(store.instance(&web.id).expect("reads"), Some(web.clone()));
    assert_eq!(store.timelines(&web.id, 10).expect("lists"), std::slice::from_ref(&timeline));

    let renamed = InstanceRecord { spec: sample::spec("other"), ..web.clone() };
    store.conclude(&renamed, &timeline).expect("another name, if nobody has it");
    let taken = InstanceRecord { spec: sample::spec("db"), ..web.clone() };
    assert_eq!(store.conclude(&taken, &timeline).expect_err("taken").kind(), ErrorKind::AlreadyExists);
    let absent = InstanceRecord { id: sample::instance_id(9), ..web };
    assert_eq!(store.conclude(&absent, &timeline).expect_err("not there").kind(), ErrorKind::NotFound);
    assert_eq!(store.instance(&renamed.id).expect("reads"), Some(renamed.clone()));
    assert_eq!(store.timelines(&renamed.id, 10).expect("lists").len(), 2);
}

#[test]
fn a_second_daemon_is_told_who_holds_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = Store::open(dir.path()).expect("opens");
    let error = Store::open(dir.path()).expect_err("it is held");
    assert!(matches!(error, OpenError::Held { holder: Some(pid), .. } if pid == std::process::id()), "{error}");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains(&format!("process {}", std::process::id())));
    drop(first);
    Store::open(dir.path()).expect("free again, with nothing to clean up");
}

#[test]
fn a_database_from_the_future_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path()).expect("opens"));
    let file = dir.path().join(hearth_store::DATABASE_FILE);
    let raw = rusqlite::Connection::open(&file).expect("opens");
    raw.pragma_update(None, "user_version", 999).expect("writes");
    drop(raw);
    let error = Store::open(dir.path()).expect_err("it is of a later version");
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("has format 999, and this version reads up to 1"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn a_damaged_database_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join(hearth_store::DATABASE_FILE);
    std::fs::write(&file, "not a database at all, but long enough to be taken for a header".repeat(100))
        .expect("writes");
    let error = Store::open(dir.path()).expect_err("it is no database");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(error.hint().expect("a hint").contains(&file.display().to_string()));
}

#[test]
fn a_damaged_record_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let web = sample::instance(1, "web");
    Store::open(dir.path()).expect("opens").insert_instance(&web).expect("inserts");
    let raw = rusqlite::Connection::open(dir.path().join(hearth_store::DATABASE_FILE)).expect("opens");
    raw.execute("UPDATE instances SET record = '{\"id\": 1'", []).expect("writes");
    drop(raw);
    let store = Store::open(dir.path()).expect("opens");
    let error = store.instances().expect_err("one is damaged");
    assert!(matches!(&error, RecordError::Garbled { name, .. } if name == web.id.as_str()), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn many_threads_write_at_once_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path()).expect("opens"));
    std::thread::scope(|threads| {
        for thread in 0..4_u8 {
            let store = Arc::clone(&store);
            threads.spawn(move || {
                for n in 0..10 {
                    let number = thread * 10 + n;
                    let mut record = sample::instance(number, &format!("web-{number}"));
                    store.insert_instance(&record).expect("inserts");
                    record.phase = Phase::Busy { op: Op::Stop, from: InstanceState::Running };
                    store.update_instance(&record).expect("updates");
                }
            });
        }
    });
    let all = store.instances().expect("lists");
    assert_eq!(all.len(), 40);
    assert!(all.iter().all(|r| matches!(r.phase, Phase::Busy { op: Op::Stop, .. })));
}
