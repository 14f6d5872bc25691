//! Unix sockets in an instance's directory, however long that directory's path is.
//!
//! A socket's address holds 107 bytes of path; so both ends go through `/proc/self/fd`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;

/// Listens at `dir/name`; what was there before is removed.
pub(crate) fn listen(dir: &Path, name: &str) -> io::Result<UnixListener> {
    remove(&dir.join(name))?;
    let (_open, path) = short(dir, name)?;
    UnixListener::bind(path)
}

/// Connects to `dir/name`.
pub(crate) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let (_open, path) = short(dir, name)?;
    UnixStream::connect(path).await
}

/// Removes a socket; one that is not there is removed already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A short path, good while the file lives.
fn short(dir: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let open = File::open(dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", open.as_raw_fd()));
    Ok((open, path))
}
