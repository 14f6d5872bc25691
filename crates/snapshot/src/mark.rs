//! The mark of a bundle that failed its verification: which file, what is wrong, since when.
//!
//! A file in the bundle's own directory, so that it survives the daemon and goes with the bundle.
//! [`open`](crate::open) refuses what has one; [`check`](crate::check) sets and takes it away.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use hearth_model::SnapshotId;

use crate::draft::create_private;
use crate::open::read_at_most;
use crate::{DAMAGED, MANIFEST};

/// A mark has one line.
const MOST_MARK: u64 = 64 << 10;

/// What is wrong with a bundle.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Damage {
    /// The file, by its path in the bundle.
    pub file: String,
    /// What is wrong with it, as in "is missing".
    pub problem: String,
    /// When that was found, in milliseconds since the Unix epoch.
    pub found_at_ms: i64,
}

impl Damage {
    /// When, for people.
    pub(crate) fn found(&self) -> String {
        jiff::Timestamp::from_millisecond(self.found_at_ms)
            .map_or_else(|_| "an unknown day".into(), |at| at.strftime("%Y-%m-%d").to_string())
    }
}

/// What the mark of a bundle says; `None` if it has none.
///
/// # Errors
/// The file system's.
pub fn damage(snapshots: &Path, id: &SnapshotId) -> io::Result<Option<Damage>> {
    read(&snapshots.join(id.as_str()))
}

pub(crate) fn read(bundle: &Path) -> io::Result<Option<Damage>> {
    let json = match read_at_most(&bundle.join(DAMAGED), MOST_MARK) {
        Ok(json) => json.unwrap_or_default(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A mark that cannot be read is a mark all the same.
    Ok(Some(serde_json::from_slice(&json).unwrap_or_else(|_| Damage {
        file: MANIFEST.into(),
        problem: "or another file was damaged".into(),
        found_at_ms: 0,
    })))
}

pub(crate) fn write(bundle: &Path, damage: &Damage) -> io::Result<()> {
    let mut json = serde_json::to_vec(damage)?;
    json.push(b'\n');
    let temporary = bundle.join(".damaged.json");
    create_private(&temporary).and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()))?;
    fs::rename(&temporary, bundle.join(DAMAGED))?;
    fs::File::open(bundle)?.sync_all()
}

/// Takes it away. None there is success.
pub(crate) fn remove(bundle: &Path) -> io::Result<()> {
    match fs::remove_file(bundle.join(DAMAGED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
