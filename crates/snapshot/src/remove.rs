//! Removing bundles, and what a daemon that died left half written or half removed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hearth_model::SnapshotId;
use hearth_model::error::{ErrorKind, Kind, io_kind};

use crate::open::parse;
use crate::{DRAFT_PREFIX, MANIFEST, SETTLED, TRASH_PREFIX, boot_id};

/// A bundle, or what was left of one, could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct RemoveError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl Kind for RemoveError {
    fn kind(&self) -> ErrorKind {
        io_kind(&self.source)
    }
}

/// What [`sweep`] found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Drafts and trash that it removed.
    pub removed: Vec<PathBuf>,
    /// What it could not remove.
    pub failed: Vec<RemoveError>,
    /// What nobody knows of: left alone, for a person to look at.
    pub unknown: Vec<PathBuf>,
    /// Bundles that somebody knows of and that are not there.
    pub missing: Vec<SnapshotId>,
}

/// Withdraws a bundle: from here on it is gone for everyone, and its removal has been decided, whoever
/// dies then: see [`withdrawn`]. None there is success. [`remove`] deletes its files.
///
/// # Errors
/// The file system's; the bundle is where it was then.
pub fn withdraw(snapshots: &Path, id: &SnapshotId) -> Result<(), RemoveError> {
    let (bundle, trash) = (snapshots.join(id.as_str()), trash(snapshots, id));
    match bundle.try_exists() {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        // It may be there.
        Err(source) => return Err(RemoveError { action: "look for", path: bundle, source }),
    }
    // What an earlier try left would be in the way of the rename.
    delete(&trash)?;
    match fs::rename(&bundle, &trash) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| RemoveError { action: "remove snapshot", path: bundle, source }),
    }
}

/// Removes a bundle: it is gone at once for everyone, and then its files are deleted. None there
/// is success, and one whose removal was cut off is removed to its end. Who has hard links to its
/// files keeps them.
///
/// # Errors
/// The file system's. If the bundle's files could not all be deleted, it is gone nevertheless, and
/// removing it again or [`sweep`] tries again.
pub fn remove(snapshots: &Path, id: &SnapshotId) -> Result<(), RemoveError> {
    withdraw(snapshots, id)?;
    delete(&trash(snapshots, id))
}

/// The bundles that were withdrawn and not removed to the end: who has records of them forgets those
/// before [`sweep`] deletes the files, and with them what tells of it.
///
/// # Errors
/// If the directory cannot be listed. A directory that is not there is an empty one.
pub fn withdrawn(snapshots: &Path) -> Result<Vec<SnapshotId>, RemoveError> {
    let failed = |source| RemoveError { action: "list", path: snapshots.to_owned(), source };
    let entries = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_string_lossy().strip_prefix(TRASH_PREFIX).and_then(|id| id.parse().ok()));
    }
    Ok(found)
}

fn trash(snapshots: &Path, id: &SnapshotId) -> PathBuf {
    snapshots.join(format!("{TRASH_PREFIX}{id}"))
}

/// For a daemon's start: removes all drafts and trash, and what of a bundle was not on the disk when
/// the host went down, if `keep` does not name it: its record was lost with it, and nobody can load
/// it. Says which other bundles `keep` does not name, and which of `keep` are not there.
///
/// # Errors
/// If the directory cannot be listed. A directory that is not there is an empty one.
pub fn sweep(snapshots: &Path, keep: &BTreeSet<SnapshotId>) -> Result<Swept, RemoveError> {
    let failed = |source| RemoveError { action: "list", path: snapshots.to_owned(), source };
    let mut swept = Swept::default();
    let mut missing = keep.clone();
    let entries = match fs::read_dir(snapshots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.map_err(failed)?),
    };
    for entry in entries.into_iter().flatten() {
        let entry = entry.map_err(failed)?;
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let goes = match name.parse::<SnapshotId>() {
            Ok(id) if missing.remove(&id) => continue,
            Ok(id) => never_reached_the_disk(&path, &id),
            Err(_) => name.starts_with(DRAFT_PREFIX) || name.starts_with(TRASH_PREFIX),
        };
        match goes.then(|| delete(&path)) {
            None => swept.unknown.push(path),
            Some(Ok(())) => swept.removed.push(path),
            Some(Err(error)) => swept.failed.push(error),
        }
    }
    swept.missing = missing.into_iter().collect();
    Ok(swept)
}

/// Whether it was published in a boot of the host that ended before it was settled. Of such a one the
/// manifest, too, may be less than was written.
fn never_reached_the_disk(bundle: &Path, id: &SnapshotId) -> bool {
    // If that cannot be seen, it may have.
    if bundle.join(SETTLED).try_exists().unwrap_or(true) {
        return false;
    }
    match fs::read(bundle.join(MANIFEST)) {
        Ok(json) if json.is_empty() => true,
        Ok(json) => parse(&json, id).is_ok_and(|manifest| manifest.boot_id != boot_id()),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn delete(dir: &Path) -> Result<(), RemoveError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| RemoveError { action: "delete", path: dir.to_owned(), source }),
    }
}
