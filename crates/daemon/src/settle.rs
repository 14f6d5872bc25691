//! Brings published bundles to the disk and sums them, one after another, off every hot path.
//!
//! A thread of its own at the lowest priority: syncing and hashing must not take time from guests
//! or from restores. Most standby bundles are restored before their turn comes, and are skipped.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use hearth_model::{ErrorKind, Kind as _, SnapshotId};
use tracing::{debug, info, warn};

use crate::dropping::Doomed;
use crate::pins::Pins;

/// What is younger than this is likely to be restored at once: it is left in peace. Also its record is
/// on the disk by then (the store's checkpoint comes after five seconds): so a bundle without a record
/// is one that had not reached the disk itself, and can go.
const QUIET: Duration = Duration::from_secs(6);
/// What could not be brought to the disk is left in peace for so many times as long, and tried again.
const AGAIN: u32 = 10;
/// The lowest priority there is.
const NICE: i32 = 19;

/// The way to the thread. It ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Settler {
    queue: Sender<Published>,
}

/// A bundle, and when it was published, or last tried.
#[derive(Debug)]
struct Published {
    snapshot: SnapshotId,
    at: Instant,
    failed_before: bool,
}

impl Settler {
    pub(crate) fn start(snapshots: PathBuf, pins: Pins, doomed: Doomed) -> std::io::Result<Self> {
        let (queue, waiting) = channel();
        std::thread::Builder::new()
            .name("settle".into())
            .spawn(move || work(&snapshots, (&pins, &doomed), &waiting, QUIET))?;
        Ok(Self { queue })
    }

    /// Settles the bundle when its turn comes.
    pub(crate) fn later(&self, snapshot: &SnapshotId) {
        // The thread ends with the daemon: then there is nothing to be told any more.
        self.queue.send(Published { snapshot: snapshot.clone(), at: Instant::now(), failed_before: false }).ok();
    }
}

fn work(snapshots: &std::path::Path, (pins, doomed): (&Pins, &Doomed), waiting: &Receiver<Published>, quiet: Duration) {
    if let Err(error) = rustix::process::nice(NICE) {
        debug!(%error, "settling at normal priority");
    }
    // Those that the host did not let be brought there.
    let mut again = VecDeque::new();
    while let Some(Published { snapshot, at, failed_before }) = next(waiting, &mut again, AGAIN * quiet) {
        std::thread::sleep(quiet.saturating_sub(at.elapsed()));
        if doomed.has(&snapshot) {
            continue;
        }
        let _kept = pins.pin(&snapshot);
        let settled = match hearth_snapshot::open(snapshots, &snapshot) {
            Ok(bundle) if bundle.is_settled() => continue,
            Ok(bundle) => {
                hearth_snapshot::settle(&bundle).map(drop).map_err(|e| (e.kind(), hearth_model::error::chain(&e)))
            }
            Err(error) => Err((error.kind(), hearth_model::error::chain(&error))),
        };
        match settled {
            Ok(()) if failed_before => info!(%snapshot, "the snapshot is on the disk now"),
            Ok(()) => debug!(%snapshot, "settled"),
            Err((ErrorKind::NotFound, _)) => debug!(%snapshot, "gone before its turn"),
            Err((kind, error)) => {
                if !failed_before {
                    warn!(%snapshot, error, "the snapshot could not be brought to the disk");
                }
                if matches!(kind, ErrorKind::HostFailed | ErrorKind::Exhausted) {
                    again.push_back(Published { snapshot, at: Instant::now(), failed_before: true });
                }
            }
        }
    }
}

/// Whose turn it is; `None` when the daemon ends.
fn next(waiting: &Receiver<Published>, again: &mut VecDeque<Published>, pause: Duration) -> Option<Published> {
    let Some(first) = again.front() else { return waiting.recv().ok() };
    match waiting.recv_timeout((first.at + pause).saturating_duration_since(Instant::now())) {
        Ok(published) => Some(published),
        Err(RecvTimeoutError::Timeout) => again.pop_front(),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

#[cfg(test)]
mod tests {
    use hearth_model::Backend;

    use super::*;
    use crate::ops::SnapshotPlan;
    use crate::world::World;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_bundle_that_could_not_be_brought_to_the_disk_is_when_it_can() {
        let world = World::on(Backend::Firecracker, hearth_model::load::ResumeOnLoad::On).await;
        let web = world.create("web").await.expect("created");
        let plan = SnapshotPlan {
            name: None,
            tags: std::collections::BTreeMap::new(),
            kind: hearth_store::SnapshotKind::Standby,
            internal: false,
        };
        let saved = web.snapshot(plan).await.expect("saved");
        let snapshots = world.host.data.snapshots();
        let bundle = snapshots.join(saved.id.as_str());
        // Where the sums are written before they are put in place.
        let (sums, in_the_way) = (bundle.join(hearth_snapshot::SETTLED), bundle.join(".settled.json"));
        std::fs::create_dir(&in_the_way).expect("made");
        let (queue, waiting) = channel();
        let (to_settle, pins) = (snapshots.clone(), world.host.pins.clone());
        let thread = std::thread::spawn(move || {
            work(&to_settle, (&pins, &Doomed::default()), &waiting, Duration::from_millis(10));
        });
        let published = Published { snapshot: saved.id.clone(), at: Instant::now(), failed_before: false };
        queue.send(published).expect("it waits for it");
        std::thread::sleep(Duration::from_millis(200));
        std::fs::remove_dir(&in_the_way).expect("removed");
        let until = Instant::now() + Duration::from_secs(4);
        while !sums.is_file() {
            assert!(Instant::now() < until, "it was given up");
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(queue);
        thread.join().expect("it ends with the daemon");
    }
}
