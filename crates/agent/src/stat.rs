//! What is at a path of the guest, and how failures of the file system are told to the host.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hearth_agent_proto::{Failure, FailureKind, FileKind, PathStat, StatRequest};

/// Looks at a path.
pub fn stat(request: &StatRequest) -> Result<PathStat, Failure> {
    let path = absolute(&request.path)?;
    let found = if request.follow { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
    let found = found.map_err(|error| failure("look at", &path, &error))?;
    Ok(PathStat {
        kind: kind(&path, &found)?,
        mode: found.mode() & 0o7777,
        size: found.size(),
        mtime_s: found.mtime(),
        uid: found.uid(),
        gid: found.gid(),
    })
}

/// A path of a request: from the root, wherever the agent is.
pub fn absolute(path: &str) -> Result<PathBuf, Failure> {
    if path.is_empty() || path.contains('\0') {
        return Err(Failure { kind: FailureKind::Invalid, text: format!("not a path: {path:?}") });
    }
    Ok(Path::new("/").join(path))
}

/// What sort of file it is.
pub fn kind(path: &Path, found: &Metadata) -> Result<FileKind, Failure> {
    Ok(match found.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Dir,
        kind if kind.is_symlink() => {
            let target = fs::read_link(path).map_err(|error| failure("read link", path, &error))?;
            FileKind::Symlink { target: text(target.as_os_str())? }
        }
        _ => FileKind::Other,
    })
}

/// A file's name as the protocol carries it.
pub fn text(name: &std::ffi::OsStr) -> Result<String, Failure> {
    name.to_str().map(str::to_owned).ok_or_else(|| Failure {
        kind: FailureKind::Invalid,
        text: format!("file name is not UTF-8: {}", name.display()),
    })
}

/// A failed call, as the host is told.
pub fn failure(tried: &str, path: &Path, error: &io::Error) -> Failure {
    use io::ErrorKind as Io;
    let kind = match error.kind() {
        Io::NotFound | Io::NotADirectory => FailureKind::NotFound,
        Io::PermissionDenied | Io::ReadOnlyFilesystem | Io::ExecutableFileBusy => FailureKind::Permission,
        Io::InvalidInput | Io::InvalidFilename | Io::IsADirectory | Io::AlreadyExists => FailureKind::Invalid,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge | Io::OutOfMemory => FailureKind::Exhausted,
        _ => FailureKind::Failed,
    };
    Failure { kind, text: format!("{tried} {}: {error}", path.display()) }
}
