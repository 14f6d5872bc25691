//! Rows to records and back, for all tables.

use std::{fs, io};

use rusqlite::ffi::ErrorCode;
use rusqlite::{Connection, OptionalExtension, Params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RecordError;

/// What a table holds, as errors name it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resource(pub(crate) &'static str);

impl Resource {
    pub(crate) fn encode(self, record: &impl Serialize) -> Result<String, RecordError> {
        serde_json::to_string(record).map_err(|source| RecordError::Encode { resource: self.0, source })
    }

    pub(crate) fn absent(self, name: &str) -> RecordError {
        RecordError::Absent { resource: self.0, name: name.to_owned() }
    }

    /// Wraps SQLite's refusal of `action`.
    pub(crate) fn failed(self, action: &'static str) -> impl Fn(rusqlite::Error) -> RecordError {
        move |source| RecordError::Database { action, resource: self.0, source }
    }

    /// The same; a damaged database is told from a disk that fails.
    pub(crate) fn failed_on(self, db: &Connection, action: &'static str) -> impl Fn(rusqlite::Error) -> RecordError {
        move |source| match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) if is_the_disks_fault(db) => {
                RecordError::Unreadable { action, resource: self.0, source }
            }
            _ => self.failed(action)(source),
        }
    }

    /// One record; `sql` selects its key and its JSON.
    pub(crate) fn one<T: DeserializeOwned>(
        self,
        db: &Connection,
        sql: &str,
        params: impl Params,
    ) -> Result<Option<T>, RecordError> {
        let failed = self.failed_on(db, "read");
        let mut statement = db.prepare_cached(sql).map_err(&failed)?;
        let row = statement.query_row(params, key_and_json).optional().map_err(&failed)?;
        row.map(|(key, json)| self.decode(&key, &json)).transpose()
    }

    /// All records that `sql` selects, as key and JSON.
    pub(crate) fn all<T: DeserializeOwned>(
        self,
        db: &Connection,
        sql: &str,
        params: impl Params,
    ) -> Result<Vec<T>, RecordError> {
        let failed = self.failed_on(db, "list");
        let mut statement = db.prepare_cached(sql).map_err(&failed)?;
        let rows = statement.query_map(params, key_and_json).map_err(&failed)?;
        rows.map(|row| {
            let (key, json) = row.map_err(&failed)?;
            self.decode(&key, &json)
        })
        .collect()
    }

    /// Runs one statement that writes; the number of rows that it changed.
    pub(crate) fn write(
        self,
        db: &Connection,
        action: &'static str,
        sql: &str,
        params: impl Params,
    ) -> Result<usize, RecordError> {
        let failed = self.failed_on(db, action);
        db.prepare_cached(sql).and_then(|mut statement| statement.execute(params)).map_err(failed)
    }

    /// The same, where a unique column may belong to another: `name` is what was asked for, and
    /// `holder` (one statement with the name's key) finds who has it.
    pub(crate) fn write_unique(
        self,
        db: &Connection,
        action: &'static str,
        (sql, params): (&str, impl Params),
        name: &str,
        (holder, keys): (&str, impl Params),
    ) -> Result<usize, RecordError> {
        match self.write(db, action, sql, params) {
            Err(RecordError::Database { source, .. }) if is_unique_violation(&source) => {
                let holder =
                    db.query_row(holder, keys, |row| row.get(0)).optional().map_err(self.failed_on(db, "read"))?;
                Err(RecordError::Taken { resource: self.0, name: name.to_owned(), holder })
            }
            other => other,
        }
    }

    fn decode<T: DeserializeOwned>(self, key: &str, json: &str) -> Result<T, RecordError> {
        serde_json::from_str(json).map_err(|source| RecordError::Garbled {
            resource: self.0,
            name: key.to_owned(),
            source,
        })
    }
}

/// Whether a database that SQLite calls damaged is not: what its disk does not give back looks the same to
/// SQLite. Either it still cannot be read, or it can by now, and is whole.
fn is_the_disks_fault(db: &Connection) -> bool {
    let Some(file) = db.path() else { return false };
    let is_read = |file: &str| match fs::File::open(file) {
        Ok(mut file) => io::copy(&mut file, &mut io::sink()).is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if !is_read(file) || !is_read(&format!("{file}-wal")) {
        return true;
    }
    db.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)).is_ok_and(|told| told == "ok")
}

fn key_and_json(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn is_unique_violation(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    error
        .sqlite_error()
        .is_some_and(|e| matches!(e.extended_code, SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use hearth_model::{ErrorKind, Kind as _};

    use super::*;

    fn database(file: &Path) -> Connection {
        let db = Connection::open(file).expect("a database");
        db.execute_batch("CREATE TABLE IF NOT EXISTS t (a, b)").expect("a table");
        db
    }

    /// What SQLite says of a disk that does not give a page back, and of a page that is not one.
    fn malformed() -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), None)
    }

    #[test]
    fn a_database_that_is_whole_is_not_called_damaged() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a.db");
        let db = database(&file);
        let error = Resource("instance").failed_on(&db, "change")(malformed());
        assert_eq!(error.kind(), ErrorKind::HostFailed, "{error:?}");
        assert!(error.hint().is_some_and(|hint| hint.contains("dmesg")), "{error:?}");

        let numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20)";
        db.execute(&format!("{numbers} INSERT INTO t SELECT x, randomblob(2000) FROM n"), []).expect("pages");
        drop(db);
        let raw = fs::File::options().write(true).open(&file).expect("its file");
        raw.write_all_at(&[0x55; 4096], 4096).expect("a page that is none");
        let db = Connection::open(&file).expect("it opens");
        let error = Resource("instance").failed_on(&db, "change")(malformed());
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
}
