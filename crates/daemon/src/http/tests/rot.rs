//! Damaged snapshots, as a client meets them: found when they are loaded or verified, named with the
//! file and the remedy, and never loaded.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hearth_api::client::ClientError;
use hearth_api::instances::InstanceState;
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ListSnapshots, RestoreSnapshot, Snapshot, SnapshotKind};
use hearth_model::ErrorKind;

use super::server::Server;
use crate::metrics::{Format, Metrics};
use crate::scrub::Scrubber;
use crate::world::World;

/// A snapshot of a running instance, with the directory of its bundle.
async fn taken(server: &Server, name: &str) -> (Snapshot, PathBuf) {
    let request = CreateSnapshot { kind: SnapshotKind::Standby, name: Some(name.into()), tags: None };
    let snapshot = server.client.create_snapshot("web", &request).await.expect("taken");
    let bundle = server.world.host.data.snapshots().join(&snapshot.id);
    let id = snapshot.id.parse().expect("an id");
    settle(&server.world, &id).await;
    (snapshot, bundle)
}

/// What the daemon does in the background, now.
async fn settle(world: &World, id: &hearth_model::SnapshotId) {
    let (snapshots, id) = (world.host.data.snapshots(), id.clone());
    let settled = tokio::task::spawn_blocking(move || {
        let bundle = hearth_snapshot::open(&snapshots, &id).expect("opens");
        hearth_snapshot::settle(&bundle).expect("settles");
    });
    settled.await.expect("no panic");
}

fn flip(path: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("opens");
    let at = file.metadata().expect("is there").len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 4], at).expect("writes");
}

/// It is damage, and the answer says of which snapshot, which file, and what to do.
#[track_caller]
fn names<T: std::fmt::Debug>(result: Result<T, ClientError>, snapshot: &Snapshot, file: &str, what: &str) {
    let error = result.expect_err(what);
    let body = error.body().unwrap_or_else(|| panic!("{what}: {error}"));
    assert_eq!(body.kind(), ErrorKind::Corrupt, "{what}: {body:?}");
    assert!(body.message.contains(&format!("{file} of snapshot {}", snapshot.id)), "{what}: {body:?}");
    let hint = body.hint.as_deref().unwrap_or_default();
    assert!(hint.contains(&format!("put {file} back")), "{what}: {hint}");
    assert!(hint.contains(&format!("hearth snapshot verify {}", snapshot.id)), "{what}: {hint}");
}

fn figure(server: &Server, series: &str) -> String {
    let text = server.world.host.metrics.text(Format::Plain, &[], &[], hearth_model::load::ResumeOnLoad::On);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {series} in {text}"))
}

