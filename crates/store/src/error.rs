//! What can go wrong: opening the store, and reading or writing a record.

use std::io;
use std::path::PathBuf;

use hearth_model::error::{ErrorKind, Kind, io_kind};

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The data directory could not be made.
    #[error("make data directory {dir}")]
    MakeDir {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The lock file could not be opened, locked or written.
    #[error("lock data directory with {file}")]
    Lock {
        /// The lock file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another daemon has it.
    #[error("data directory {dir} is held by {}", .holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who holds it, if it has said so yet.
        holder: Option<u32>,
    },
    /// A later version of Hearth wrote it.
    #[error("{file} has format {found}, and this version reads up to {known}")]
    FromTheFuture {
        /// The database.
        file: PathBuf,
        /// Its version.
        found: i64,
        /// The latest known here.
        known: i64,
    },
    /// There is no thread for its checkpoints.
    #[error("start the thread for checkpoints of {file}")]
    Checkpoints {
        /// The database.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// SQLite refused to open it or to bring it to this version.
    #[error("{action} {file}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The database.
        file: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
}

impl Kind for OpenError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::MakeDir { source, .. } | Self::Lock { source, .. } | Self::Checkpoints { source, .. } => {
                io_kind(source)
            }
            Self::Held { .. } => ErrorKind::Busy,
            Self::FromTheFuture { .. } => ErrorKind::Incompatible,
            Self::Database { source, .. } => database_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::MakeDir { .. } | Self::Lock { .. } => {
                Some("run as a user who may write there, or choose another data directory".into())
            }
            Self::Held { holder: Some(pid), .. } => {
                Some(format!("use the daemon that runs already (process {pid}), or choose another data directory"))
            }
            Self::Held { holder: None, .. } => Some("choose another data directory".into()),
            Self::FromTheFuture { .. } => {
                Some("run the version that wrote it, or a later one; or choose another data directory".into())
            }
            Self::Database { source, file, .. } if database_kind(source) == ErrorKind::Corrupt => Some(format!(
                "see first whether its disk can be read (`dmesg`): one that cannot looks the same; then restore {} \
                     from a backup, or move it away to begin with no records",
                file.display()
            )),
            Self::Database { source, .. } if database_kind(source) == ErrorKind::HostFailed => {
                Some(LOOK_AT_THE_DISK.into())
            }
            Self::Checkpoints { .. } | Self::Database { .. } => None,
        }
    }
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Its name or id belongs to another.
    #[error("{resource} {name} exists already")]
    Taken {
        /// `instance`, `snapshot` or `image`.
        resource: &'static str,
        /// The name.
        name: String,
        /// Id of the one that has it.
        holder: Option<String>,
    },
    /// There is no such record to change.
    #[error("there is no {resource} {name}")]
    Absent {
        /// `instance`, `snapshot` or `image`.
        resource: &'static str,
        /// The id or name.
        name: String,
    },
    /// What is stored is not a record.
    #[error("read the stored record of {resource} {name}")]
    Garbled {
        /// `instance`, `snapshot`, `image` or `timeline`.
        resource: &'static str,
        /// The id or name.
        name: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record could not be written as JSON: a bug.
    #[error("encode the record of a {resource}")]
    Encode {
        /// `instance`, `snapshot`, `image` or `timeline`.
        resource: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The disk is full, and what room is left for records is for what has begun already.
    #[error("begin nothing on {resource} records: the disk of {file} is full")]
    Full {
        /// `instance`.
        resource: &'static str,
        /// The database.
        file: PathBuf,
    },
    /// The database is whole, and its disk did not give it back.
    #[error("{action} {resource} records: the disk does not give them back")]
    Unreadable {
        /// What was tried.
        action: &'static str,
        /// `instance`, `snapshot`, `image` or `timeline`.
        resource: &'static str,
        /// What SQLite made of it.
        #[source]
        source: rusqlite::Error,
    },
    /// SQLite refused.
    #[error("{action} {resource} records")]
    Database {
        /// What was tried.
        action: &'static str,
        /// `instance`, `snapshot`, `image` or `timeline`.
        resource: &'static str,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
}

impl Kind for RecordError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::Absent { .. } => ErrorKind::NotFound,
            Self::Garbled { .. } => ErrorKind::Corrupt,
            Self::Encode { .. } => ErrorKind::Internal,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Unreadable { .. } => ErrorKind::HostFailed,
            Self::Database { source, .. } => database_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { holder: Some(id), .. } => {
                Some(format!("choose another name, or remove the one that has it ({id})"))
            }
            Self::Taken { holder: None, .. } => Some("choose another name, or remove the one that has it".into()),
            Self::Full { .. } => Some(FREE_SPACE.into()),
            Self::Database { source, .. } if database_kind(source) == ErrorKind::Exhausted => Some(FREE_SPACE.into()),
            Self::Unreadable { .. } => Some(LOOK_AT_THE_DISK.into()),
            Self::Database { source, .. } if database_kind(source) == ErrorKind::HostFailed => {
                Some(LOOK_AT_THE_DISK.into())
            }
            Self::Absent { .. } | Self::Garbled { .. } | Self::Encode { .. } | Self::Database { .. } => None,
        }
    }
}

const FREE_SPACE: &str = "free space where the data directory is";
const LOOK_AT_THE_DISK: &str = "see what the kernel says of the disk where the data directory is (`dmesg`)";

/// The kind of a failure of SQLite.
pub(crate) fn database_kind(error: &rusqlite::Error) -> ErrorKind {
    use rusqlite::ffi::ErrorCode;
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::OutOfMemory | ErrorCode::TooBig) => ErrorKind::Exhausted,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => ErrorKind::Corrupt,
        Some(ErrorCode::ConstraintViolation | ErrorCode::ApiMisuse) => ErrorKind::Internal,
        Some(_) => ErrorKind::HostFailed,
        // Not from SQLite's own code: a statement or a column of ours that does not fit.
        None => ErrorKind::Internal,
    }
}
