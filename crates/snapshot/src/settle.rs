//! Off the hot path: bringing a bundle to the disk, with the checksums that it is verified by.

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
    pub(crate) files: BTreeMap<String, Sum>,
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

pub(crate) fn summed(bundle: &Bundle) -> impl Iterator<Item = String> {
    std::iter::once(MANIFEST.to_owned()).chain(bundle.manifest().files())
}

/// The sum of one file, by its path in the bundle.
pub(crate) fn sum(name: &str, file: &File) -> io::Result<Sum> {
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
