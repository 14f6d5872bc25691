//! Opening a bundle: its manifest is read and every file looked at, none is read.
//!
//! On the way of every restore and fork: one small file and a stat per file.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use hearth_model::SnapshotId;
use hearth_model::error::{ErrorKind, Kind, io_kind};

use crate::manifest::{FORMAT, Manifest};
use crate::mark::{self, Damage};
use crate::{DAMAGED, MANIFEST, MEMORY, OVERLAY, ROOTFS, SETTLED, VMSTATE, boot_id};

/// More than a specification can say; a manifest has some KiB.
const MOST_MANIFEST: u64 = 16 << 20;

/// A published bundle, whole as far as sizes tell.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    pub(crate) const fn new(dir: PathBuf, manifest: Manifest) -> Self {
        Self { dir, manifest }
    }

    /// What it is.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &SnapshotId {
        &self.manifest.id
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Device state; only a bundle of kind standby has it.
    #[must_use]
    pub fn vmstate(&self) -> PathBuf {
        self.dir.join(VMSTATE)
    }

    /// Guest RAM; only a bundle of kind standby has it.
    #[must_use]
    pub fn memory(&self) -> PathBuf {
        self.dir.join(MEMORY)
    }

    /// The image's root file system.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join(ROOTFS)
    }

    /// The writable layer.
    #[must_use]
    pub fn overlay(&self) -> PathBuf {
        self.dir.join(OVERLAY)
    }

    /// Whether all of it has reached the disk.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.dir.join(SETTLED).exists()
    }
}

/// A bundle cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none.
    #[error("there is no bundle of snapshot {id}")]
    Absent {
        /// The snapshot.
        id: SnapshotId,
    },
    /// A later version of Hearth wrote it.
    #[error("snapshot {id} has format {found}, and this version reads up to {FORMAT}")]
    FromTheFuture {
        /// The snapshot.
        id: SnapshotId,
        /// Its format.
        found: u32,
    },
    /// The manifest is not one.
    #[error("read {file} of snapshot {id}", file = MANIFEST)]
    Garbled {
        /// The snapshot.
        id: SnapshotId,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file is not as it was published.
    #[error("{file} of snapshot {id} {problem}")]
    Damaged {
        /// The snapshot.
        id: SnapshotId,
        /// The file, by its path in the bundle.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A verification found that a file is not what it was.
    #[error("{file} of snapshot {id} {problem}: found by a verification on {found}, and not verified since",
        file = damage.file, problem = damage.problem, found = damage.found())]
    Marked {
        /// The snapshot.
        id: SnapshotId,
        /// What was found.
        damage: Damage,
    },
    /// The host went down before its files had reached the disk.
    #[error("snapshot {id} was not yet on disk when the host went down")]
    Unsettled {
        /// The snapshot.
        id: SnapshotId,
    },
    /// The file system refused.
    #[error("look at {path}")]
    Io {
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Kind for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent { .. } => ErrorKind::NotFound,
            Self::FromTheFuture { .. } => ErrorKind::Incompatible,
            Self::Garbled { .. } | Self::Damaged { .. } | Self::Marked { .. } | Self::Unsettled { .. } => {
                ErrorKind::Corrupt
            }
            Self::Io { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::FromTheFuture { .. } => Some("use the version that wrote it, or a later one".into()),
            Self::Garbled { id, .. } => Some(remedy(MANIFEST, id)),
            Self::Damaged { id, file, .. } => Some(remedy(file, id)),
            Self::Marked { id, damage } => Some(remedy(&damage.file, id)),
            Self::Unsettled { .. } => Some("restore its directory from a backup, or remove the snapshot".into()),
            // Its record may have been written to the disk before the names of its files were.
            Self::Absent { .. } => Some(
                "it was not yet on disk when the host went down, or somebody has removed its directory: restore that \
                 from a backup, or remove the snapshot"
                    .into(),
            ),
            Self::Io { .. } => None,
        }
    }
}

/// What to do about a file that is not what it was.
pub(crate) fn remedy(file: &str, id: &SnapshotId) -> String {
    format!("put {file} back from a backup and run `hearth snapshot verify {id}`, or remove the snapshot")
}

