//! Off the hot path: bringing a bundle to the disk, and checking that it is still what it was.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use hearth_model::SnapshotId;
use hearth_model::error::{ErrorKind, Kind, io_kind};

use crate::checksum::{self, Sum};
use crate::draft::create_private;
use crate::open::Bundle;
use crate::{DISKS, MANIFEST, SETTLED, VMSTATE};

/// Sums of all files of a bundle, as `settled.json` keeps them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settled {
    files: BTreeMap<String, Sum>,
}

/// A bundle could not be brought to the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettleError {
    /// The sums could not be written as JSON: a bug.
    #[error("encode the checksums of snapshot {id}")]
    Encode {
        /// The snapshot.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: serde_json::Error,
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

impl Kind for SettleError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Encode { .. } => ErrorKind::Internal,
            Self::Io { source, .. } => io_kind(source),
        }
    }
}

/// A bundle is not what it was when it was settled, or that cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
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
    /// A file's content has changed.
    #[error("{file} of snapshot {id} has changed since it was saved, at byte {at} or after")]
    Changed {
        /// The snapshot.
        id: SnapshotId,
        /// The file.
        file: String,
        /// Where.
        at: u64,
    },
    /// The file system refused.
    #[error("read {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Kind for VerifyError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsettled { .. } => ErrorKind::WrongState,
            Self::Garbled { .. } | Self::Changed { .. } => ErrorKind::Corrupt,
            Self::Io { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unsettled { .. } => Some("try again when it has been written to disk".into()),
            Self::Garbled { .. } | Self::Changed { .. } => {
                Some("restore its directory from a backup, or remove the snapshot".into())
            }
            Self::Io { .. } => None,
        }
    }
}

/// Waits until all of the bundle is on disk, and writes its checksums beside the manifest. Reads
/// every file that was not summed before; doing it twice is harmless.
///
/// # Errors
/// The file system's; the bundle is as usable as before.
pub fn settle(bundle: &Bundle) -> Result<Settled, SettleError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| SettleError::Io { action, path, source }
    };
    let mut files = BTreeMap::new();
    for name in summed(bundle) {
        let path = bundle.dir().join(&name);
        let file = File::open(&path).map_err(failed("open", &path))?;
        file.sync_all().map_err(failed("write to disk", &path))?;
        let sum = sum_once(&name, &file).map_err(failed("sum up", &path))?;
        files.insert(name, sum);
    }
    let settled = Settled { files };
    let mut json =
        serde_json::to_vec(&settled).map_err(|source| SettleError::Encode { id: bundle.id().clone(), source })?;
    json.push(b'\n');

    let parent = bundle.dir().parent().unwrap_or(bundle.dir());
    for dir in [&bundle.dir().join(DISKS), bundle.dir(), parent] {
        sync_dir(dir).map_err(failed("write to disk", dir))?;
    }
    // Last: it says that all the rest is there.
    let (path, temporary) = (bundle.dir().join(SETTLED), bundle.dir().join(".settled.json"));
    create_private(&temporary)
        .and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()))
        .map_err(failed("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("write", &path))?;
    sync_dir(bundle.dir()).map_err(failed("write to disk", bundle.dir()))?;
    Ok(settled)
}

/// Reads the whole bundle and compares it with its checksums.
///
/// # Errors
/// `corrupt` naming the file and where it differs; `wrong_state` if it is not settled yet.
pub fn verify(bundle: &Bundle) -> Result<(), VerifyError> {
    let id = bundle.id();
    let path = bundle.dir().join(SETTLED);
    let settled: Settled = match fs::read(&path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|source| VerifyError::Garbled { id: id.clone(), source })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(VerifyError::Unsettled { id: id.clone() });
        }
        Err(source) => return Err(VerifyError::Io { path, source }),
    };
    for name in summed(bundle) {
        let path = bundle.dir().join(&name);
        let now =
            File::open(&path).and_then(|file| sum(&name, &file)).map_err(|source| VerifyError::Io { path, source })?;
        let differs = settled.files.get(&name).map_or(Some(0), |then| then.first_difference(&now));
        if let Some(at) = differs {
            return Err(VerifyError::Changed { id: id.clone(), file: name, at });
        }
    }
    Ok(())
}

fn summed(bundle: &Bundle) -> impl Iterator<Item = String> {
    std::iter::once(MANIFEST.to_owned()).chain(bundle.manifest().files())
}

fn sum(name: &str, file: &File) -> io::Result<Sum> {
    if matches!(name, MANIFEST | VMSTATE) { checksum::sha256(file) } else { checksum::chunks(file) }
}

/// A file that was not written since it was summed under another name. An image's root file system
/// is in every bundle of its instances, and a base's memory in every copy of it: both are read once.
fn sum_once(name: &str, file: &File) -> io::Result<Sum> {
    type Identity = (u64, u64, u64, i64, i64);
    const REMEMBERED: usize = 256;
    static SUMS: Mutex<BTreeMap<Identity, Sum>> = Mutex::new(BTreeMap::new());
    let sums = || SUMS.lock().unwrap_or_else(PoisonError::into_inner);

    let meta = file.metadata()?;
    if meta.nlink() < 2 {
        return sum(name, file);
    }
    let identity = (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    if let Some(known) = sums().get(&identity) {
        return Ok(known.clone());
    }
    let sum = sum(name, file)?;
    let mut sums = sums();
    if sums.len() >= REMEMBERED {
        sums.clear();
    }
    sums.insert(identity, sum.clone());
    Ok(sum)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
