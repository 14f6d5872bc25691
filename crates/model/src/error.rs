//! The closed list of error kinds: the wire's `code`, the metric label and the exit code.
//!
//! A new kind is added only when a *program* must act differently on it. HTTP status and exit
//! code are decided here and nowhere else.

use std::error::Error;
use std::fmt;

/// What sort of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request cannot mean anything.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The instance is in a state from which this operation does not lead on.
    WrongState,
    /// Another operation runs on it.
    Busy,
    /// This backend or host cannot do it.
    Unsupported,
    /// The snapshot does not fit here (VMM version, CPU, format, device set).
    Incompatible,
    /// No memory, disk, address or other finite thing is left.
    Exhausted,
    /// The agent did not answer in time.
    GuestUnresponsive,
    /// Something in the guest failed: a hook of its image, or what its agent was asked to do.
    GuestFailed,
    /// The VMM refused or died.
    VmmFailed,
    /// A kernel or file system call failed.
    HostFailed,
    /// Stored data does not check.
    Corrupt,
    /// Shutting down, or told to stop.
    Cancelled,
    /// The caller has not shown who it is.
    Unauthorized,
    /// A bug of ours.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the documentation.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::NotFound,
        Self::AlreadyExists,
        Self::WrongState,
        Self::Busy,
        Self::Unsupported,
        Self::Incompatible,
        Self::Exhausted,
        Self::GuestUnresponsive,
        Self::GuestFailed,
        Self::VmmFailed,
        Self::HostFailed,
        Self::Corrupt,
        Self::Cancelled,
        Self::Unauthorized,
        Self::Internal,
    ];

    /// The name on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::WrongState => "wrong_state",
            Self::Busy => "busy",
            Self::Unsupported => "unsupported",
            Self::Incompatible => "incompatible",
            Self::Exhausted => "exhausted",
            Self::GuestUnresponsive => "guest_unresponsive",
            Self::GuestFailed => "guest_failed",
            Self::VmmFailed => "vmm_failed",
            Self::HostFailed => "host_failed",
            Self::Corrupt => "corrupt",
            Self::Cancelled => "cancelled",
            Self::Unauthorized => "unauthorized",
            Self::Internal => "internal",
        }
    }

    /// The kind of that name; `None` for a name this version does not know.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// HTTP status code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::WrongState | Self::Busy => 409,
            Self::Unsupported | Self::Incompatible => 422,
            Self::Exhausted => 507,
            Self::GuestUnresponsive => 504,
            Self::VmmFailed | Self::GuestFailed => 502,
            Self::Cancelled => 503,
            Self::HostFailed | Self::Corrupt | Self::Internal => 500,
        }
    }

    /// Exit code of the command line.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::AlreadyExists => 4,
            Self::WrongState => 5,
            Self::Busy => 6,
            Self::Unsupported => 7,
            Self::Incompatible => 8,
            Self::Exhausted => 9,
            Self::GuestUnresponsive => 10,
            Self::VmmFailed => 11,
            Self::HostFailed => 12,
            Self::Corrupt => 13,
            Self::Cancelled => 14,
            Self::Unauthorized => 15,
            Self::GuestFailed => 16,
            Self::Internal => 70,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Implemented by every adapter's error: which kind it is, and what the user can do.
///
/// `Display` says what was tried on what; the cause is in `source()` and is not repeated.
pub trait Kind: Error + Send + Sync + 'static {
    /// Which kind this is.
    fn kind(&self) -> ErrorKind;

    /// What to do about it, as one sentence to a person.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// The kind of an I/O error that nothing more is known of: a full disk or table (of memory, of open
/// files) is `exhausted`, all else is the host's failure.
#[must_use]
pub fn io_kind(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Io;
    // Of open files, of this process and of the host. The standard library has no names for these.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match error.kind() {
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory => ErrorKind::Exhausted,
        _ if matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) => ErrorKind::Exhausted,
        _ => ErrorKind::HostFailed,
    }
}

/// The whole chain on one line: `outer: cause: cause of the cause`.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_distinct_and_found_again() {
        let names: BTreeSet<_> = ErrorKind::ALL.iter().map(|k| k.as_str()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_name(kind.as_str()), Some(kind));
            assert_eq!(serde_json::to_value(kind).expect("a name"), kind.as_str());
        }
        assert_eq!(ErrorKind::from_name("no_such_kind"), None);
    }

    #[test]
    fn a_full_table_of_files_is_exhausted_like_a_full_disk() {
        for (errno, kind) in [
            (28, ErrorKind::Exhausted),
            (23, ErrorKind::Exhausted),
            (24, ErrorKind::Exhausted),
            (12, ErrorKind::Exhausted),
            (5, ErrorKind::HostFailed),
        ] {
            assert_eq!(io_kind(&std::io::Error::from_raw_os_error(errno)), kind, "{errno}");
        }
    }

    #[test]
    fn exit_codes_are_distinct() {
        let codes: BTreeSet<_> = ErrorKind::ALL.iter().map(|k| k.exit_code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }
}
