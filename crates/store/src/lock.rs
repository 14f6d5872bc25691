//! One daemon per data directory: a lock on the file `lock` in it, which also says who has it.
//!
//! The lock belongs to the open file and ends with the process, however it ends: there is nothing
//! stale to clean up. The file is closed on exec, so VMMs that outlive the daemon do not keep it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::error::OpenError;

const LOCK_FILE: &str = "lock";

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
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = read_pid(&mut file).map_err(failed)?;
                return Err(OpenError::Held { dir: dir.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self(file))
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes())
}

/// `None` if the holder has not written it yet.
fn read_pid(file: &mut File) -> io::Result<Option<u32>> {
    let mut text = String::new();
    file.rewind()?;
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim().parse().ok())
}
