//! The daemon's records, in SQLite.
//!
//! In: a data directory, and records as typed values with the times that the caller took. Out: the
//! same records, after any restart. One daemon holds the directory at a time ([`Store::open`] takes
//! its lock). The store decides nothing about instances, reads no clock and touches no file but
//! `state.db` and `lock`.
//!
//! Every record is one row: the columns that are searched or must be unique, and the whole record
//! as JSON. A change of the JSON that an older daemon would misread is a new version in `schema.rs`.
//!
//! Writes survive the death of the process at any point; a power cut may take back the last few
//! (WAL with `synchronous=NORMAL`), never leave half of one. No write waits for the disk: see
//! `checkpoint.rs`. What was begun can be recorded to its end on a full disk, too: see `room.rs`.

mod checkpoint;
mod error;
mod images;
mod instances;
mod lock;
pub mod lookup;
pub mod phases;
mod room;
mod schema;
mod snapshots;
mod table;
mod timelines;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::watch;

pub use checkpoint::OnDisk;
pub use error::{OpenError, RecordError};
pub use images::ImageRecord;
pub use instances::{Ending, InstanceRecord, Origin, ProgramExit};
pub use lookup::Lookup;
pub use phases::PhaseClock;
pub use snapshots::{SnapshotKind, SnapshotRecord};
pub use timelines::{StepTime, TIMELINES_KEPT, TimelineRecord};

/// The database's file name in the data directory.
pub const DATABASE_FILE: &str = "state.db";

/// So long after a write it is on the disk, if all is well.
const SOON: Duration = Duration::from_secs(5);

/// All records of one data directory. Shared by reference; a call takes well under a millisecond.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    checkpointer: checkpoint::Checkpointer,
    path: PathBuf,
    // Held as long as the store lives; dropped last.
    _lock: lock::DirLock,
}

impl Store {
    /// Makes the data directory if it is missing, takes its lock, opens `state.db` and brings it to
    /// this version's schema.
    ///
    /// # Errors
    /// [`OpenError`]: another daemon holds the directory, the database is of a later version or
    /// damaged, or the file system refused.
    pub fn open(data_dir: &Path) -> Result<Self, OpenError> {
        Self::open_syncing(data_dir, SOON)
    }

    /// The same, where a write is on the disk `soon` after, instead of 5 s: for tests that wait for that.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_syncing(data_dir: &Path, soon: Duration) -> Result<Self, OpenError> {
        let lock = lock::DirLock::take(data_dir)?;
        let path = data_dir.join(DATABASE_FILE);
        let connection = schema::open(&path)?;
        room::keep(&connection, &path);
        let checkpointer = checkpoint::Checkpointer::start(path.clone(), soon)
            .map_err(|source| OpenError::Checkpoints { file: path.clone(), source })?;
        Ok(Self { connection: Mutex::new(connection), checkpointer, path, _lock: lock })
    }

    /// Where the database is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What of the records is on the disk, now and from now on. It ends with the store.
    #[must_use]
    pub fn on_disk(&self) -> watch::Receiver<OnDisk> {
        self.checkpointer.on_disk()
    }

    /// Whether the disk has no room for the database to grow: what is written meanwhile is in the log, and
    /// nothing is begun.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.checkpointer.is_full()
    }

    /// Brings to the disk what is not there yet, at once, on a thread of its own: [`Self::on_disk`]
    /// tells when.
    pub fn sync_now(&self) {
        self.checkpointer.hurry();
    }

    /// Brings to the disk what is not there yet, within seconds. Any write does so by itself.
    pub fn sync_soon(&self) {
        self.checkpointer.count();
    }

    /// The connection, to write with.
    fn to_write(&self) -> MutexGuard<'_, Connection> {
        self.checkpointer.count();
        self.db()
    }

    /// The connection, to write that something begins. What room a full disk has for records is for
    /// what has begun: nothing else does so as long as the log cannot be brought into the database.
    fn to_begin(&self, resource: &'static str) -> Result<MutexGuard<'_, Connection>, RecordError> {
        if self.is_full() {
            return Err(RecordError::Full { resource, file: self.path.clone() });
        }
        Ok(self.to_write())
    }

    /// The connection. A panic while it was held cannot have left half a write: what is not
    /// committed is rolled back.
    fn db(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const _: () = {
    const fn shared_between_threads<T: Send + Sync>() {}
    shared_between_threads::<Store>();
};
