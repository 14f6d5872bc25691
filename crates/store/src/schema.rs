//! Opening the database, and bringing it from any older version to this one.
//!
//! A version is a step in [`STEPS`], which never changes once released; `tests/golden/` keeps a
//! database of each. The number is SQLite's `user_version`.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use crate::error::OpenError;

/// What leads from each version to the next: the first from nothing to 1.
const STEPS: [&str; 1] = [
    // 1
    "CREATE TABLE instances (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        name TEXT,
        source_instance TEXT NOT NULL,
        internal INTEGER NOT NULL,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX snapshot_names ON snapshots (source_instance, name) WHERE name IS NOT NULL;
    CREATE TABLE images (
        name TEXT PRIMARY KEY,
        digest TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX image_digests ON images (digest);
    CREATE TABLE timelines (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        instance TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        record TEXT NOT NULL
    ) STRICT;
    CREATE INDEX timelines_of_instance ON timelines (instance, seq);",
];

/// The version that this code writes.
pub(crate) const VERSION: i64 = STEPS.len() as i64;

/// Longest wait for somebody else's transaction (a backup, a person with `sqlite3`).
const BUSY: Duration = Duration::from_secs(5);

pub(crate) fn open(file: &Path) -> Result<Connection, OpenError> {
    let failed = |action| move |source| OpenError::Database { action, file: file.to_owned(), source };
    let mut connection = Connection::open(file).map_err(failed("open"))?;
    prepare(&connection).map_err(failed("open"))?;
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read the version of"))?;
    if !(0..=VERSION).contains(&found) {
        return Err(OpenError::FromTheFuture { file: file.to_owned(), found, known: VERSION });
    }
    migrate(&mut connection, found).map_err(failed("bring to this version's format"))?;
    Ok(connection)
}

pub(crate) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // Answers with the mode it chose, hence a query.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // Checkpoints are the business of `checkpoint.rs`.
    connection
        .execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0;")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// All steps in one transaction: an older daemon finds its own version or the new one, never between.
fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    if found == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = usize::try_from(found).unwrap_or(0);
    for step in &STEPS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()
}
