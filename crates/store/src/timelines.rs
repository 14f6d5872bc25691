//! Timelines: the timed steps of the last operations of each instance.

use hearth_model::InstanceId;
use rusqlite::{Connection, params};

use crate::Store;
use crate::error::RecordError;
use crate::table::Resource;

const TIMELINE: Resource = Resource("timeline");

/// How many are kept of one instance; the oldest go first.
pub const TIMELINES_KEPT: usize = 100;
const KEPT: i64 = TIMELINES_KEPT as i64;

/// One operation on one instance.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TimelineRecord {
    /// The operation: text, so that a verb of an older version is still read.
    pub op: String,
    /// On what.
    pub instance: InstanceId,
    /// When it began, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// How long it took, in microseconds.
    pub total_us: u64,
    /// Whether it did what it was asked to.
    pub ok: bool,
    /// If not, why: the whole chain on one line.
    pub error: Option<String>,
    /// Its steps, in the order in which they began.
    pub steps: Vec<StepTime>,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StepTime {
    /// What was done.
    pub name: String,
    /// Microseconds from the operation's begin to its own.
    pub start_us: u64,
    /// Microseconds that it took.
    pub took_us: u64,
    /// What else is worth knowing: a plan, a size, a failure.
    pub note: Option<String>,
}

/// Within a transaction.
pub(crate) fn append(db: &Connection, record: &TimelineRecord) -> Result<(), RecordError> {
    let json = TIMELINE.encode(record)?;
    let id = record.instance.as_str();
    TIMELINE.write(
        db,
        "add to",
        "INSERT INTO timelines (instance, record) SELECT id, ?2 FROM instances WHERE id = ?1",
        params![id, json],
    )?;
    TIMELINE.write(
        db,
        "trim",
        "DELETE FROM timelines WHERE instance = ?1 AND seq <= (
             SELECT seq FROM timelines WHERE instance = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
        params![id, KEPT],
    )?;
    Ok(())
}

impl Store {
    /// Adds a timeline to its instance's, and drops the oldest beyond [`TIMELINES_KEPT`]. An
    /// instance that is gone (by this very operation, say) keeps none, and that is no error.
    ///
    /// # Errors
    /// The database's.
    pub fn append_timeline(&self, record: &TimelineRecord) -> Result<(), RecordError> {
        let mut db = self.to_write();
        let failed = TIMELINE.failed("add to");
        let transaction = db.transaction().map_err(&failed)?;
        append(&transaction, record)?;
        transaction.commit().map_err(failed)
    }

    /// The last `count` timelines of an instance, the newest first.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record.
    pub fn timelines(&self, instance: &InstanceId, count: usize) -> Result<Vec<TimelineRecord>, RecordError> {
        TIMELINE.all(
            &self.db(),
            "SELECT instance, record FROM timelines WHERE instance = ?1 ORDER BY seq DESC LIMIT ?2",
            params![instance.as_str(), i64::try_from(count).unwrap_or(KEPT).min(KEPT)],
        )
    }
}
