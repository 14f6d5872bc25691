//! Whether a bundle is still what it was: every file is read and compared with its checksum.
//!
//! Takes as long as reading all of it does: never on the way of a load. [`check`] keeps the outcome
//! as a mark, which [`open`](crate::open) then refuses without reading anything.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hearth_model::SnapshotId;
use hearth_model::error::{ErrorKind, Kind, io_kind};
use rustix::io::Errno;

use crate::checksum::open_past_the_cache;
use crate::mark::{self, Damage};
use crate::open::{Bundle, OpenError, open_even_marked, read_at_most, remedy};
use crate::settle::{Settled, sum, summed};
use crate::{DAMAGED, MANIFEST, SETTLED};

/// More than the sums of any guest's memory take: some 20 bytes for each MiB of it.
const MOST_SETTLED: u64 = 256 << 20;

/// A bundle is not what it was when it was settled, or that cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It cannot even be opened.
    #[error(transparent)]
    Open(OpenError),
    /// It has no checksums yet.
    #[error("snapshot {id} has no checksums yet")]
    Unsettled {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The checksums cannot be read.
    #[error("read {file} of snapshot {id}", file = SETTLED)]
    Garbled {
        /// The snapshot.
        id: SnapshotId,
        /// What is wrong with them.
        #[source]
        source: serde_json::Error,
    },
    /// A file has another content.
    #[error("{file} of snapshot {id} has changed since it was saved, at byte {at} or after")]
    Changed {
        /// The snapshot.
        id: SnapshotId,
        /// The file, by its path in the bundle.
        file: String,
        /// Where it first differs: the beginning of that MiB.
        at: u64,
    },
    /// The disk does not give a file back.
    #[error("{file} of snapshot {id} cannot be read from the disk")]
    Unreadable {
        /// The snapshot.
        id: SnapshotId,
        /// The file, by its path in the bundle.
        file: String,
        /// What the disk says.
        #[source]
        source: io::Error,
    },
    /// It is damaged, and that could not be written down: it is loaded as if nothing were wrong.
    #[error("{damage}; it could not be marked as damaged by {path}")]
    Unmarked {
        /// The damage.
        damage: Box<VerifyError>,
        /// The mark.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file system refused.
    #[error("{action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Kind for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(error) => error.kind(),
            Self::Unsettled { .. } => ErrorKind::WrongState,
            Self::Garbled { .. } | Self::Changed { .. } | Self::Unreadable { .. } | Self::Unmarked { .. } => {
                ErrorKind::Corrupt
            }
            Self::Io { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::Unsettled { .. } => Some("try again when it has been written to disk".into()),
            Self::Garbled { id, .. } => Some(remedy(SETTLED, id)),
            Self::Changed { id, file, .. } | Self::Unreadable { id, file, .. } => Some(remedy(file, id)),
            Self::Unmarked { damage, .. } => damage.hint(),
            Self::Io { .. } => None,
        }
    }
}

impl VerifyError {
    /// The file that is wrong and what is wrong with it; `None` if no file is known to be.
    fn damage(&self) -> Option<(String, String)> {
        match self {
            Self::Open(OpenError::Damaged { file, problem, .. }) => Some((file.clone(), problem.clone())),
            Self::Open(OpenError::Garbled { source, .. }) => {
                Some((MANIFEST.into(), format!("cannot be understood ({source})")))
            }
            Self::Garbled { source, .. } => Some((SETTLED.into(), format!("cannot be understood ({source})"))),
            Self::Changed { file, at, .. } => {
                Some((file.clone(), format!("has changed since it was saved, at byte {at} or after")))
            }
            Self::Unreadable { file, source, .. } => {
                Some((file.clone(), format!("cannot be read from the disk ({source})")))
            }
            Self::Open(_) | Self::Unsettled { .. } | Self::Unmarked { .. } | Self::Io { .. } => None,
        }
    }
}

/// Reads the whole bundle and compares it with its checksums. Returns how many bytes its files have.
///
/// # Errors
/// `corrupt` naming the file and where it differs; `wrong_state` if it is not settled yet.
pub fn verify(bundle: &Bundle) -> Result<u64, VerifyError> {
    let settled = sums(bundle)?;
    let mut bytes = 0;
    for name in summed(bundle) {
        let path = bundle.dir().join(&name);
        let read = open_past_the_cache(&path).and_then(|file| {
            bytes += file.metadata()?.len();
            sum(&name, &file)
        });
        let now = read.map_err(|source| unreadable(bundle, &name, path, source))?;
        let differs = settled.files.get(&name).map_or(Some(0), |then| then.first_difference(&now));
        if let Some(at) = differs {
            return Err(VerifyError::Changed { id: bundle.id().clone(), file: name, at });
        }
    }
    Ok(bytes)
}

