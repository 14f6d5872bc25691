//! Instance records.

use std::net::Ipv4Addr;

use hearth_model::{InstanceId, InstanceSpec, Phase, RestartStatus, SnapshotId};
use rusqlite::{Connection, TransactionBehavior, params};

use crate::Store;
use crate::error::RecordError;
use crate::lookup::{Called, Lookup, resolve};
use crate::phases::PhaseClock;
use crate::table::Resource;
use crate::timelines::{self, TimelineRecord};

const INSTANCE: Resource = Resource("instance");

/// All that is kept of one instance. Times are milliseconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InstanceRecord {
    /// Its id.
    pub id: InstanceId,
    /// What it is made of; the name in it is unique.
    pub spec: InstanceSpec,
    /// Where it rests, or what runs on it.
    pub phase: Phase,
    /// When it was asked for.
    pub created_at_ms: i64,
    /// When it last began to run.
    pub started_at_ms: Option<i64>,
    /// When it last ceased to.
    pub stopped_at_ms: Option<i64>,
    /// How often its identity was refreshed.
    pub generation: u64,
    /// What it was forked from.
    pub source: Option<Origin>,
    /// Digest of its image, which may have lost its name since.
    pub image_digest: String,
    /// Where its VMM sits: the vmm crate's own, not looked into here.
    pub seat: Option<serde_json::Value>,
    /// The bundle whose memory file its VMM maps.
    pub ram_base: Option<SnapshotId>,
    /// How it ended when it last did, or its program.
    pub exit: Option<ProgramExit>,
    /// Where it is with its restart policy.
    #[serde(default)]
    pub restart: RestartStatus,
    /// Its network device's address.
    pub mac: Option<String>,
    /// Its address outside, for as long as it lives; none where the host gives none.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// The slot of the network that its VMM runs in: the net crate's number.
    #[serde(default)]
    pub slot: Option<u32>,
    /// Time in each phase.
    pub phases: PhaseClock,
}

/// What an instance was forked from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// Another instance.
    Instance(InstanceId),
}

/// How the guest's program ended, or its VMM before that was told.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProgramExit {
    /// Its exit code; 128 and the signal's number if one ended it; -1 of a VMM.
    pub code: i32,
    /// The same for people.
    pub message: String,
    /// Whose end it is.
    #[serde(default)]
    pub of: Ending,
    /// The signal that ended it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The host's kernel killed the VMM for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_memory: bool,
    /// The last lines of its console, when nobody had asked it to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

/// What ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The guest's program; the guest then powers off.
    #[default]
    Program,
    /// The VMM, and the program with it.
    Vmm,
}

fn update(db: &Connection, record: &InstanceRecord) -> Result<(), RecordError> {
    let json = INSTANCE.encode(record)?;
    let (id, name) = (record.id.as_str(), record.spec.name.as_str());
    // The index of names is only written where the name changes.
    let kept = "UPDATE instances SET created_at_ms = ?3, record = ?4 WHERE id = ?1 AND name = ?2";
    let values = params![id, name, record.created_at_ms, json];
    if INSTANCE.write(db, "change", kept, values)? > 0 {
        return Ok(());
    }
    let changed = INSTANCE.write_unique(
        db,
        "change",
        ("UPDATE instances SET name = ?2, created_at_ms = ?3, record = ?4 WHERE id = ?1", values),
        name,
        ("SELECT id FROM instances WHERE name = ?1", params![name]),
    )?;
    if changed == 0 { Err(INSTANCE.absent(id)) } else { Ok(()) }
}

impl Store {
    /// Adds a record.
    ///
    /// # Errors
    /// `already_exists` if another instance has its name or id; `exhausted` as in [`Self::begin`].
    pub fn insert_instance(&self, record: &InstanceRecord) -> Result<(), RecordError> {
        let json = INSTANCE.encode(record)?;
        let (id, name) = (record.id.as_str(), record.spec.name.as_str());
        INSTANCE
            .write_unique(
                &*self.to_begin(INSTANCE.0)?,
                "add to",
                (
                    "INSERT INTO instances (id, name, created_at_ms, record) VALUES (?1, ?2, ?3, ?4)",
                    params![id, name, record.created_at_ms, json],
                ),
                name,
                ("SELECT id FROM instances WHERE name = ?1 OR id = ?2", params![name, id]),
            )
            .map(drop)
    }

