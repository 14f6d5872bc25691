//! Compares bundles with their checksums: when somebody asks, and each of them once in a while.
//!
//! A thread of its own at the lowest priority reads one bundle at a time. What is found to be
//! damaged is marked (`hearth_snapshot::check`), and opening it is refused from then on; what is
//! found to be well again loses its mark. No bundle is pinned meanwhile: a reader that takes
//! minutes must not hold up who removes it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_model::{ErrorKind, Kind as _, SnapshotId};
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::error::OpError;
use crate::metrics::{Metrics, Verdict};

/// The lowest priority there is.
const NICE: i32 = 19;
/// After a bundle that nobody asked for, the disk is left alone for so many times what it took.
const REST: u32 = 9;
/// It is looked for bundles that are due at least so often.
const LOOK: Duration = Duration::from_secs(3600);

/// The way to the thread. It ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Scrubber {
    queue: Sender<Asked>,
    damaged: Damaged,
}

/// Somebody wants to know.
#[derive(Debug)]
struct Asked {
    snapshot: SnapshotId,
    answer: oneshot::Sender<Result<u64, OpError>>,
}

impl Scrubber {
    /// Each bundle is looked at once in `interval`, or only when somebody asks.
    pub(crate) fn start(
        snapshots: PathBuf,
        interval: Option<Duration>,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (queue, waiting) = channel();
        let damaged = Damaged { ids: Arc::default(), metrics };
        let thread = Thread { snapshots, interval, damaged: damaged.clone() };
        std::thread::Builder::new().name("scrub".into()).spawn(move || thread.work(&waiting))?;
        Ok(Self { queue, damaged })
    }

    /// Verifies one bundle when the one that is being read is done; how many bytes it has.
    pub(crate) async fn verify(&self, snapshot: &SnapshotId) -> Result<u64, OpError> {
        let (answer, verdict) = oneshot::channel();
        let ended = || OpError::new(ErrorKind::Internal, "the thread that verifies snapshots has ended");
        self.queue.send(Asked { snapshot: snapshot.clone(), answer }).map_err(|_| ended())?;
        verdict.await.map_err(|_| ended())?
    }

    /// The bundle was removed.
    pub(crate) fn forget(&self, snapshot: &SnapshotId) {
        self.damaged.set(snapshot, false);
    }
}

/// Which bundles are marked, to be counted without looking at each.
#[derive(Debug, Clone)]
struct Damaged {
    ids: Arc<Mutex<BTreeSet<SnapshotId>>>,
    metrics: Arc<Metrics>,
}

impl Damaged {
    fn set(&self, snapshot: &SnapshotId, is: bool) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if is {
            ids.insert(snapshot.clone())
        } else {
            ids.remove(snapshot)
        };
        self.metrics.damaged(ids.len());
    }
}

struct Thread {
    snapshots: PathBuf,
    interval: Option<Duration>,
    damaged: Damaged,
}

impl Thread {
    fn work(&self, waiting: &Receiver<Asked>) {
        if let Err(error) = rustix::process::nice(NICE) {
            debug!(%error, "verifying at normal priority");
        }
        for snapshot in bundles(&self.snapshots) {
            if let Ok(Some(damage)) = hearth_snapshot::damage(&self.snapshots, &snapshot) {
                warn!(%snapshot, file = damage.file, problem = damage.problem, "the snapshot is damaged; it is not loaded");
                self.damaged.set(&snapshot, true);
            }
        }
        let mut rest = Duration::ZERO;
        loop {
            let next = self.next_due();
            let wait = next.as_ref().map_or(LOOK, |(_, due)| (*due).max(rest).min(LOOK));
            match waiting.recv_timeout(wait) {
                Ok(Asked { answer, .. }) if answer.is_closed() => {}
                Ok(Asked { snapshot, answer }) => {
                    // Who asked may have hung up while it was read; the mark is there all the same.
                    drop(answer.send(self.verify(&snapshot)));
                }
                Err(RecvTimeoutError::Timeout) => {
                    rest = Duration::ZERO;
                    if let Some((snapshot, due)) = next
                        && due <= wait
                    {
                        let began = Instant::now();
                        drop(self.verify(&snapshot));
                        rest = began.elapsed() * REST;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The bundle that was not looked at for longest, and how long it may still wait.
    fn next_due(&self) -> Option<(SnapshotId, Duration)> {
        let interval = self.interval?;
        let due = |id: SnapshotId| Some((hearth_snapshot::due(&self.snapshots, &id, interval)?, id));
        let (due, id) = bundles(&self.snapshots).filter_map(due).min()?;
        Some((id, due))
    }

    fn verify(&self, snapshot: &SnapshotId) -> Result<u64, OpError> {
        let checked = hearth_snapshot::check(&self.snapshots, snapshot);
        let kind = checked.as_ref().err().map(|error| error.kind());
        let verdict = match kind {
            None => Some(Verdict::Ok),
            Some(ErrorKind::Corrupt) => Some(Verdict::Corrupt),
            // There was nothing to compare, or nothing to compare it with.
            Some(ErrorKind::NotFound | ErrorKind::WrongState) => None,
            Some(_) => Some(Verdict::Error),
        };
        verdict.into_iter().for_each(|verdict| self.damaged.metrics.verified(verdict));
        let checked = checked.map_err(|error| OpError::from(error).about("snapshot", snapshot.as_str()));
        match (&checked, verdict) {
            (Ok(_), _) => {
                let marked = self.damaged.ids.lock().unwrap_or_else(PoisonError::into_inner).contains(snapshot);
                self.damaged.set(snapshot, false);
                if marked {
                    info!(%snapshot, "the snapshot is what it was again");
                } else {
                    debug!(%snapshot, "the snapshot is what it was");
                }
            }
            (Err(error), Some(Verdict::Corrupt)) => {
                self.damaged.set(snapshot, true);
                error!(%snapshot, %error, "the snapshot is damaged; it is not loaded until it is verified again");
            }
            (Err(error), Some(_)) => warn!(%snapshot, %error, "the snapshot could not be verified"),
            (Err(error), None) => debug!(%snapshot, %error, "the snapshot was not verified"),
        }
        checked
    }
}

/// Every published bundle. A directory that cannot be listed has none to look at.
fn bundles(snapshots: &Path) -> impl Iterator<Item = SnapshotId> {
    let entries = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
