//! Files of the guest: what one is, and copying them in and out.

use serde::{Deserialize, Serialize};

/// Asks what is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatRequest {
    /// Absolute, in the guest.
    pub path: String,
    /// Whether to look behind a symbolic link at its end.
    pub follow: bool,
}

/// What sort of file it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points, as written in it.
        target: String,
    },
    /// A device, socket or pipe.
    Other,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// What sort of file.
    pub kind: FileKind,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Last change, in seconds since 1970.
    pub mtime_s: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Begins a copy into the guest. Its entries follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyToStart {
    /// Where the entries' paths begin: absolute, in the guest. Missing directories above are made.
    pub path: String,
}

/// Begins a copy out of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyFromStart {
    /// Absolute, in the guest.
    pub path: String,
    /// Whether to copy what symbolic links point to, rather than the links.
    pub follow_links: bool,
}

/// One file of a copy; a file's data follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyEntry {
    /// Below the copy's path, without `.` or `..`; empty for the copy's path itself.
    pub path: String,
    /// What sort of file; never [`FileKind::Other`].
    pub kind: FileKind,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Bytes that are expected; the data that follows decides.
    pub size: u64,
    /// Last change, in seconds since 1970; 0 is now, on the way in.
    pub mtime_s: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl CopyEntry {
    /// Its contents as the channel's window counts them, in bytes.
    #[must_use]
    pub fn cost(&self) -> usize {
        let target = if let FileKind::Symlink { target } = &self.kind { target.len() } else { 0 };
        self.path.len() + target
    }
}

/// What a copy did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyDone {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// Devices, sockets and pipes that were left out.
    pub skipped: u64,
}
