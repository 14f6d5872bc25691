//! The guest's serial port: a file, or standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the guest writes to.
#[derive(Debug, Clone)]
pub(crate) struct Serial {
    file: Option<Arc<Mutex<File>>>,
}

impl Serial {
    /// Opens it as Firecracker does: what is there is neither emptied nor appended to, but written
    /// over from its beginning.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            None => None,
            Some(path) => {
                let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
                Some(Arc::new(Mutex::new(file)))
            }
        };
        Ok(Self { file })
    }

    /// Writes; what cannot be written is lost, as on the real one.
    pub(crate) fn write(&self, text: &str) {
        let _ = match &self.file {
            Some(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes()),
            None => io::stdout().write_all(text.as_bytes()),
        };
    }
}