#[tokio::test]
async fn no_guest_is_made_of_a_file_that_is_damaged() {
    let server = Server::new().await;
    server.create("web").await;
    let (snapshot, bundle) = taken(&server, "one").await;
    let (other, of_the_other) = taken(&server, "two").await;
    // What the fake VMM writes is the same in every bundle: here is something that is not.
    for file in ["memory", "disks/overlay.img"] {
        flip(&of_the_other.join(file));
    }
    settle(&server.world, &other.id.parse().expect("an id")).await;
    server.client.standby("web").await.expect("stands by");
    let before = server.world.at_rest().await;
    let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
    let revert = RestoreSnapshot::default();

    for file in ["manifest.json", "vmstate", "memory", "disks/rootfs", "disks/overlay.img"] {
        for rot in ["truncated", "flipped", "swapped", "missing", "empty", "directory"] {
            let (what, path) = (format!("{file} {rot}"), bundle.join(file));
            let length = fs::metadata(&path).expect("is there").len();
            let aside = bundle.with_file_name("aside");
            fs::rename(&path, &aside).expect("a backup");
            let from = if rot == "swapped" { of_the_other.join(file) } else { aside.clone() };
            let same = rot == "swapped" && matches!(file, "vmstate" | "disks/rootfs");
            match rot {
                "missing" => {}
                "directory" => fs::create_dir(&path).expect("a directory"),
                // A copy: others may have a link to the file itself.
                _ => drop(hearth_disk::clone_file(&from, &path).expect("copied")),
            }
            let shorten = |to| OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(to));
            match rot {
                "truncated" => shorten(length / 2).expect("truncates"),
                "empty" => shorten(0).expect("empties"),
                "flipped" => flip(&path),
                _ => {}
            }

            let at_load = match rot {
                "flipped" | "swapped" => false,
                _ => length > 0,
            };
            if at_load {
                names(server.client.fork_snapshot("one", &fork).await, &snapshot, file, &what);
                names(server.client.restore_snapshot("web", "one", &revert).await, &snapshot, file, &what);
            }
            if !same {
                names(server.client.verify_snapshot("one").await, &snapshot, file, &what);
                names(server.client.fork_snapshot("one", &fork).await, &snapshot, file, &what);
                names(server.client.restore_snapshot("web", "one", &revert).await, &snapshot, file, &what);
                assert_eq!(figure(&server, "hearth_snapshots_damaged"), "1", "{what}");
                let listed =
                    server.client.snapshots(&ListSnapshots::default(), &BTreeMap::new()).await.expect("a list");
                let damaged = |of: &Snapshot| listed.iter().find(|one| one.id == of.id).expect("listed").damage.clone();
                assert_eq!(damaged(&snapshot).map(|damage| damage.file).as_deref(), Some(file), "{what}");
                assert_eq!(damaged(&other), None, "{what}");
            }

            if path.is_dir() {
                fs::remove_dir(&path).expect("removes");
            }
            fs::rename(&aside, &path).expect("puts back");
            server.client.verify_snapshot("one").await.unwrap_or_else(|error| panic!("{what} and back: {error}"));
            assert_eq!(figure(&server, "hearth_snapshots_damaged"), "0", "{what}");
        }
    }
    assert_eq!(server.world.at_rest().await, before, "nothing was made, and nothing changed");
    server.client.verify_snapshot("two").await.expect("the other one is well");
    server.client.fork_snapshot(&other.id, &fork).await.expect("and is forked");
    server.client.restore_snapshot("web", "one", &revert).await.expect("so is what is well again");
}

#[tokio::test]
async fn standby_memory_is_verified_by_its_id_and_refused_when_damaged() {
    let server = Server::new().await;
    server.create("web").await;
    server.client.standby("web").await.expect("stands by");
    let record = server.world.host.store.snapshots().expect("readable").remove(0);
    assert!(record.internal);
    settle(&server.world, &record.id).await;
    let verified = server.client.verify_snapshot(record.id.as_str()).await.expect("is well");
    assert_eq!((verified.id.as_str(), verified.name), (record.id.as_str(), None));

    let vmstate = server.world.host.data.snapshots().join(record.id.as_str()).join("vmstate");
    flip(&vmstate);
    server.client.verify_snapshot(record.id.as_str()).await.expect_err("is damaged");
    let error = server.client.restore("web").await.expect_err("refused");
    let body = error.body().expect("an answer");
    assert_eq!(body.kind(), ErrorKind::Corrupt, "{body:?}");
    assert!(body.message.contains(&format!("vmstate of snapshot {}", record.id)), "{body:?}");
    assert_eq!(server.client.instance("web").await.expect("is there").state, InstanceState::Standby);

    flip(&vmstate);
    server.client.verify_snapshot(record.id.as_str()).await.expect("is well again");
    server.client.restore("web").await.expect("and goes on");
}

#[tokio::test]
async fn what_cannot_be_verified_is_told() {
    let server = Server::new().await;
    server.create("web").await;
    let request = CreateSnapshot { kind: SnapshotKind::Standby, name: Some("new".into()), tags: None };
    server.client.create_snapshot("web", &request).await.expect("taken");
    let error = server.client.verify_snapshot("new").await.expect_err("a moment old");
    assert_eq!(error.body().expect("an answer").kind(), ErrorKind::WrongState, "{error}");
    let error = server.client.verify_snapshot("nothing").await.expect_err("not there");
    assert_eq!(error.body().expect("an answer").kind(), ErrorKind::NotFound, "{error}");
    for result in ["ok", "corrupt", "error"] {
        let series = format!("hearth_snapshot_verifications_total{{result=\"{result}\"}}");
        assert_eq!(figure(&server, &series), "0", "nothing was compared");
    }
}

