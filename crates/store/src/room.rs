//! Room on the disk for what is left to be recorded when the disk is full.
//!
//! A record is written to the log (WAL), and brought from there into the database. So blocks are kept
//! in both, taken while the disk has plenty: in the log beyond its end, in the database as pages that
//! are free. With these, records are written on a disk without one free block, and the log, whose
//! frames are brought over as ever, is begun anew in the blocks that it has.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use hearth_model::capacity::free_bytes;
use rusqlite::Connection;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::debug;

/// Frames that the log has room for. Its index has one block of 32 KiB for 4062 of them: a database
/// whose log is longer could not be opened on a full disk.
pub(crate) const LOG_FRAMES: i64 = 4000;
/// Bytes of these: a page and a header each.
const LOG_BYTES: u64 = 4000 * (4096 + 24) + 32;
/// So many pages of the database are made free, where less than half of that are.
const FREE_PAGES: i64 = 512;
/// So many of them in one go.
const AT_ONCE: i64 = 32;
/// A disk has plenty while so many bytes are free: what is taken here must not be what fills it.
const PLENTY: u64 = 4 * LOG_BYTES;

/// Whether the disk had plenty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    Plenty,
    Short,
}

/// Takes what is missing of the room, if the disk has plenty. On a file system that cannot keep blocks for
/// a file there is less of it: that is no error, and only said.
pub(crate) fn keep(connection: &Connection, file: &Path) -> Disk {
    let log = log_of(file);
    match free(file) {
        Ok(bytes) if bytes < PLENTY => return Disk::Short,
        Ok(_) => {}
        Err(error) => debug!(database = %file.display(), %error, "what is free of its disk could not be told"),
    }
    if let Err(error) = lengthen(&log) {
        debug!(log = %log.display(), %error, "no room is kept for the log");
    }
    if let Err(error) = free_pages(connection) {
        debug!(database = %file.display(), %error, "no room is kept in the database");
    }
    Disk::Plenty
}

/// Bytes.
fn free(file: &Path) -> rustix::io::Result<u64> {
    let disk = statvfs(file)?;
    Ok(free_bytes(disk.f_blocks, disk.f_bavail, disk.f_frsize))
}

/// The log's length stays, so nothing of this is seen by SQLite. Its locks are on other files: this one
/// may be opened and closed beside it.
fn lengthen(log: &Path) -> std::io::Result<()> {
    let log = OpenOptions::new().write(true).open(log)?;
    if log.metadata()?.blocks() * 512 < LOG_BYTES {
        fallocate(&log, FallocateFlags::KEEP_SIZE, 0, LOG_BYTES)?;
    }
    Ok(())
}

/// Pages that were something and are nothing now are used first by whatever comes.
fn free_pages(connection: &Connection) -> rusqlite::Result<()> {
    let count = |what| connection.query_row(what, [], |row| row.get::<_, i64>(0));
    if count("PRAGMA freelist_count")? >= FREE_PAGES / 2 {
        return Ok(());
    }
    let bytes = AT_ONCE * count("PRAGMA page_size")?;
    // A table of no version's: whoever does not know it leaves it alone. One that died in between has left
    // something in it.
    connection.execute_batch("CREATE TABLE IF NOT EXISTS room (blank BLOB) STRICT; DELETE FROM room;")?;
    // Each in a transaction of its own: what one alone makes and removes gets no blocks, and who wants to
    // write meanwhile waits for a fraction of a millisecond. Nor has the database any blocks before all is
    // brought into it.
    for _ in 0..FREE_PAGES / AT_ONCE {
        connection.execute("INSERT INTO room VALUES (zeroblob(?1))", [bytes])?;
    }
    connection.execute("DELETE FROM room", [])?;
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

fn log_of(file: &Path) -> PathBuf {
    let mut log = file.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    #[test]
    fn the_room_is_there_once_and_stays_when_the_last_has_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("state.db");
        let log = log_of(&file);
        let blocks = || std::fs::metadata(&log).expect("a log").blocks() * 512;
        let free = |connection: &Connection| {
            connection.query_row("PRAGMA freelist_count", [], |row| row.get::<_, i64>(0)).expect("counted")
        };
        let connection = schema::open(&file).expect("opened");
        assert!(blocks() < LOG_BYTES && free(&connection) == 0);
        assert_eq!(keep(&connection, &file), Disk::Plenty, "the tests need {PLENTY} bytes");
        let pages = free(&connection);
        assert!(blocks() >= LOG_BYTES && pages >= FREE_PAGES, "{} bytes, {pages} pages", blocks());
        keep(&connection, &file);
        assert_eq!(free(&connection), pages, "there was enough");
        drop(connection);
        assert!(blocks() >= LOG_BYTES, "a daemon that ends keeps it for the next one");
        assert!(free(&schema::open(&file).expect("opened again")) >= FREE_PAGES);
    }
}
