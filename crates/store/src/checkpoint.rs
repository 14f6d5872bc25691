//! Brings what was written to the log (WAL) into the database, on a thread and a connection of its
//! own.
//!
//! SQLite by itself does so in the commit that finds the log long enough, and syncs both files to
//! the disk there: a restore in whose way that is would wait for milliseconds. Here a commit only
//! counts, and now and then wakes the thread. What was committed is on the disk some seconds later:
//! that much a power cut may take back.
//!
//! The names of files that records tell of are brought there first: a power cut would else leave the record
//! of an instance and nothing of itself.
//!
//! A log that cannot be brought over, because the disk has no room for the database to grow, only grows
//! itself; so nothing is begun then that would have to be recorded ([`Checkpointer::is_full`]).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use hearth_model::ErrorKind;
use rusqlite::Connection;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::error::database_kind;
use crate::lock::LOCK_FILE;
use crate::room::{self, Disk};
use crate::schema;

/// So many writes lead to one before: a few pages each, so some megabytes of log.
const WRITES: u32 = 256;
/// A log of more pages is begun anew, for which writers wait: one that is written to all the time
/// would grow for ever.
const TOO_LONG: i64 = 16 * 1024;

/// What of the records is on the disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct OnDisk {
    /// When the last checkpoint began that brought all over.
    whole: Option<Instant>,
    /// The last checkpoint found no room.
    full: bool,
}

impl OnDisk {
    /// Whether all that was recorded by `then` is: a power cut takes nothing of it back.
    #[must_use]
    pub fn has(&self, then: Instant) -> bool {
        self.whole.is_some_and(|began| began > then)
    }

    /// Whether the disk has no room for the database to grow: then nothing gets there.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }
}

/// The thread, and the way to it.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    /// Since the last checkpoint began.
    writes: Arc<AtomicU32>,
    on_disk: watch::Receiver<OnDisk>,
    /// None while it is dropped: the thread ends with it.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// `soon` after a write there is a checkpoint.
    pub(crate) fn start(file: PathBuf, soon: Duration) -> std::io::Result<Self> {
        let (wake, woken) = sync_channel(1);
        let (told, on_disk) = watch::channel(OnDisk::default());
        let writes = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&writes);
        let work = move || work(&file, soon, &counted, &told, &woken);
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(work)?;
        Ok(Self { writes, on_disk, wake: Some(wake), thread: Some(thread) })
    }

    /// How far it came, and comes.
    pub(crate) fn on_disk(&self) -> watch::Receiver<OnDisk> {
        self.on_disk.clone()
    }

    /// Whether the disk has no room for the database to grow.
    pub(crate) fn is_full(&self) -> bool {
        self.on_disk.borrow().is_full()
    }

    /// What is written is wanted on the disk at once.
    pub(crate) fn hurry(&self) {
        self.writes.fetch_add(WRITES, Ordering::Relaxed);
        if let Some(wake) = &self.wake {
            wake.try_send(()).ok();
        }
    }

    /// Something is about to be written.
    pub(crate) fn count(&self) {
        let before = self.writes.fetch_add(1, Ordering::Relaxed);
        if (before == 0 || before + 1 == WRITES)
            && let Some(wake) = &self.wake
        {
            // One that is awake already will see this too.
            wake.try_send(()).ok();
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, nothing is left to be done.
            thread.join().ok();
        }
    }
}

fn work(file: &PathBuf, soon: Duration, writes: &AtomicU32, told: &watch::Sender<OnDisk>, woken: &Receiver<()>) {
    let mut connection = None;
    let mut again = false;
    let mut ends = false;
    while !ends && (again || woken.recv().is_ok()) {
        // Others will follow the first.
        let due = Instant::now() + soon;
        while writes.load(Ordering::Relaxed) < WRITES {
            match woken.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    ends = true;
                    break;
                }
            }
        }
        // Who was counted may not have committed yet: it is looked at once more.
        again = writes.swap(0, Ordering::Relaxed) > 0;
        let began = Instant::now();
        if let Err(error) = bring_names(file) {
            // Then the log is not brought there either, most likely, and that is said.
            debug!(%error, "names could not be brought to the disk");
        }
        let before = *told.borrow();
        let (now, failed) = match checkpoint(file, &mut connection) {
            Ok(Brought::All) => (OnDisk { whole: Some(began), full: false }, false),
            // Others were writing: they have been counted.
            Ok(Brought::Some) => (OnDisk { full: false, ..before }, false),
            Err(error) => {
                connection = None;
                let full = database_kind(&error) == ErrorKind::Exhausted;
                if !(full && before.full) {
                    warn!(database = %file.display(), %error, "the log could not be brought into the database");
                }
                (OnDisk { full, ..before }, true)
            }
        };
        told.send_replace(now);
        if before.full && !failed {
            info!(database = %file.display(), "the log is in the database now");
        }
        // What was committed is to be on the disk soon, whether or not more is written.
        again |= failed;
    }
}