    /// Puts this record, which says that something begins, in place of the one with its id.
    ///
    /// # Errors
    /// As [`Self::update_instance`]; `exhausted` if the disk is so full that what room it has for records
    /// is for what has begun already.
    pub fn begin(&self, record: &InstanceRecord) -> Result<(), RecordError> {
        update(&*self.to_begin(INSTANCE.0)?, record)
    }

    /// Puts this record in place of the one with its id.
    ///
    /// # Errors
    /// `not_found` if there is none; `already_exists` if another instance has its name.
    pub fn update_instance(&self, record: &InstanceRecord) -> Result<(), RecordError> {
        update(&self.to_write(), record)
    }

    /// The same, and adds the timeline of what led to it, in one transaction.
    ///
    /// # Errors
    /// As [`Self::update_instance`]; nothing is written then.
    pub fn conclude(&self, record: &InstanceRecord, timeline: &TimelineRecord) -> Result<(), RecordError> {
        let mut db = self.to_write();
        let failed = INSTANCE.failed("change");
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        update(&transaction, record)?;
        timelines::append(&transaction, timeline)?;
        transaction.commit().map_err(failed)
    }

    /// The record with that id.
    ///
    /// # Errors
    /// `corrupt` if what is stored is no record.
    pub fn instance(&self, id: &InstanceId) -> Result<Option<InstanceRecord>, RecordError> {
        INSTANCE.one(&self.db(), "SELECT id, record FROM instances WHERE id = ?1", [id.as_str()])
    }

    /// All records, the oldest first.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record; the error names it.
    pub fn instances(&self) -> Result<Vec<InstanceRecord>, RecordError> {
        INSTANCE.all(&self.db(), "SELECT id, record FROM instances ORDER BY created_at_ms, id", [])
    }

    /// Removes the record and its timelines. One that is not there is success.
    ///
    /// # Errors
    /// The database's.
    pub fn remove_instance(&self, id: &InstanceId) -> Result<(), RecordError> {
        INSTANCE.write(&self.to_write(), "remove from", "DELETE FROM instances WHERE id = ?1", [id.as_str()]).map(drop)
    }

    /// The instance that `text` means: id, exact name, or a prefix of one id only.
    ///
    /// # Errors
    /// `corrupt` if what is stored is no record. Finding none or several is no error.
    pub fn find_instance(&self, text: &str) -> Result<Lookup<InstanceRecord>, RecordError> {
        let db = self.db();
        let called = called(&db, INSTANCE, "SELECT id, name FROM instances ORDER BY created_at_ms, id")?;
        let id = match resolve(text, &called) {
            Lookup::Found(id) => id,
            Lookup::NotFound { similar } => return Ok(Lookup::NotFound { similar }),
            Lookup::Ambiguous { candidates } => return Ok(Lookup::Ambiguous { candidates }),
        };
        let record = INSTANCE.one(&db, "SELECT id, record FROM instances WHERE id = ?1", [&id])?;
        record.map(Lookup::Found).ok_or_else(|| INSTANCE.absent(&id))
    }
}

/// Ids and names that `sql` selects.
pub(crate) fn called(db: &rusqlite::Connection, resource: Resource, sql: &str) -> Result<Vec<Called>, RecordError> {
    let failed = resource.failed_on(db, "list");
    let mut statement = db.prepare_cached(sql).map_err(&failed)?;
    let rows = statement.query_map([], |row| Ok(Called { id: row.get(0)?, name: row.get(1)? })).map_err(&failed)?;
    rows.collect::<Result<_, _>>().map_err(failed)
}
