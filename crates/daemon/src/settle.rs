//! Brings published bundles to the disk and sums them, one after another, off every hot path.
//!
//! A thread of its own at the lowest priority: syncing and hashing must not take time from guests
//! or from restores. Most standby bundles are restored before their turn comes, and are skipped.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hearth_model::{ErrorKind, Kind as _, SnapshotId};
use tracing::{debug, warn};

use crate::pins::Pins;

/// What is younger than this is likely to be restored at once: it is left in peace. Also its record is
/// on the disk by then (the store's checkpoint comes after five seconds): so a bundle without a record
/// is one that had not reached the disk itself, and can go.
const QUIET: Duration = Duration::from_secs(6);
/// The lowest priority there is.
const NICE: i32 = 19;

/// The way to the thread. It ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Settler {
    queue: Sender<Published>,
}

/// A bundle, and when it was published.
#[derive(Debug)]
struct Published {
    snapshot: SnapshotId,
    at: Instant,
}

impl Settler {
    pub(crate) fn start(snapshots: PathBuf, pins: Pins) -> std::io::Result<Self> {
        let (queue, waiting) = channel();
        std::thread::Builder::new().name("settle".into()).spawn(move || work(&snapshots, &pins, &waiting))?;
        Ok(Self { queue })
    }

    /// Settles the bundle when its turn comes.
    pub(crate) fn later(&self, snapshot: &SnapshotId) {
        // The thread ends with the daemon: then there is nothing to be told any more.
        self.queue.send(Published { snapshot: snapshot.clone(), at: Instant::now() }).ok();
    }
}

fn work(snapshots: &std::path::Path, pins: &Pins, waiting: &Receiver<Published>) {
    if let Err(error) = rustix::process::nice(NICE) {
        debug!(%error, "settling at normal priority");
    }
    for Published { snapshot, at } in waiting {
        std::thread::sleep(QUIET.saturating_sub(at.elapsed()));
        let _kept = pins.pin(&snapshot);
        let settled = match hearth_snapshot::open(snapshots, &snapshot) {
            Ok(bundle) if bundle.is_settled() => continue,
            Ok(bundle) => hearth_snapshot::settle(&bundle).map(drop).map_err(|e| (e.kind(), e.to_string())),
            Err(error) => Err((error.kind(), hearth_model::error::chain(&error))),
        };
        match settled {
            Ok(()) => debug!(%snapshot, "settled"),
            Err((ErrorKind::NotFound, _)) => debug!(%snapshot, "gone before its turn"),
            Err((_, error)) => warn!(%snapshot, error, "the snapshot could not be brought to the disk"),
        }
    }
}
