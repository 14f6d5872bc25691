//! Opening the database, and bringing it from any older version to this one.
//!
//! A version is a step in [`STEPS`], which never changes once released; `tests/golden/` keeps a
//! database of each. The number is SQLite's `user_version`. Before an older database is changed, it is
//! copied as it is to `<file>.v<its version>`, for whoever wants to go back.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
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
    open_with(file, &STEPS)
}

fn open_with(file: &Path, steps: &[&str]) -> Result<Connection, OpenError> {
    let failed = |action| move |source| OpenError::Database { action, file: file.to_owned(), source };
    let mut connection = Connection::open(file).map_err(failed("open"))?;
    prepare(&connection).map_err(failed("open"))?;
    refuse_read_only(&connection).map_err(failed("open"))?;
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read the version of"))?;
    let done = match usize::try_from(found) {
        Ok(done) if done <= steps.len() => done,
        _ => return Err(OpenError::FromTheFuture { file: file.to_owned(), found, known: VERSION }),
    };
    // Far below any limit of its type.
    let to = i64::try_from(steps.len()).unwrap_or(i64::MAX);
    if (1..steps.len()).contains(&done) {
        back_up(&connection, file, found).map_err(failed("copy, before it is changed,"))?;
    }
    migrate(&mut connection, &steps[done..], to).map_err(failed("bring to this version's format"))?;
    Ok(connection)
}

/// Whole, or not at all; what an attempt that failed has left is replaced.
fn back_up(connection: &Connection, file: &Path, found: i64) -> rusqlite::Result<()> {
    let mut copy = file.as_os_str().to_owned();
    copy.push(format!(".v{found}"));
    let mut unfinished = copy.clone();
    unfinished.push(".new");
    let (copy, unfinished) = (Path::new(&copy), Path::new(&unfinished));
    let io = |error: std::io::Error| rusqlite::Error::ToSqlConversionFailure(error.into());
    match std::fs::remove_file(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    // A copy that is in itself consistent, also while somebody reads.
    connection.execute("VACUUM INTO ?1", [unfinished.to_string_lossy()])?;
    std::fs::File::open(unfinished).and_then(|copied| copied.sync_all()).map_err(io)?;
    std::fs::rename(unfinished, copy).map_err(io)
}

/// SQLite opens what it cannot write to for reading alone, as long as it is open: a disk that failed for a
/// moment would leave a daemon that never stores anything again.
fn refuse_read_only(connection: &Connection) -> rusqlite::Result<()> {
    if connection.is_readonly(rusqlite::MAIN_DB)? {
        let readonly = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY);
        return Err(rusqlite::Error::SqliteFailure(readonly, None));
    }
    // The same of the file by which its connections know of each other.
    connection.execute_batch("BEGIN IMMEDIATE; ROLLBACK")
}

pub(crate) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    // Answers with the mode it chose, hence a query.
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // Checkpoints are the business of `checkpoint.rs`.
    connection
        .execute_batch("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 0;")?;
    // The last to close leaves the log where it is, with the room that is kept in it (`room.rs`).
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// All steps in one transaction: an older daemon finds its own version or the new one, never between.
fn migrate(connection: &mut Connection, steps: &[&str], version: i64) -> rusqlite::Result<()> {
    if steps.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in steps {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_was_opened_for_reading_alone_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("state.db");
        let both = open(&file).expect("opened");
        refuse_read_only(&both).expect("it is written to");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let reads = Connection::open_with_flags(&file, flags).expect("it can be read");
        refuse_read_only(&reads).expect_err("nothing could be stored");
    }

    #[test]
    fn an_older_database_is_copied_before_it_is_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("state.db");
        let old = open(&file).expect("made");
        old.execute("INSERT INTO images VALUES ('app', 'd', 0, '{}')", []).expect("written");
        drop(old);
        let copy = dir.path().join(format!("state.db.v{VERSION}"));
        drop(open(&file).expect("as it is"));
        assert!(!copy.exists(), "nothing is changed, nothing is copied");

        // A step that fails leaves what was there, and may be tried again.
        let with = |step| [STEPS.as_slice(), &[step]].concat();
        open_with(&file, &with("ALTER TABLE nothing ADD COLUMN more TEXT")).expect_err("there is no such table");
        let newer = open_with(&file, &with("ALTER TABLE images ADD COLUMN more TEXT")).expect("changed");
        assert_eq!(newer.query_row("SELECT count(more) FROM images", [], |row| row.get::<_, i64>(0)), Ok(0));
        drop(newer);
        assert!(matches!(open(&file), Err(OpenError::FromTheFuture { .. })), "this version would misread it");
        let back = open(&copy).expect("the copy is of this version");
        assert_eq!(back.query_row("SELECT count(*) FROM images", [], |row| row.get::<_, i64>(0)), Ok(1));
    }
}
