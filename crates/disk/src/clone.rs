//! Copies of files that cost as little as the file system allows.
//!
//! In: a source that nobody writes meanwhile. Out: a new file of the same length, content and
//! holes, and how it was made. On failure no file is left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, Kind};
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::files::FileError;

/// How a clone came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloneHow {
    /// The file system shares the blocks.
    Reflink,
    /// The data was copied, the holes were not.
    Sparse {
        /// How many bytes.
        bytes: u64,
    },
}

/// How a further name came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    /// Both names are one file.
    Hard,
    /// Another file, because the two places cannot share one.
    Cloned(CloneHow),
}

/// A file could not be cloned or linked; the target is not there.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// There is something at the target.
    #[error("clone {} to {}: the target exists", from.display(), to.display())]
    Exists {
        /// The source.
        from: PathBuf,
        /// The target, left as it is.
        to: PathBuf,
    },
    /// There is no source.
    #[error("clone {}: there is no such file", from.display())]
    Absent {
        /// The source.
        from: PathBuf,
    },
    /// The source is a directory, a device or a pipe.
    #[error("clone {}: it is not a regular file", from.display())]
    NotAFile {
        /// The source.
        from: PathBuf,
    },
    /// The host failed.
    #[error("clone {} to {}", from.display(), to.display())]
    Host {
        /// The source.
        from: PathBuf,
        /// The target.
        to: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl Kind for CloneError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Exists { .. } => ErrorKind::AlreadyExists,
            Self::Absent { .. } => ErrorKind::NotFound,
            Self::NotAFile { .. } => ErrorKind::Invalid,
            Self::Host { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        (self.kind() == ErrorKind::Exhausted).then(|| {
            "free space in the data directory, or put it on XFS or btrfs, where clones share their blocks".into()
        })
    }
}

/// Clones `from` to `to`, which must not exist. The clone has the source's permission bits.
///
/// # Errors
/// See [`CloneError`]; `exhausted` for a full disk. Nothing is left at `to`.
pub fn clone_file(from: &Path, to: &Path) -> Result<CloneHow, CloneError> {
    let host = |source| CloneError::Host { from: from.to_owned(), to: to.to_owned(), source };
    let source = open_source(from, to)?;
    let mode = source.metadata().map_err(host)?.mode() & 0o777;
    let target = match OpenOptions::new().write(true).create_new(true).mode(mode).open(to) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CloneError::Exists { from: from.to_owned(), to: to.to_owned() });
        }
        Err(error) => return Err(host(error)),
    };
    fill(source, target, mode).map_err(|error| {
        // Ours alone: it was made a moment ago. The first error is the one to tell.
        drop(fs::remove_file(to));
        host(error)
    })
}

/// A further name for a file; a clone where the names lie on different file systems, or where hard
/// links are not to be had.
///
/// # Errors
/// As [`clone_file`].
pub fn link(from: &Path, to: &Path) -> Result<Linked, CloneError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(Linked::Hard),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(CloneError::Exists { from: from.to_owned(), to: to.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => {
            Err(CloneError::Absent { from: from.to_owned() })
        }
        Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::XDEV | Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP) => {
                clone_file(from, to).map(Linked::Cloned)
            }
            _ => Err(CloneError::Host { from: from.to_owned(), to: to.to_owned(), source: error }),
        },
    }
}

/// Whether files in `dir` can share blocks: tried, with two small files that are gone afterwards.
///
/// # Errors
/// The files cannot be made.
pub fn reflink_supported(dir: &Path) -> Result<bool, FileError> {
    let failed = |source| FileError { action: "try reflinks in", path: dir.to_owned(), source };
    let mut source = tempfile::tempfile_in(dir).map_err(failed)?;
    source.write_all(&[1; 4096]).map_err(failed)?;
    let target = tempfile::tempfile_in(dir).map_err(failed)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(true),
        Err(error) if cannot_share(error) => Ok(false),
        Err(error) => Err(failed(error.into())),
    }
}

fn open_source(from: &Path, to: &Path) -> Result<File, CloneError> {
    let host = |source| CloneError::Host { from: from.to_owned(), to: to.to_owned(), source };
    match fs::metadata(from) {
        Ok(meta) if meta.is_file() => File::open(from).map_err(host),
        Ok(_) => Err(CloneError::NotAFile { from: from.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CloneError::Absent { from: from.to_owned() }),
        Err(error) => Err(host(error)),
    }
}

fn fill(source: File, target: File, mode: u32) -> io::Result<CloneHow> {
    // The mask of the process has nothing to say here.
    rustix::fs::fchmod(&target, rustix::fs::Mode::from_raw_mode(mode))?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(CloneHow::Reflink),
        Err(error) if cannot_share(error) => copy_data(source, target).map(|bytes| CloneHow::Sparse { bytes }),
        Err(error) => Err(error.into()),
    }
}

/// "Not on this file system", in the words of different ones.
fn cannot_share(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS)
}

/// Copies what is not a hole; how much that was.
fn copy_data(mut source: File, mut target: File) -> io::Result<u64> {
    let len = source.metadata()?.len();
    target.set_len(len)?;
    let (mut at, mut copied) = (0, 0);
    while at < len {
        let data = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // A file system that knows no holes.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(&source, SeekFrom::Hole(data)) {
            Ok(end) => end.min(len),
            Err(Errno::INVAL) => len,
            Err(error) => return Err(error.into()),
        };
        copy_range(&mut source, &mut target, data, end)?;
        copied += end - data;
        at = end;
    }
    Ok(copied)
}

fn copy_range(source: &mut File, target: &mut File, from: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (from, from);
    while read_at < end {
        let want = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        // Both offsets are moved by the kernel.
        match rustix::fs::copy_file_range(&*source, Some(&mut read_at), &*target, Some(&mut write_at), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                source.seek(io::SeekFrom::Start(read_at))?;
                target.seek(io::SeekFrom::Start(read_at))?;
                let left = end - read_at;
                let done = io::copy(&mut (&*source).take(left), target)?;
                return if done == left { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
