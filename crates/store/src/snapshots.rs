//! Snapshot records: which bundles there are and whose they are.

use std::collections::BTreeMap;
use std::fmt;

use hearth_model::{Backend, InstanceId, InstanceName, InstanceSpec, MemMib, SnapshotId};
use rusqlite::params;

use crate::Store;
use crate::error::RecordError;
use crate::instances::called;
use crate::lookup::{Lookup, resolve};
use crate::table::Resource;

const SNAPSHOT: Resource = Resource("snapshot");

/// All that is kept of one snapshot; the rest is in its bundle's manifest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SnapshotRecord {
    /// Its id, and its bundle's directory.
    pub id: SnapshotId,
    /// The user's name for it, unique among the snapshots of its source.
    pub name: Option<InstanceName>,
    /// With memory or without.
    pub kind: SnapshotKind,
    /// An instance's own standby memory: not listed and not found by name.
    pub internal: bool,
    /// The instance it was taken of, which may be gone.
    pub source_instance: InstanceId,
    /// That instance's name at the time.
    pub source_name: InstanceName,
    /// What ran it.
    pub backend: Backend,
    /// When it was taken, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// Bytes that it takes on disk.
    pub size_bytes: u64,
    /// The user's tags.
    pub tags: BTreeMap<String, String>,
    /// The instance's specification at the time.
    pub spec: InstanceSpec,
    /// Digest of its image.
    pub image_digest: String,
    /// Size of the guest's memory in it; `None` for a stopped one.
    pub memory: Option<MemMib>,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// Memory, device state and disks: what is made of it goes on running.
    Standby,
    /// Disks only: what is made of it boots.
    Stopped,
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Standby => "standby",
            Self::Stopped => "stopped",
        })
    }
}

impl Store {
    /// Adds a record.
    ///
    /// # Errors
    /// `already_exists` if its source has another snapshot of that name, or the id is taken.
    pub fn insert_snapshot(&self, record: &SnapshotRecord) -> Result<(), RecordError> {
        let json = SNAPSHOT.encode(record)?;
        let (id, name, source) = keys(record);
        SNAPSHOT
            .write_unique(
                &self.to_write(),
                "add to",
                (
                    "INSERT INTO snapshots (id, name, source_instance, internal, created_at_ms, record)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![id, name, source, record.internal, record.created_at_ms, json],
                ),
                name.unwrap_or(id),
                (HOLDER, params![source, name, id]),
            )
            .map(drop)
    }

    /// Puts this record in place of the one with its id.
    ///
    /// # Errors
    /// `not_found` if there is none; `already_exists` if its source has another of that name.
    pub fn update_snapshot(&self, record: &SnapshotRecord) -> Result<(), RecordError> {
        let json = SNAPSHOT.encode(record)?;
        let (id, name, source) = keys(record);
        let changed = SNAPSHOT.write_unique(
            &self.to_write(),
            "change",
            (
                "UPDATE snapshots SET name = ?2, source_instance = ?3, internal = ?4, created_at_ms = ?5, record = ?6
                 WHERE id = ?1",
                params![id, name, source, record.internal, record.created_at_ms, json],
            ),
            name.unwrap_or(id),
            (HOLDER, params![source, name, id]),
        )?;
        if changed == 0 { Err(SNAPSHOT.absent(id)) } else { Ok(()) }
    }

    /// The record with that id, an internal one too.
    ///
    /// # Errors
    /// `corrupt` if what is stored is no record.
    pub fn snapshot(&self, id: &SnapshotId) -> Result<Option<SnapshotRecord>, RecordError> {
        SNAPSHOT.one(&self.db(), "SELECT id, record FROM snapshots WHERE id = ?1", [id.as_str()])
    }

    /// All records, the internal ones too, the oldest first: every bundle that has an owner.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record; the error names it.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRecord>, RecordError> {
        SNAPSHOT.all(&self.db(), "SELECT id, record FROM snapshots ORDER BY created_at_ms, id", [])
    }

    /// What a user sees: all but the internal ones, the oldest first.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record; the error names it.
    pub fn listed_snapshots(&self) -> Result<Vec<SnapshotRecord>, RecordError> {
        SNAPSHOT.all(&self.db(), "SELECT id, record FROM snapshots WHERE NOT internal ORDER BY created_at_ms, id", [])
    }

    /// Removes the record. One that is not there is success.
    ///
    /// # Errors
    /// The database's.
    pub fn remove_snapshot(&self, id: &SnapshotId) -> Result<(), RecordError> {
        SNAPSHOT.write(&self.to_write(), "remove from", "DELETE FROM snapshots WHERE id = ?1", [id.as_str()]).map(drop)
    }

    /// The snapshot that `text` means: id, exact name (if only one source has it), or a prefix of
    /// one id only. Internal ones are not found.
    ///
    /// # Errors
    /// `corrupt` if what is stored is no record. Finding none or several is no error.
    pub fn find_snapshot(&self, text: &str) -> Result<Lookup<SnapshotRecord>, RecordError> {
        let db = self.db();
        let called =
            called(&db, SNAPSHOT, "SELECT id, name FROM snapshots WHERE NOT internal ORDER BY created_at_ms, id")?;
        let id = match resolve(text, &called) {
            Lookup::Found(id) => id,
            Lookup::NotFound { similar } => return Ok(Lookup::NotFound { similar }),
            Lookup::Ambiguous { candidates } => return Ok(Lookup::Ambiguous { candidates }),
        };
        let record = SNAPSHOT.one(&db, "SELECT id, record FROM snapshots WHERE id = ?1", [&id])?;
        record.map(Lookup::Found).ok_or_else(|| SNAPSHOT.absent(&id))
    }
}

const HOLDER: &str = "SELECT id FROM snapshots WHERE (source_instance = ?1 AND name = ?2) OR id = ?3
                      ORDER BY id = ?3 LIMIT 1";

fn keys(record: &SnapshotRecord) -> (&str, Option<&str>, &str) {
    (record.id.as_str(), record.name.as_ref().map(InstanceName::as_str), record.source_instance.as_str())
}