/// Opens a published bundle: reads the manifest, and checks that each file is there with the size
/// it was published with, and that no verification has found one to be damaged. Contents are
/// [`verify`](crate::verify)'s.
///
/// # Errors
/// `not_found`, `incompatible` if a later version wrote it, `corrupt` naming the file, or the file
/// system's.
pub fn open(snapshots: &Path, id: &SnapshotId) -> Result<Bundle, OpenError> {
    let bundle = open_even_marked(snapshots, id)?;
    match mark::read(bundle.dir()) {
        Ok(None) => Ok(bundle),
        Ok(Some(damage)) => Err(OpenError::Marked { id: id.clone(), damage }),
        Err(source) => Err(OpenError::Io { path: bundle.dir().join(DAMAGED), source }),
    }
}

/// The same, to look whether what is marked is well again.
pub(crate) fn open_even_marked(snapshots: &Path, id: &SnapshotId) -> Result<Bundle, OpenError> {
    let dir = snapshots.join(id.as_str());
    let manifest = read_manifest(&dir, id)?;
    let damaged = |file: &str, problem: String| OpenError::Damaged { id: id.clone(), file: file.to_owned(), problem };
    if manifest.id != *id {
        return Err(damaged(MANIFEST, format!("is that of snapshot {}", manifest.id)));
    }
    // Before its files are looked at: of one that is not on the disk any may be short.
    if manifest.boot_id != boot_id() && !is_there(&dir.join(SETTLED))? {
        return Err(OpenError::Unsettled { id: id.clone() });
    }
    // Only names of ours, and ids of drives that were checked, are ever joined to a path.
    for file in &manifest.files() {
        let Some(entry) = manifest.files.iter().find(|entry| entry.name == *file) else {
            return Err(damaged(MANIFEST, format!("does not list {file}")));
        };
        let path = dir.join(file);
        match fs::symlink_metadata(&path) {
            Ok(meta) if !meta.is_file() => return Err(damaged(file, "is not a file".into())),
            Ok(meta) if meta.len() != entry.bytes => {
                return Err(damaged(file, format!("has {} bytes instead of {}", meta.len(), entry.bytes)));
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => return Err(damaged(file, "is missing".into())),
            Err(source) => return Err(OpenError::Io { path, source }),
        }
    }
    Ok(Bundle::new(dir, manifest))
}

fn read_manifest(dir: &Path, id: &SnapshotId) -> Result<Manifest, OpenError> {
    let path = dir.join(MANIFEST);
    let damaged =
        |problem: &str| OpenError::Damaged { id: id.clone(), file: MANIFEST.to_owned(), problem: problem.to_owned() };
    let json = match read_at_most(&path, MOST_MANIFEST) {
        Ok(Some(json)) => json,
        Ok(None) => return Err(damaged("is larger than any manifest")),
        Err(error) if is_absent(&error) && !is_there(dir)? => return Err(OpenError::Absent { id: id.clone() }),
        Err(error) if is_absent(&error) => return Err(damaged("is missing")),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Err(damaged("is not a file")),
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    // The file's name and no word of it: that is how a host leaves what it had no time to write.
    if json.is_empty() && !is_there(&dir.join(SETTLED))? {
        return Err(OpenError::Unsettled { id: id.clone() });
    }
    parse(&json, id)
}

/// What the file of a bundle says; that it is another's is for the caller to see.
pub(crate) fn parse(json: &[u8], id: &SnapshotId) -> Result<Manifest, OpenError> {
    #[derive(serde::Deserialize)]
    struct OnlyFormat {
        format: u32,
    }
    let garbled = |source| OpenError::Garbled { id: id.clone(), source };
    // The number first: nothing else of a later format can be relied on.
    let OnlyFormat { format } = serde_json::from_slice(json).map_err(garbled)?;
    if format > FORMAT {
        return Err(OpenError::FromTheFuture { id: id.clone(), found: format });
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(garbled)?;
    if let Some(foreign) = &manifest.foreign
        && manifest.spec.foreign.as_ref() != Some(&foreign.devices())
    {
        let problem = "names other drives than its specification".into();
        return Err(OpenError::Damaged { id: id.clone(), file: MANIFEST.to_owned(), problem });
    }
    Ok(manifest)
}

/// Reads a file, unless it is longer than that: then it is not what it should be.
pub(crate) fn read_at_most(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    fs::File::open(path)?.take(most + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= most).then_some(content))
}

/// Whether there is something of that name; that it could not be looked at is an error.
fn is_there(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(|source| OpenError::Io { path: path.to_owned(), source })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
