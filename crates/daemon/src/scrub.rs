//! Compares bundles with their checksums: when somebody asks, and each of them once in a while.
//!
//! A thread of its own at the lowest priority reads one bundle at a time. What is found to be
//! damaged is marked (`hearth_snapshot::check`), and opening it is refused from then on; what is
//! found to be well again loses its mark. No bundle is pinned meanwhile: a reader that takes
//! minutes must not hold up who removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_model::{ErrorKind, Kind as _, SnapshotId};
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use crate::error::OpError;
use crate::metrics::{Metrics, Verdict};

/// The lowest priority there is.
const NICE: i32 = 19;
/// After a bundle that nobody asked for, the disk is left alone for so many times what it took.
const REST: u32 = 9;
/// It is looked for bundles that are due, and for those that are gone, at least so often.
const LOOK: Duration = Duration::from_secs(600);

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

    /// Forgets those that were removed without anybody telling.
    fn keep_what_is_in(&self, snapshots: &Path) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.retain(|id| snapshots.join(id.as_str()).try_exists().unwrap_or(true));
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
        let mut resting_until = Instant::now();
        // What cannot be read, or cannot be written to, keeps no time of its own.
        let mut tried = BTreeMap::new();
        loop {
            self.damaged.keep_what_is_in(&self.snapshots);
            let next = self.next_due(&mut tried);
            let rest = resting_until.saturating_duration_since(Instant::now());
            let wait = next.as_ref().map_or(LOOK, |(_, due)| (*due).max(rest)).min(LOOK);
            match waiting.recv_timeout(wait) {
                Ok(Asked { answer, .. }) if answer.is_closed() => {}
                Ok(Asked { snapshot, answer }) => {
                    // Who gets the answer logs it; who asked may have hung up meanwhile.
                    if let Err(unheard) = answer.send(self.verify(&snapshot)) {
                        log(&snapshot, &unheard);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let Some((snapshot, due)) = next else { continue };
                    if due.max(rest) <= wait {
                        let began = Instant::now();
                        log(&snapshot, &self.verify(&snapshot));
                        resting_until = Instant::now() + began.elapsed() * REST;
                        tried.insert(snapshot, Instant::now());
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// The bundle that is due first, and how long it may still wait.
    fn next_due(&self, tried: &mut BTreeMap<SnapshotId, Instant>) -> Option<(SnapshotId, Duration)> {
        let interval = self.interval?;
        tried.retain(|id, at| at.elapsed() < interval && self.snapshots.join(id.as_str()).try_exists().unwrap_or(true));
        let due = |id: SnapshotId| {
            let due = hearth_snapshot::due(&self.snapshots, &id, interval)?;
            let again = tried.get(&id).map(|at| interval.saturating_sub(at.elapsed()));
            Some((due.max(again.unwrap_or_default()), id))
        };
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
        match verdict {
            Some(Verdict::Ok) => self.damaged.set(snapshot, false),
            Some(Verdict::Corrupt) => {
                self.damaged.set(snapshot, true);
                // Who removed it since has said so before it was set.
                self.damaged.keep_what_is_in(&self.snapshots);
            }
            Some(Verdict::Error) | None => {}
        }
        checked
    }
}

/// Says what came of a bundle that nobody waits for.
fn log(snapshot: &SnapshotId, checked: &Result<u64, OpError>) {
    match checked {
        Ok(bytes) => debug!(%snapshot, bytes, "the snapshot is what it was"),
        Err(error) if error.kind == ErrorKind::Corrupt => {
            error!(%snapshot, %error, "the snapshot is damaged; it is not loaded until it is verified again");
        }
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::WrongState) => {
            debug!(%snapshot, %error, "the snapshot was not verified");
        }
        Err(error) => warn!(%snapshot, %error, "the snapshot could not be verified"),
    }
}

/// Every published bundle. A directory that cannot be listed has none to look at.
fn bundles(snapshots: &Path) -> impl Iterator<Item = SnapshotId> {
    let entries = std::fs::read_dir(snapshots).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
