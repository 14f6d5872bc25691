//! Rows to records and back, for all tables.

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

    /// One record; `sql` selects its key and its JSON.
    pub(crate) fn one<T: DeserializeOwned>(
        self,
        db: &Connection,
        sql: &str,
        params: impl Params,
    ) -> Result<Option<T>, RecordError> {
        let failed = self.failed("read");
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
        let failed = self.failed("list");
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
        let failed = self.failed(action);
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
                let holder = db.query_row(holder, keys, |row| row.get(0)).optional().map_err(self.failed("read"))?;
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

fn key_and_json(row: &rusqlite::Row<'_>) -> rusqlite::Result<(String, String)> {
    Ok((row.get(0)?, row.get(1)?))
}

fn is_unique_violation(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    error
        .sqlite_error()
        .is_some_and(|e| matches!(e.extended_code, SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY))
}