/// Verifies a published bundle whether or not it is marked, and marks it if a file of it is found
/// to be damaged, or takes the mark away if none is. Readers are not kept from it, and neither is
/// who removes it: it is absent then.
///
/// # Errors
/// As [`verify`] and [`open`](crate::open).
pub fn check(snapshots: &Path, id: &SnapshotId) -> Result<u64, VerifyError> {
    let dir = snapshots.join(id.as_str());
    let failed = |action, path: PathBuf| move |source| VerifyError::Io { action, path, source };
    let opened = open_even_marked(snapshots, id).map_err(|error| {
        // What a rotten manifest says of other files is not to be blamed on them.
        if manifest_has_changed(&dir) {
            return VerifyError::Changed { id: id.clone(), file: MANIFEST.into(), at: 0 };
        }
        VerifyError::Open(error)
    });
    let error = match opened.and_then(|bundle| verify(&bundle)) {
        Ok(bytes) => {
            mark::remove(&dir).map_err(failed("remove", dir.join(DAMAGED)))?;
            looked_at(&dir);
            return Ok(bytes);
        }
        // Its files went while they were read.
        Err(_) if matches!(dir.try_exists(), Ok(false)) => {
            return Err(VerifyError::Open(OpenError::Absent { id: id.clone() }));
        }
        Err(error) => error,
    };
    let Some((file, problem)) = error.damage() else { return Err(error) };
    let damage = Damage { file, problem, found_at_ms: now_ms() };
    match mark::write(&dir, &damage) {
        Ok(()) => {}
        Err(_) if matches!(dir.try_exists(), Ok(false)) => {
            return Err(VerifyError::Open(OpenError::Absent { id: id.clone() }));
        }
        Err(source) => {
            return Err(VerifyError::Unmarked { damage: Box::new(error), path: dir.join(DAMAGED), source });
        }
    }
    looked_at(&dir);
    Err(error)
}

/// Whether the manifest is there, and is not the one that the checksums are of.
fn manifest_has_changed(dir: &Path) -> bool {
    let settled = read_at_most(&dir.join(SETTLED), MOST_SETTLED).ok().flatten();
    let settled: Option<Settled> = settled.and_then(|json| serde_json::from_slice(&json).ok());
    let now = open_past_the_cache(&dir.join(MANIFEST)).and_then(|file| sum(MANIFEST, &file)).ok();
    settled.zip(now).is_some_and(|(settled, now)| settled.files.get(MANIFEST) != Some(&now))
}

/// How long it is until a bundle was not verified for `interval`; `None` if it has no checksums to
/// be verified by, or is not there.
#[must_use]
pub fn due(snapshots: &Path, id: &SnapshotId, interval: Duration) -> Option<Duration> {
    let meta = fs::metadata(snapshots.join(id.as_str()).join(SETTLED)).ok()?;
    // A time in the future: the clock was set back meanwhile.
    let age = SystemTime::now().duration_since(meta.modified().ok()?).unwrap_or_default();
    Some(interval.saturating_sub(age))
}

/// The checksums' file was written when they were made, and has the time of every look since. Where
/// that cannot be kept, it is looked at again too soon, and nothing worse.
fn looked_at(dir: &Path) {
    let file = File::options().append(true).open(dir.join(SETTLED));
    file.and_then(|file| file.set_modified(SystemTime::now())).ok();
}

fn sums(bundle: &Bundle) -> Result<Settled, VerifyError> {
    let path = bundle.dir().join(SETTLED);
    match read_at_most(&path, MOST_SETTLED) {
        Ok(json) => serde_json::from_slice(&json.unwrap_or_default())
            .map_err(|source| VerifyError::Garbled { id: bundle.id().clone(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(VerifyError::Unsettled { id: bundle.id().clone() })
        }
        Err(source) => Err(unreadable(bundle, SETTLED, path, source)),
    }
}

/// A disk that has lost a sector says so; all else (no descriptors, no right) says nothing about
/// the file.
fn unreadable(bundle: &Bundle, file: &str, path: PathBuf, source: io::Error) -> VerifyError {
    let lost = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::ISDIR];
    if source.raw_os_error().is_some_and(|code| lost.iter().any(|errno| errno.raw_os_error() == code)) {
        return VerifyError::Unreadable { id: bundle.id().clone(), file: file.to_owned(), source };
    }
    VerifyError::Io { action: "read", path, source }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
