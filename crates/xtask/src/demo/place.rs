//! Where the demo keeps things: `target/demo`.
//!
//! ```text
//!   counter.oci/, counter.recipe   the image, kept
//!   data/                          the daemon's, gone when the demo ends
//!   failed/                        logs of the last run that failed
//!   lock                           one demo at a time
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::daemon;

/// The demo's directory, held for as long as this lives. What the run leaves in `data` is removed
/// when it is dropped.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    _lock: File,
}

impl Place {
    /// Takes the place, and removes what a run that was killed left there.
    pub fn take(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root).with_context(|| format!("make {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("look for {}", root.display()))?;
        let path = root.join("lock");
        let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another demo runs: {} is locked", path.display()),
            Err(TryLockError::Error(error)) => return Err(anyhow!(error).context(format!("lock {}", path.display()))),
        }
        let place = Self { root, _lock: lock };
        let left = place.clear()?;
        remove(&place.root.join("failed"))?;
        if left > 0 {
            println!("an earlier run was cut off: ended {left} of its processes");
        }
        Ok(place)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The daemon's data directory.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Ends what sits in the data directory and removes it; how many processes there were.
    fn clear(&self) -> Result<usize> {
        let ended = daemon::end_all(&self.data())?;
        remove(&self.data())?;
        Ok(ended)
    }

    /// Keeps the logs of a run that failed; where they are.
    pub fn keep_logs(&self) -> Result<PathBuf> {
        let kept = self.root.join("failed");
        remove(&kept)?;
        fs::create_dir_all(&kept).with_context(|| format!("make {}", kept.display()))?;
        let data = self.data();
        copy(&data.join("daemon.log"), &kept.join("daemon.log"))?;
        let Ok(instances) = fs::read_dir(data.join("instances")) else { return Ok(kept) };
        for instance in instances.flatten() {
            for log in ["serial.log", "vmm.log", "hearth.log"] {
                let name = format!("{}-{log}", instance.file_name().display());
                copy(&instance.path().join(log), &kept.join(name))?;
            }
        }
        Ok(kept)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("warning: {error:#}");
        }
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Copies a file that need not be there.
fn copy(from: &Path, to: &Path) -> Result<()> {
    match fs::copy(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("copy {}", from.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_demo_at_a_time_and_nothing_stays_of_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("demo");
        let place = Place::take(root.clone()).expect("free");
        let error = Place::take(root.clone()).expect_err("taken");
        assert!(error.to_string().contains("another demo runs"), "{error}");

        let instance = place.data().join("instances/a");
        fs::create_dir_all(&instance).expect("made");
        fs::write(instance.join("serial.log"), "panic").expect("written");
        let kept = place.keep_logs().expect("kept");
        drop(place);
        assert!(!root.join("data").exists());
        assert_eq!(fs::read_to_string(kept.join("a-serial.log")).expect("kept"), "panic");
        Place::take(root).expect("free again");
    }
}
