//! The escape hatch: whether guests are resumed inside the load, asked anew for every restore.
//!
//! The environment decides if it says anything. Else the configuration file does, as it is now: who
//! edits it needs no restart. A look costs one `stat`; the file is read again only when it changed.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use hearth_model::load::ResumeOnLoad;
use tracing::{info, warn};

use crate::config::{self, Config};

/// The setting's name in the environment.
pub(crate) const VARIABLE: &str = "HEARTH_FIRECRACKER_RESUME_ON_LOAD";

/// Tells whether the hatch is open or closed.
#[derive(Debug)]
pub(crate) struct Hatch {
    environment: Option<ResumeOnLoad>,
    file: Option<PathBuf>,
    last: Mutex<(Option<Stamp>, ResumeOnLoad)>,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Hatch {
    pub(crate) fn new(config: &Config) -> Self {
        let environment = std::env::var_os(VARIABLE).map(|text| ResumeOnLoad::parse(&text.to_string_lossy()));
        Self { environment, file: config.file.clone(), last: Mutex::new((None, config.firecracker.resume_on_load)) }
    }

    /// What is to be done now.
    pub(crate) fn now(&self) -> ResumeOnLoad {
        if let Some(said) = self.environment {
            return said;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &self.file else { return last.1 };
        let stamp = std::fs::metadata(file).ok().map(|file| Stamp {
            inode: file.ino(),
            bytes: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        });
        if stamp != last.0 {
            let (before, after) = match config::resume_on_load_in(file) {
                Ok(said) => (last.1, said.unwrap_or_default()),
                Err(error) => {
                    // Half a file, perhaps: what held before goes on holding.
                    warn!(error = %hearth_model::error::chain(&error), "the configuration file cannot be read again");
                    (last.1, last.1)
                }
            };
            if before != after {
                info!(resume_on_load = ?after, file = %file.display(), "the escape hatch was moved");
            }
            *last = (stamp, after);
        }
        last.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hatch(environment: Option<ResumeOnLoad>, file: Option<PathBuf>) -> Hatch {
        Hatch { environment, file, last: Mutex::new((None, ResumeOnLoad::On)) }
    }

    #[test]
    fn the_file_is_asked_anew_each_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.toml");
        let hatch = hatch(None, Some(file.clone()));
        assert_eq!(hatch.now(), ResumeOnLoad::On, "no file");
        std::fs::write(&file, "[firecracker]\nresume_on_load = false\n").expect("written");
        assert_eq!(hatch.now(), ResumeOnLoad::Off);
        std::fs::write(&file, "[firecracker\n").expect("written");
        assert_eq!(hatch.now(), ResumeOnLoad::Off, "half a file changes nothing");
        std::fs::write(&file, "[firecracker]\nresume_on_load = \"maybe\"\n").expect("written");
        assert_eq!(hatch.now(), ResumeOnLoad::On);
        std::fs::write(&file, "[firecracker]\nresume_on_load = \"no\"\n").expect("written");
        assert_eq!(hatch.now(), ResumeOnLoad::Off);
        std::fs::write(&file, "[log]\nlevel = \"info\"\n").expect("written");
        assert_eq!(hatch.now(), ResumeOnLoad::On, "nothing said is on");
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.toml");
        std::fs::write(&file, "[firecracker]\nresume_on_load = true\n").expect("written");
        assert_eq!(hatch(Some(ResumeOnLoad::Off), Some(file)).now(), ResumeOnLoad::Off);
        assert_eq!(hatch(None, None).now(), ResumeOnLoad::On);
    }
}
