//! Where images lie once imported: `images_dir/<hex digest>/` with `rootfs.erofs` and `image.json`.
//!
//! In: digests. Out: what is stored. A directory of that name is complete, because it gets its
//! name last, in one rename; an unfinished import is a directory whose name begins with `.import-`.
//!
//! What an image is called is recorded elsewhere, a moment after it was stored; and that is forgotten
//! a moment before it is removed. Whoever dies in between leaves an image with a mark in it that
//! nobody names: [`sweep`] removes it. One without a mark it only tells of: somebody may have put older
//! records back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use hearth_model::spec::ImageConfig;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::error::{ImageError, Problem};
use crate::oci::is_hex64;

pub(crate) const ROOTFS: &str = "rootfs.erofs";
const RECORD: &str = "image.json";
const UNFINISHED: &str = ".import-";
/// The mark: see [`claim`] and [`disown`].
const UNNAMED: &str = "unnamed";
const VERSION: u32 = 1;

/// What an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// `sha256:…` of the manifest; of the configuration where there is no manifest (`docker save`
    /// without an OCI index); of the content for a root file system.
    pub digest: String,
    /// What runs, and how.
    pub config: ImageConfig,
    /// Bytes of the root file system's file that are in use.
    pub size_bytes: u64,
    /// `linux/amd64`.
    pub platform: String,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was built, in the words of its configuration (RFC 3339).
    pub created: Option<String>,
    /// What the source called it.
    pub names: Vec<String>,
}

/// How the root file system is stored; the guest mounts it as that type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// Uncompressed EROFS, 4 KiB blocks.
    Erofs,
}

impl Filesystem {
    /// The name by which `mount` knows it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
        }
    }
}

/// An image that is ready to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    /// What it is.
    pub image: Imported,
    /// Its root file system, shared read-only by all instances.
    pub rootfs: PathBuf,
    /// What kind that is.
    pub filesystem: Filesystem,
}

/// What [`sweep`] found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Unfinished imports, and images that nobody came to name, that it removed.
    pub removed: Vec<PathBuf>,
    /// What it could not look at, or not remove.
    pub failed: Vec<ImageError>,
    /// What nobody knows of: left alone, for a person to look at.
    pub unknown: Vec<PathBuf>,
    /// Digests of images that somebody names and that are not there.
    pub missing: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    filesystem: Filesystem,
    #[serde(flatten)]
    image: Imported,
}

/// The stored image of that digest.
///
/// # Errors
/// `not_found`, `corrupt` if what is stored cannot be used, `invalid` for a text that is no digest.
pub fn open(images_dir: &Path, digest: &str) -> Result<StoredImage, ImageError> {
    let dir = place(images_dir, digest)?;
    let damaged = |problem: String| ImageError::Damaged { digest: digest.to_owned(), problem };
    match fs::symlink_metadata(&dir) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ImageError::NotStored(digest.to_owned())),
        Err(source) => return Err(ImageError::Host { action: "look for", path: dir, source }),
    }
    let path = dir.join(RECORD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(format!("{RECORD} is missing"))),
        Err(source) => return Err(ImageError::Host { action: "read", path, source }),
    };
    let record: Record =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{RECORD} cannot be read: {error}")))?;
    if record.version != VERSION {
        return Err(damaged(format!("{RECORD} has version {}, this hearth reads {VERSION}", record.version)));
    }
    let rootfs = dir.join(ROOTFS);
    match fs::metadata(&rootfs) {
        Ok(file) if file.is_file() && file.len() > 0 => {}
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ImageError::Host { action: "look at", path: rootfs, source });
        }
        _ => return Err(damaged(format!("{ROOTFS} is missing"))),
    }
    Ok(StoredImage { image: record.image, rootfs, filesystem: record.filesystem })
}

/// The digests of all stored images, usable or not.
///
/// # Errors
/// The directory cannot be read; one that is not there holds no image.
pub fn list(images_dir: &Path) -> Result<Vec<String>, ImageError> {
    let mut digests: Vec<String> =
        names(images_dir)?.into_iter().filter(|name| is_hex64(name)).map(|name| format!("sha256:{name}")).collect();
    digests.sort();
    Ok(digests)
}

/// Removes the image of that digest; one that is not there is removed already. Instances that run
/// keep the file that they have open.
///
/// # Errors
/// The host's, or `invalid` for a text that is no digest.
pub fn remove(images_dir: &Path, digest: &str) -> Result<(), ImageError> {
    let dir = place(images_dir, digest)?;
    // First out of the way, in one step: half an image must never be found by its digest.
    let doomed = images_dir.join(format!("{UNFINISHED}removed-{}", &digest["sha256:".len()..]));
    match fs::rename(&dir, &doomed) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return remove_tree(&dir),
    }
    remove_tree(&doomed)
}

