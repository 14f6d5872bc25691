//! One daemon per data directory: a lock on the file `lock` in it, which also says who has it.
//!
//! The lock belongs to the open file and ends with the process, however it ends: there is nothing
//! stale to clean up. The file is closed on exec, so VMMs that outlive the daemon do not keep it. One that
//! the daemon was just starting when it was killed keeps it until its exec: that is waited for.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::OpenError;

/// Beside the database.
pub(crate) const LOCK_FILE: &str = "lock";

/// How long the lock of a daemon that has ended may stay with what it was starting.
const LEAVES: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(5);

/// Held while it lives.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "kept open: that is the lock")] File);

impl DirLock {
    /// Makes `dir` if it is missing, and takes its lock or says who holds it.
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| OpenError::MakeDir { dir: dir.to_owned(), source })?;
        let path = dir.join(LOCK_FILE);
        let failed = |source| OpenError::Lock { file: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        let until = Instant::now() + LEAVES;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = read_pid(&mut file).map_err(failed)?;
                    if !holder.is_some_and(has_ended) || Instant::now() > until {
                        return Err(OpenError::Held { dir: dir.to_owned(), holder });
                    }
                    std::thread::sleep(AGAIN);
                }
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self(file))
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    // Over what is there: that takes no block, which a full disk may not have.
    let pid = format!("{}\n", std::process::id());
    file.rewind()?;
    file.write_all(pid.as_bytes())?;
    file.set_len(pid.len() as u64)
}

/// `None` if the holder has not written it yet.
fn read_pid(file: &mut File) -> io::Result<Option<u32>> {
    let mut text = String::new();
    file.rewind()?;
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}

/// Also if nobody has asked yet how it ended: a zombie has no program.
fn has_ended(pid: u32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// The lock file as a daemon with that pid leaves it to what it has just forked.
    fn held_for(dir: &Path, pid: u32) -> File {
        let mut file = File::create(dir.join(LOCK_FILE)).expect("lock file");
        file.write_all(format!("{pid}\n").as_bytes()).expect("pid");
        file.lock().expect("lock");
        file
    }

    #[test]
    fn what_an_ended_daemon_was_starting_is_waited_for() {
        let dir = tempfile::tempdir().expect("directory");
        // Ended, and nobody has asked how.
        let mut daemon = Command::new("true").spawn().expect("a process");
        while !has_ended(daemon.id()) {
            std::thread::sleep(AGAIN);
        }
        let file = held_for(dir.path(), daemon.id());
        let began = Instant::now();
        let starting = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(file);
        });
        DirLock::take(dir.path()).expect("it is ours in the end");
        assert!(began.elapsed() >= Duration::from_millis(100), "it was held until then");
        starting.join().expect("released");
        daemon.wait().expect("ended");
    }

    #[test]
    fn a_daemon_that_runs_is_told_of_at_once() {
        let dir = tempfile::tempdir().expect("directory");
        let _file = held_for(dir.path(), std::process::id());
        let began = Instant::now();
        let refused = DirLock::take(dir.path()).expect_err("it is held");
        assert!(matches!(refused, OpenError::Held { holder: Some(holder), .. } if holder == std::process::id()));
        assert!(began.elapsed() < LEAVES, "it was waited for");
    }
}
