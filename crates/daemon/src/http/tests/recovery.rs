//! `/recovery`: what a start tells of every instance, and of what nobody owned.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hearth_api::images::ImportImage;
use hearth_api::instances::InstanceState;
use hearth_api::recovery::{RecoveredInstance, Recovery, RecoveryOutcome, VmmSeen};
use hearth_api::snapshots::{CreateSnapshot, SnapshotKind};
use hearth_model::{InstanceState as Rest, Op, Phase, SnapshotId};

use super::exposition;
use super::server::Server;

/// Records of an instance what a daemon has left that died there. One that is `dead` has no VMM any
/// more, and the record does not know it.
async fn left(server: &Server, name: &str, dead: bool, phase: Phase) {
    let (store, id) = (&server.world.host.store, server.world.get(name).id().clone());
    let seat = store.instance(&id).expect("readable").expect("recorded").seat;
    if dead {
        server.client.stop(name).await.expect("stopped");
    }
    let mut record = store.instance(&id).expect("readable").expect("recorded");
    (record.phase, record.seat) = (phase, seat);
    store.update_instance(&record).expect("stored");
}

async fn recovery(server: &Server) -> Recovery {
    server.client.recovery().await.expect("told")
}

fn of<'a>(recovery: &'a Recovery, name: &str) -> &'a RecoveredInstance {
    recovery.instances.iter().find(|instance| instance.name == name).unwrap_or_else(|| panic!("{name}: {recovery:?}"))
}