/// Brings the names to the disk that were given by now. File systems with one log for all of them (ext4, XFS)
/// write it up to what is changed here; on others some names may come later.
fn bring_names(database: &Path) -> std::io::Result<()> {
    let lock = File::options().write(true).open(database.with_file_name(LOCK_FILE))?;
    lock.set_modified(SystemTime::now())?;
    lock.sync_all()
}

/// How much of the log is in the database, and on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Brought {
    All,
    Some,
}

fn checkpoint(file: &PathBuf, kept: &mut Option<Connection>) -> rusqlite::Result<Brought> {
    let connection = match kept {
        Some(connection) => connection,
        None => {
            let connection = Connection::open(file)?;
            schema::prepare(&connection)?;
            kept.insert(connection)
        }
    };
    // Answers with: was anybody in the way, pages in the log, pages brought over.
    let pages = |how: &str| connection.query_row(how, [], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)));
    let longest = match room::keep(connection, file) {
        Disk::Plenty => TOO_LONG,
        Disk::Short => room::LOG_FRAMES / 2,
    };
    let (mut log, mut brought) = pages("PRAGMA wal_checkpoint(PASSIVE)")?;
    if log > longest {
        (log, brought) = pages("PRAGMA wal_checkpoint(RESTART)")?;
    }
    Ok(if log == brought { Brought::All } else { Brought::Some })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages in the log, and how many of them are in the database.
    fn log(connection: &Connection) -> (i64, i64) {
        connection
            .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok((row.get(1)?, row.get(2)?)))
            .expect("SQLite tells of its log")
    }

    #[test]
    fn what_could_not_be_brought_over_is_when_it_can_without_another_write() {
        let dir = tempfile::tempdir().expect("a directory");
        let (there, away) = (dir.path().join("there"), dir.path().join("away"));
        std::fs::create_dir(&there).expect("made");
        let file = there.join("state.db");
        let connection = schema::open(&file).expect("opened");
        std::fs::rename(&there, &away).expect("taken away");
        let checkpointer = Checkpointer::start(file, Duration::from_millis(20)).expect("a thread");
        checkpointer.count();
        connection.execute("INSERT INTO images VALUES ('a', 'd', 0, '')", []).expect("written");
        std::thread::sleep(Duration::from_millis(200));
        let (pages, brought_over) = log(&connection);
        assert!(pages > 0 && brought_over == 0, "{brought_over} of {pages} pages");
        std::fs::rename(&away, &there).expect("put back");
        let until = Instant::now() + Duration::from_secs(10);
        while log(&connection).1 == 0 {
            assert!(Instant::now() < until, "it was given up");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn commits_leave_the_log_to_the_thread_which_brings_all_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("state.db");
        let connection = schema::open(&file).expect("opened");
        let write = |nth: u32| {
            connection
                .execute("INSERT INTO images VALUES (?1, 'd', 0, hex(zeroblob(8000)))", [format!("image-{nth}")])
                .expect("written");
        };
        // Far beyond where SQLite would do it by itself.
        (0..600).for_each(write);
        let (pages, brought_over) = log(&connection);
        assert!(pages > 1000 && brought_over == 0, "{pages} pages, {brought_over} brought over");

        let checkpointer = Checkpointer::start(file.clone(), Duration::from_secs(3600)).expect("a thread");
        let began = Instant::now();
        (0..WRITES).for_each(|_| checkpointer.count());
        let all_over = || {
            let (pages, brought_over) = log(&connection);
            pages == brought_over
        };
        while !all_over() {
            assert!(began.elapsed() < Duration::from_secs(60), "so many do not wait");
            std::thread::sleep(Duration::from_millis(5));
        }
        // One that is wanted there waits for nobody.
        let now = Instant::now();
        write(600);
        checkpointer.hurry();
        while !checkpointer.on_disk.borrow().has(now) {
            assert!(now.elapsed() < Duration::from_secs(60), "it is not hurried");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(all_over());
        // One alone waits for others, or for the end.
        write(601);
        checkpointer.count();
        assert!(!all_over());
        let now = Instant::now();
        assert!(checkpointer.on_disk.borrow().has(began) && !checkpointer.on_disk.borrow().has(now));
        drop(checkpointer);
        assert!(all_over());
        drop(connection);
        let count = schema::open(&file)
            .expect("opened again")
            .query_row("SELECT count(*) FROM images", [], |row| row.get::<_, i64>(0));
        assert_eq!(count.expect("counted"), 602);
    }
}