#[tokio::test]
async fn a_removed_snapshot_is_damaged_no_more() {
    let server = Server::new().await;
    server.create("web").await;
    let (snapshot, bundle) = taken(&server, "one").await;
    flip(&bundle.join("vmstate"));
    names(server.client.verify_snapshot("one").await, &snapshot, "vmstate", "flipped");
    assert_eq!(figure(&server, "hearth_snapshots_damaged"), "1");
    server.client.delete_snapshot("one").await.expect("removed");
    assert_eq!(figure(&server, "hearth_snapshots_damaged"), "0");
}

#[tokio::test]
async fn the_scrub_finds_what_nobody_asked_for_and_a_mark_survives_the_daemon() {
    let server = Server::new().await;
    server.create("web").await;
    let (snapshot, bundle) = taken(&server, "one").await;
    let (_, well) = taken(&server, "two").await;
    for dir in [&bundle, &well] {
        let settled = OpenOptions::new().append(true).open(dir.join("settled.json")).expect("opens");
        settled.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("ages");
    }
    flip(&bundle.join("memory"));

    // As another daemon would, after this one: an hour is long over for both.
    let metrics = Arc::new(Metrics::new([]));
    let snapshots = server.world.host.data.snapshots();
    let text = |metrics: &Metrics| metrics.text(Format::Plain, &[], &[], hearth_model::load::ResumeOnLoad::On);
    let start = |metrics: &Arc<Metrics>| {
        Scrubber::start(snapshots.clone(), Some(Duration::from_secs(3600)), Arc::clone(metrics))
    };
    let scrubber = start(&metrics).expect("starts");
    let wanted = [
        "hearth_snapshot_verifications_total{result=\"ok\"} 1",
        "hearth_snapshot_verifications_total{result=\"corrupt\"} 1",
        "hearth_snapshots_damaged 1",
    ];
    let all_are_there = |text: &str| wanted.iter().all(|wanted| text.lines().any(|line| line == *wanted));
    eventually(|| all_are_there(&text(&metrics)), || text(&metrics)).await;
    drop(scrubber);
    let fork = ForkSnapshot { name: "fork".into(), ..ForkSnapshot::default() };
    names(server.client.fork_snapshot("one", &fork).await, &snapshot, "memory", "found by the scrub");

    let later = Arc::new(Metrics::new([]));
    let _scrubber = start(&later).expect("starts");
    eventually(|| text(&later).lines().any(|line| line == wanted[2]), || text(&later)).await;
}

#[tokio::test]
async fn one_bundle_that_cannot_be_marked_does_not_keep_the_scrub_from_the_others() {
    let server = Server::new().await;
    server.create("web").await;
    let mut taken = [taken(&server, "one").await.1, taken(&server, "two").await.1];
    taken.sort();
    for dir in &taken {
        let settled = OpenOptions::new().append(true).open(dir.join("settled.json")).expect("opens");
        settled.set_modified(SystemTime::now() - Duration::from_secs(7200)).expect("ages");
    }
    // The first in order; the mark's file cannot be made.
    flip(&taken[0].join("vmstate"));
    fs::create_dir(taken[0].join(".damaged.json")).expect("made");

    let metrics = Arc::new(Metrics::new([]));
    let snapshots = server.world.host.data.snapshots();
    let _scrubber = Scrubber::start(snapshots, Some(Duration::from_secs(3600)), Arc::clone(&metrics)).expect("starts");
    let text = || metrics.text(Format::Plain, &[], &[], hearth_model::load::ResumeOnLoad::On);
    let has = |line: &str| text().lines().any(|found| found == line);
    eventually(|| has("hearth_snapshot_verifications_total{result=\"ok\"} 1"), text).await;
    assert!(has("hearth_snapshot_verifications_total{result=\"corrupt\"} 1"), "once: {}", text());
}

/// The scrub rests after each bundle for nine times as long as it took: on a busy host some seconds.
async fn eventually(mut is: impl FnMut() -> bool, told: impl FnOnce() -> String) {
    for _ in 0..6000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within a minute: {}", told());
}