#[tokio::test]
async fn each_instance_is_told_with_how_it_was_found_and_what_was_done() {
    let mut server = Server::new().await;
    let busy = |op, from| Phase::Busy { op, from };
    for (name, dead, phase) in [
        ("web", false, Phase::Resting(Rest::Running)),
        ("off", true, Phase::Resting(Rest::Stopped)),
        ("crashed", true, Phase::Resting(Rest::Running)),
        ("saving", false, busy(Op::Standby, Rest::Running)),
        ("starting", false, busy(Op::Start, Rest::Stopped)),
        ("half", false, busy(Op::Fork, Rest::Stopped)),
        ("doomed", true, busy(Op::Delete, Rest::Stopped)),
    ] {
        server.create(name).await;
        left(&server, name, dead, phase).await;
    }
    server.world.reborn().await;

    let told = recovery(&server).await;
    use InstanceState::{Initializing, Running, Stopped};
    use RecoveryOutcome::{Adopted, DeleteFinished, ExitNoted, Removed, Rests, Undone};
    for (name, found, cut_off, vmm, outcome, state) in [
        ("web", Running, None, VmmSeen::Alive, Adopted, Some(Running)),
        ("off", Stopped, None, VmmSeen::Gone, Rests, Some(Stopped)),
        ("crashed", Running, None, VmmSeen::Gone, ExitNoted, Some(Stopped)),
        ("saving", Running, Some("standby"), VmmSeen::Alive, Adopted, Some(Running)),
        ("starting", Initializing, Some("start"), VmmSeen::Alive, Undone, Some(Stopped)),
        ("half", Initializing, Some("fork"), VmmSeen::Alive, Removed, None),
        ("doomed", Stopped, Some("delete"), VmmSeen::Gone, DeleteFinished, None),
    ] {
        let told = of(&told, name);
        let seen = (told.found, told.cut_off.as_deref(), told.vmm, told.outcome, told.state);
        assert_eq!(seen, (found, cut_off, vmm, outcome, state), "{name}");
        assert_eq!((told.reason.as_deref(), told.looks), (None, 0), "{name}");
    }
    let names: Vec<_> = told.instances.iter().map(|instance| instance.name.as_str()).collect();
    assert_eq!(names, ["crashed", "doomed", "half", "starting", "off", "saving", "web"], "what was done comes first");
    let counts =
        [("adopted", 2), ("delete_finished", 1), ("exit_noted", 1), ("removed", 1), ("rests", 1), ("undone", 1)];
    assert_eq!(told.outcomes, counts.map(|(outcome, count)| (outcome.to_owned(), count)).into());
    assert!(told.duration_ms > 0.0 && told.unlisted == 0, "{told:?}");
    let age = jiff::Timestamp::now().duration_since(told.started_at);
    assert!(age.as_secs() < 60, "{age:?}");

    let figures = exposition::read(&server).await;
    let counted = |outcome| figures.sum("hearth_recovered_total", &[("outcome", outcome)]);
    assert_eq!([counted("adopted"), counted("undone"), counted("failed")], [2.0, 1.0, 0.0]);
    assert_eq!(figures.sum("hearth_recovered_total", &[]), 7.0);
    let took = figures.sum("hearth_recovery_duration_seconds", &[]);
    assert!((took * 1e3 - told.duration_ms).abs() < 1e-6, "{took} s, {} ms", told.duration_ms);

    // Only the last start is told of.
    server.world.reborn().await;
    let again = recovery(&server).await;
    assert_eq!(again.outcomes, [("adopted".to_owned(), 2), ("rests".to_owned(), 3)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_held_is_told_of_again_when_it_is_seen() {
    let mut server = Server::new().await;
    server.create("web").await;
    server.world.fake().blind(2);
    server.world.reborn().await;
    let told = recovery(&server).await;
    if let RecoveryOutcome::Held = of(&told, "web").outcome {
        let held = of(&told, "web");
        assert_eq!((held.vmm, held.state, held.looks), (VmmSeen::Unknown, None, 0));
        assert_eq!(held.reason.as_deref(), Some("could not look for its VMM"));
        assert_eq!(told.outcomes, [("held".to_owned(), 1)].into());
    }
    let told = until(&server, |told| of(told, "web").outcome == RecoveryOutcome::Adopted).await;
    let seen = of(&told, "web");
    assert_eq!((seen.vmm, seen.state, seen.looks), (VmmSeen::Alive, Some(InstanceState::Running), 2));
    assert_eq!((seen.reason.as_deref(), &told.outcomes), (None, &[("adopted".to_owned(), 1)].into()));
    let figures = exposition::read(&server).await;
    let counted = |outcome| figures.sum("hearth_recovered_total", &[("outcome", outcome)]);
    assert_eq!((counted("held"), counted("adopted")), (1.0, 1.0));

    server.world.fake().blind(u32::MAX);
    server.world.reborn().await;
    let told = until(&server, |told| of(told, "web").outcome == RecoveryOutcome::Failed).await;
    let failed = of(&told, "web");
    assert_eq!((failed.vmm, failed.state, failed.looks), (VmmSeen::Unknown, Some(InstanceState::Unknown), 5));
    assert_eq!(failed.reason.as_deref(), Some("could not look for its VMM"));
    assert_eq!(told.outcomes, [("failed".to_owned(), 1)].into());
}

/// What is told once that is so, or after a while.
async fn until(server: &Server, is_so: impl Fn(&Recovery) -> bool) -> Recovery {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let told = recovery(server).await;
        if is_so(&told) || tokio::time::Instant::now() > deadline {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_nobody_owned_is_counted_and_what_stays_is_named() {
    let mut server = Server::new().await;
    server.create("web").await;
    let save = |name: &str| CreateSnapshot { kind: SnapshotKind::Standby, name: Some(name.into()), tags: None };
    let mut saved = BTreeMap::new();
    for name in ["withdrawn", "lost", "stray"] {
        let snapshot = server.client.create_snapshot("web", &save(name)).await.expect("saved");
        let id: SnapshotId = snapshot.id.parse().expect("an id");
        saved.insert(name, id);
    }
    let (host, data) = (&server.world.host, server.world.host.data.clone());
    hearth_snapshot::withdraw(&data.snapshots(), &saved["withdrawn"]).expect("withdrawn");
    std::fs::remove_dir_all(data.snapshots().join(saved["lost"].as_str())).expect("removed");
    host.store.remove_snapshot(&saved["stray"]).expect("forgotten");
    std::fs::create_dir(data.snapshots().join(".draft-half")).expect("made");
    std::fs::create_dir(data.imports().join("half")).expect("made");
    // A slot that no record owns.
    let mut nobody = host.store.instance(server.world.get("web").id()).expect("readable").expect("recorded");
    (nobody.id, nobody.address) = (hearth_model::InstanceId::from_entropy([9; 16]), None);
    host.networks.take(&mut nobody).await.expect("taken");
    let another_s = data.instances().join("another-s");
    std::fs::create_dir(&another_s).expect("made");
    std::fs::write(data.templates().join(".overlay-half"), "").expect("written");
    std::fs::write(data.initrds().join(".new-half"), "").expect("written");
    server.world.reborn().await;

    let told = recovery(&server).await.swept;
    // The draft, and the files of the one that was withdrawn.
    assert_eq!((told.bundles, told.withdrawn_records, told.imports), (2, 1, 1), "{told:?}");
    assert_eq!((told.unpublished_records, told.unlisted), (0, 0), "{told:?}");
    assert_eq!(told.failed, [], "{told:?}");
    let named = |id: &SnapshotId| told.left.iter().find(|left| left.what.contains(id.as_str())).map(|left| &*left.why);
    assert_eq!(named(&saved["stray"]), Some("a bundle without a record"));
    assert_eq!(named(&saved["lost"]), Some("a record without its bundle, of instance web"));
    assert!(data.snapshots().join(saved["stray"].as_str()).exists(), "it is left as it is");
    assert_eq!((told.drafts, told.slots), (2, 1), "{told:?}");
    assert!(told.left.iter().any(|left| left.what == another_s.display().to_string()), "{told:?}");
    std::fs::remove_dir(another_s).expect("it is left as it is");
}

/// The power has taken back that an instance was removed, and nothing of its files has come back.
#[tokio::test]
async fn a_removal_whose_record_went_with_the_power_is_finished() {
    let mut server = Server::new().await;
    for name in ["gone", "stays"] {
        server.world.create(name).await.expect("created").stop().await.expect("stopped");
    }
    let (host, gone) = (Arc::clone(&server.world.host), server.world.get("gone"));
    let record = host.store.instance(gone.id()).expect("readable").expect("recorded");
    gone.delete(false).await.expect("deleted");
    host.store.insert_instance(&record).expect("it is back");
    server.world.reborn().await;

    let counts = [("delete_finished".to_owned(), 1), ("rests".to_owned(), 1)];
    assert_eq!(recovery(&server).await.outcomes, counts.into());
    assert_eq!(host.store.instances().expect("readable").len(), 1);
    assert_eq!(*server.world.get("stays").view().state(), hearth_model::InstanceState::Stopped);
}

/// What is left of instances without a record: after a power cut, of an operation, and of other records.
#[tokio::test]
async fn a_directory_whose_record_went_with_the_power_is_swept_and_every_other_stays() {
    let mut server = Server::new().await;
    let web = server.world.create("web").await.expect("created").dir();
    let instances = server.world.host.data.instances();
    let this_boot = hearth_snapshot::boot_id();
    let made = |name: &str, mark: Option<&str>| {
        let dir = instances.join(name);
        std::fs::create_dir_all(dir.join("disks")).expect("made");
        mark.into_iter().for_each(|mark| std::fs::write(dir.join(mark), "").expect("marked"));
        dir
    };
    let mark = |boot: &str| format!("unrecorded-{boot}");
    let went = made("went", Some(&mark("00000000-0000-4000-8000-000000000001")));
    let half = made(".new-half", None);
    let exchanged = made("exchanged", Some(&mark(&this_boot)));
    let old = made("old", None);
    server.world.reborn().await;

    let told = recovery(&server).await.swept;
    assert_eq!((told.directories, &told.failed), (2, &Vec::new()), "{told:?}");
    assert!(!went.exists() && !half.exists() && web.disks().exists());
    let prefix = instances.to_str().expect("UTF-8");
    let left = told.left.iter().filter(|left| left.what.starts_with(prefix));
    let left: Vec<_> = left.map(|left| (&*left.what, &*left.why)).collect();
    for dir in [exchanged, old] {
        let named = (dir.to_str().expect("UTF-8"), "an instance's directory without a record");
        assert!(left.contains(&named), "{named:?} in {left:?}");
        std::fs::remove_dir_all(dir).expect("it is left as it is");
    }
    assert_eq!(left.len(), 2);
}

/// What the daemon had done of an import or a removal when it was killed.
#[tokio::test]
async fn an_image_that_nobody_came_to_name_is_swept_and_every_other_stays() {
    let mut server = Server::new().await;
    let (host, images) = (Arc::clone(&server.world.host), server.world.host.data.images());
    let digest = server.client.image(super::server::IMAGE).await.expect("there").digest;
    let source = tempfile::tempdir().expect("a directory");
    std::fs::write(source.path().join("file"), "another").expect("written");
    let import = || {
        let (images, source) = (images.clone(), source.path().to_owned());
        tokio::task::spawn_blocking(move || {
            hearth_image::import(&source, &images, &hearth_image::Limits::default(), &|_| {}).expect("imported").digest
        })
    };
    let stored = |digest: &str| hearth_image::open(&images, digest).is_ok();

    // Stored, and not named yet; and one that was half written.
    let unnamed = import().await.expect("no panic");
    std::fs::create_dir(images.join(".import-half")).expect("made");
    server.world.reborn().await;
    let told = recovery(&server).await.swept;
    assert_eq!((told.images, &told.failed), (2, &Vec::new()), "{told:?}");
    assert!(!stored(&unnamed) && stored(&digest) && stored(&server.world.digest));

    // About to lose its last name, and it has lost it.
    hearth_image::disown(&images, &digest).expect("disowned");
    server.world.reborn().await;
    assert!(recovery(&server).await.swept.images == 0 && stored(&digest), "it was not removed yet");
    hearth_image::disown(&images, &digest).expect("disowned");
    let record = host.store.images().expect("readable").remove(0);
    host.store.remove_image(&record.name).expect("removed");
    server.world.reborn().await;
    assert!(recovery(&server).await.swept.images == 1 && !stored(&digest), "it was asked to go");

    // The records are of another time: what was named stays, and is told of.
    let path = source.path().to_str().expect("UTF-8").to_owned();
    let named = ImportImage { path, name: "other".into(), tags: None };
    let named = server.client.import_image(&named).await.expect("imported");
    let record = host.store.images().expect("readable").remove(0);
    host.store.remove_image(&record.name).expect("removed");
    server.world.reborn().await;
    let told = recovery(&server).await.swept;
    let hex = named.digest.trim_start_matches("sha256:");
    assert!(
        told.left.iter().any(|left| left.what.ends_with(hex) && left.why == "an image without a record"),
        "{told:?}"
    );
    assert!(told.images == 0 && stored(&named.digest));
    host.store.insert_image(&record).expect("put back");
    std::fs::remove_dir_all(images.join(hex)).expect("removed");
    server.world.reborn().await;
    let told = recovery(&server).await.swept;
    assert!(told.left.iter().any(|left| left.what.starts_with("image ") && left.why.contains(hex)), "{told:?}");
}

/// Whoever dies after a name is gone must have left the mark that tells of it.
#[tokio::test]
async fn a_name_goes_only_when_its_content_is_marked() {
    let server = Server::new().await;
    let digest = server.client.image(super::server::IMAGE).await.expect("there").digest;
    let mark = server.world.host.data.images().join(digest.trim_start_matches("sha256:")).join("unnamed");
    assert!(!mark.exists(), "it is named");
    // Then it cannot be written.
    std::fs::create_dir(&mark).expect("made");
    server.client.delete_image(super::server::IMAGE).await.expect_err("it cannot be marked");
    let source = tempfile::tempdir().expect("a directory");
    std::fs::write(source.path().join("file"), "another").expect("written");
    let path = source.path().to_str().expect("UTF-8").to_owned();
    let other = ImportImage { path, name: super::server::IMAGE.into(), tags: None };
    server.client.import_image(&other).await.expect_err("what has the name cannot be marked");
    assert_eq!(server.client.image(super::server::IMAGE).await.expect("there").digest, digest);
    std::fs::remove_dir(&mark).expect("removed");
    assert_ne!(server.client.import_image(&other).await.expect("imported").digest, digest);
    assert!(
        !mark.exists() && hearth_image::open(&server.world.host.data.images(), &digest).is_err(),
        "it had one name"
    );
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_named_and_nothing_of_it_is_removed() {
    let mut server = Server::new().await;
    let data = server.world.host.data.clone();
    for dir in [data.images(), data.templates(), data.initrds(), data.imports()] {
        std::fs::rename(&dir, dir.with_extension("aside")).expect("renamed");
        std::fs::write(&dir, "no directory").expect("written");
    }
    server.world.reborn().await;
    let told = recovery(&server).await.swept;
    for dir in [data.images(), data.templates(), data.initrds(), data.imports()] {
        assert!(told.failed.iter().any(|failed| failed.what == dir.display().to_string()), "{dir:?}: {told:?}");
        assert!(dir.exists());
        std::fs::remove_file(&dir).expect("removed");
        std::fs::rename(dir.with_extension("aside"), &dir).expect("renamed");
    }
    assert_eq!((told.images, told.drafts, told.imports), (0, 0, 0));
    server.world.reborn().await;
    assert_eq!(recovery(&server).await.swept.failed, []);
}
