//! What every disk file needs: removal, and how much space it uses.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hearth_model::capacity::free_bytes;
use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, Kind};
use rustix::fs::IFlags;
use rustix::io::Errno;

/// Of ext2, ext3 and ext4: `EXT4_SUPER_MAGIC` in the kernel's magic.h.
const EXT4_MAGIC: rustix::fs::FsWord = 0xef53;

/// The host refused something to do with a file or directory.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The host's error.
    #[source]
    pub source: io::Error,
}

impl Kind for FileError {
    fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => io_kind(&self.source),
        }
    }
}

/// Space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size, in bytes.
    pub total: u64,
    /// What may still be written without privileges, in bytes.
    pub free: u64,
}

/// Removes a file, a link or a directory with all that is in it; what is not there is removed
/// already. Links are not followed.
///
/// # Errors
/// The host's.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Bytes that a file, or a directory with all that is in it, occupies on its disk. Blocks that are
/// shared by reflink count for each file.
///
/// # Errors
/// The host's; `not_found` if there is nothing at `path`. What vanishes meanwhile counts nothing.
pub fn usage(path: &Path) -> Result<u64, FileError> {
    let failed = |source| FileError { action: "measure", path: path.to_owned(), source };
    let mut bytes = 0;
    let mut dirs = Vec::new();
    let mut count = |at: &Path, dirs: &mut Vec<PathBuf>| -> io::Result<()> {
        let meta = fs::symlink_metadata(at)?;
        // In units of 512 bytes, whatever the file system's block is.
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            dirs.push(at.to_owned());
        }
        Ok(())
    };
    let vanished = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    count(path, &mut dirs).map_err(failed)?;
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if vanished(&error) => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            match entry.and_then(|entry| count(&entry.path(), &mut dirs)) {
                Err(error) if !vanished(&error) => return Err(failed(error)),
                _ => {}
            }
        }
    }
    Ok(bytes)
}

/// Asks an ext4 to put the directories that will be made in `dir` far from each other; other file
/// systems need no asking, and `false` is returned.
///
/// An ext4 does not give out an inode for a minute or more after its file was deleted, and looks at
/// each such one of a group again whenever it makes a file there (`recently_deleted` in the kernel's
/// fs/ext4/ialloc.c). It puts directories next to their siblings, so where many come and go, making
/// one file becomes slow: in one run on a kernel 6.18, four rounds of fifty
/// forks that were deleted and made anew took 4 to 8 ms of the daemon's processor time each, and 2 to
/// 2.6 ms with this.
///
/// # Errors
/// The host's: it may not let its flags be changed.
pub fn spread_directories(dir: &Path) -> Result<bool, FileError> {
    let failed = |error: Errno| FileError { action: "spread what is in", path: dir.to_owned(), source: error.into() };
    let opened = File::open(dir).map_err(|source| FileError { action: "open", path: dir.to_owned(), source })?;
    if rustix::fs::fstatfs(&opened).map_err(failed)?.f_type != EXT4_MAGIC {
        return Ok(false);
    }
    let flags = rustix::fs::ioctl_getflags(&opened).map_err(failed)?;
    if !flags.contains(IFlags::TOPDIR) {
        rustix::fs::ioctl_setflags(&opened, flags | IFlags::TOPDIR).map_err(failed)?;
    }
    Ok(true)
}

/// Space of the file system that `dir` is on.
///
/// # Errors
/// The host's.
pub fn free_space(dir: &Path) -> Result<Space, FileError> {
    let stat = rustix::fs::statvfs(dir).map_err(|error| FileError {
        action: "ask for the space in",
        path: dir.to_owned(),
        source: error.into(),
    })?;
    let free = free_bytes(stat.f_blocks, stat.f_bavail, stat.f_frsize);
    Ok(Space { total: stat.f_blocks.saturating_mul(stat.f_frsize), free })
}
