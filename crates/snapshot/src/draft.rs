//! Writing a bundle: a draft that nobody reads, then all at once a bundle.
//!
//! A draft is not removed when it is dropped: taking it back is a step of its own ([`discard`]),
//! which a caller says before it begins and which can fail out loud.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hearth_model::SnapshotId;
use hearth_model::error::{ErrorKind, Kind, io_kind};

use crate::manifest::{FORMAT, FileEntry, Manifest};
use crate::open::Bundle;
use crate::{DISKS, DRAFT_PREFIX, MANIFEST, boot_id};

/// A directory to write a bundle's files into.
#[derive(Debug)]
pub struct Draft {
    id: SnapshotId,
    dir: PathBuf,
    snapshots: PathBuf,
}

impl Draft {
    /// The id that the bundle will have.
    #[must_use]
    pub const fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// Where a file of the bundle is to be written: [`MEMORY`](crate::MEMORY) and so on.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// The draft's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A bundle could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// There is a draft or a bundle of that id.
    #[error("snapshot {id} exists already")]
    Exists {
        /// The id.
        id: SnapshotId,
    },
    /// A file that a bundle of this kind has was not written.
    #[error("publish snapshot {id}: {file} was not written")]
    Unwritten {
        /// The id.
        id: SnapshotId,
        /// The file.
        file: String,
    },
    /// The manifest could not be written as JSON: a bug.
    #[error("encode the manifest of snapshot {id}")]
    Encode {
        /// The id.
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

impl Kind for DraftError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Unwritten { .. } | Self::Encode { .. } => ErrorKind::Internal,
            Self::Io { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        (self.kind() == ErrorKind::Exhausted)
            .then(|| "free space where the data directory is: remove snapshots or instances".into())
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DraftError {
    move |source| DraftError::Io { action, path: path.to_owned(), source }
}

/// Makes the draft of a new bundle.
///
/// # Errors
/// `already_exists` if there is a draft or a bundle of that id; the file system's.
pub fn begin(snapshots: &Path, id: &SnapshotId) -> Result<Draft, DraftError> {
    let dir = snapshots.join(format!("{DRAFT_PREFIX}{id}"));
    let bundle = snapshots.join(id.as_str());
    if bundle.try_exists().map_err(failed("look for", &bundle))? {
        return Err(DraftError::Exists { id: id.clone() });
    }
    let mut private = fs::DirBuilder::new();
    private.mode(0o700);
    match private.create(&dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(DraftError::Exists { id: id.clone() });
        }
        other => other.map_err(failed("make directory", &dir))?,
    }
    let disks = dir.join(DISKS);
    private.create(&disks).map_err(failed("make directory", &disks))?;
    Ok(Draft { id: id.clone(), dir, snapshots: snapshots.to_owned() })
}

/// Removes the draft of that id with all that is in it. None there is success.
///
/// # Errors
/// The file system's.
pub fn discard(snapshots: &Path, id: &SnapshotId) -> Result<(), DraftError> {
    let dir = snapshots.join(format!("{DRAFT_PREFIX}{id}"));
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove draft", &dir)),
    }
}

/// Makes a bundle of a draft whose files are all written: from one moment to the next it is there,
/// whole. Waits for no disk; [`settle`](crate::settle()) does.
///
/// Of `manifest`, `format`, `boot_id` and `files` are set here.
///
/// # Errors
/// `internal` if a file of its kind is missing; `already_exists` if there is a bundle of that id;
/// the file system's. The draft is still there then.
pub fn publish(draft: Draft, manifest: Manifest) -> Result<Bundle, DraftError> {
    let Draft { id, dir, snapshots } = draft;
    let manifest = Manifest {
        format: FORMAT,
        id: id.clone(),
        boot_id: boot_id(),
        files: measure(&id, &dir, manifest.files())?,
        ..manifest
    };
    let mut json =
        serde_json::to_vec_pretty(&manifest).map_err(|source| DraftError::Encode { id: id.clone(), source })?;
    json.push(b'\n');
    let path = dir.join(MANIFEST);
    create_private(&path).and_then(|mut file| file.write_all(&json)).map_err(failed("write", &path))?;

    let bundle = snapshots.join(id.as_str());
    match fs::rename(&dir, &bundle) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Err(DraftError::Exists { id }),
        other => {
            other.map_err(failed("publish as", &bundle))?;
            Ok(Bundle::new(bundle, manifest))
        }
    }
}

fn measure(id: &SnapshotId, dir: &Path, files: Vec<String>) -> Result<Vec<FileEntry>, DraftError> {
    let entry = |file: String| {
        let path = dir.join(&file);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() => {
                Ok(FileEntry { name: file, bytes: meta.len(), allocated_bytes: meta.blocks() * 512 })
            }
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed("measure", &path)(source)),
            _ => Err(DraftError::Unwritten { id: id.clone(), file }),
        }
    };
    files.into_iter().map(entry).collect()
}

/// A new file that its owner alone may read: guest memory holds secrets, and so may what lists it.
/// One that an earlier try left is replaced, never written into.
pub(crate) fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