/// A record names the image of that digest from now on: its mark goes. One that has none, or is not
/// there, is fine.
///
/// # Errors
/// The host's, or `invalid` for a text that is no digest.
pub fn claim(images_dir: &Path, digest: &str) -> Result<(), ImageError> {
    let path = place(images_dir, digest)?.join(UNNAMED);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::Host { action: "remove", path, source })
        }
        _ => Ok(()),
    }
}

/// The last record that names the image of that digest may be about to go: it is marked, until
/// [`claim`] or [`remove`]. One that is not there is fine.
///
/// # Errors
/// The host's, or `invalid` for a text that is no digest.
pub fn disown(images_dir: &Path, digest: &str) -> Result<(), ImageError> {
    let path = place(images_dir, digest)?.join(UNNAMED);
    match File::create(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::Host { action: "write", path, source })
        }
        _ => Ok(()),
    }
}

/// For a daemon's start: removes what imports and removals have left that were killed; `named` are the
/// digests that records name. What cannot be looked at stays, and keeps nothing else from going. Only
/// while no import runs.
///
/// # Errors
/// The directory cannot be listed; one that is not there holds no image.
pub fn sweep(images_dir: &Path, named: &BTreeSet<String>) -> Result<Swept, ImageError> {
    let mut swept = Swept::default();
    let mut missing = named.clone();
    for name in names(images_dir)? {
        let (path, digest) = (images_dir.join(&name), format!("sha256:{name}"));
        let removed = if name.starts_with(UNFINISHED) {
            remove_tree(&path)
        } else if missing.remove(&digest) {
            // It was named in time.
            if let Err(error) = claim(images_dir, &digest) {
                swept.failed.push(error);
            }
            continue;
        } else if is_hex64(&name) {
            let mark = path.join(UNNAMED);
            match fs::symlink_metadata(&mark) {
                Ok(_) => remove(images_dir, &digest),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    swept.unknown.push(path);
                    continue;
                }
                Err(source) => Err(ImageError::Host { action: "look for", path: mark, source }),
            }
        } else {
            swept.unknown.push(path);
            continue;
        };
        match removed {
            Ok(()) => swept.removed.push(path),
            Err(error) => swept.failed.push(error),
        }
    }
    swept.missing = missing.into_iter().collect();
    Ok(swept)
}

/// A private directory for an import, beside its later place; removed when dropped.
pub(crate) fn begin(images_dir: &Path) -> Result<TempDir, Problem> {
    let write = |source| Problem::Write { path: images_dir.to_owned(), source };
    fs::create_dir_all(images_dir).map_err(write)?;
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(images_dir).map_err(write)
}

/// Gives a finished import its place, marked. If somebody else was faster, theirs stays: it is the same.
pub(crate) fn publish(images_dir: &Path, unfinished: TempDir, image: &Imported) -> Result<(), Problem> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| Problem::Write { path, source }
    };
    let path = unfinished.path().join(RECORD);
    let record = Record { version: VERSION, filesystem: Filesystem::Erofs, image: image.clone() };
    let json = serde_json::to_vec_pretty(&record).map_err(io::Error::other).map_err(write(&path))?;
    let mut file = File::create(&path).map_err(write(&path))?;
    file.write_all(&json).and_then(|()| file.sync_all()).map_err(write(&path))?;
    let mark = unfinished.path().join(UNNAMED);
    File::create(&mark).map_err(write(&mark))?;
    File::open(unfinished.path()).and_then(|dir| dir.sync_all()).map_err(write(unfinished.path()))?;

    let place = place(images_dir, &image.digest).map_err(io::Error::other).map_err(write(images_dir))?;
    // Others may read it: guests' VMMs run as their own users.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(unfinished.path(), mode).map_err(write(unfinished.path()))?;
    if open(images_dir, &image.digest).is_ok() {
        return Ok(());
    }
    // What cannot be opened is a leftover of a damaged disk.
    remove(images_dir, &image.digest).map_err(io::Error::other).map_err(write(&place))?;
    match fs::rename(unfinished.path(), &place) {
        // Renamed: nothing is left for the guard to remove.
        Ok(()) => drop(unfinished.keep()),
        Err(_) if open(images_dir, &image.digest).is_ok() => return Ok(()),
        Err(source) => return Err(write(&place)(source)),
    }
    File::open(images_dir).and_then(|dir| dir.sync_all()).map_err(write(images_dir))
}

fn place(images_dir: &Path, digest: &str) -> Result<PathBuf, ImageError> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| is_hex64(hex));
    hex.map(|hex| images_dir.join(hex)).ok_or_else(|| ImageError::BadDigest(digest.to_owned()))
}

fn names(dir: &Path) -> Result<Vec<String>, ImageError> {
    let failed = |source| ImageError::Host { action: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

fn remove_tree(path: &Path) -> Result<(), ImageError> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ImageError::Host { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
