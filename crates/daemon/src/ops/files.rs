//! What the verbs do to files in an instance's directory. Each may be repeated.

use std::path::{Path, PathBuf};
use std::{fs, io};

use hearth_model::{ErrorKind, Kind, error::io_kind};
use hearth_snapshot::Bundle;

use crate::error::OpError;
use crate::paths::InstanceDir;
use crate::run::blocking;

/// A file system call failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub(crate) struct FileError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Kind for FileError {
    fn kind(&self) -> ErrorKind {
        io_kind(&self.source)
    }
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> FileError + 'p {
    move |source| FileError { action, path: path.to_owned(), source }
}

/// Makes a directory and those above it.
pub(super) async fn make_dir(dir: PathBuf) -> Result<(), OpError> {
    blocking(move || fs::create_dir_all(&dir).map_err(failed("make directory", &dir))).await
}

/// Hard links each `(from, to)`, in place of what `to` was.
pub(super) async fn replace_links(links: Vec<(PathBuf, PathBuf)>) -> Result<(), OpError> {
    blocking(move || links.iter().try_for_each(|(from, to)| replace_link(from, to))).await
}

/// Where something is already, a link made aside and renamed: `to` is never missing.
fn replace_link(from: &Path, to: &Path) -> Result<(), FileError> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map_err(failed("link", from)),
    }
    let aside = aside_of(to);
    forget(&aside)?;
    fs::hard_link(from, &aside).map_err(failed("link", from))?;
    // Renaming a name over another name of the same file does nothing, and leaves both.
    fs::rename(&aside, to).map_err(failed("put in place", to))?;
    forget(&aside)
}

/// Clones `from` in place of what `to` was.
fn replace_by_clone(from: &Path, to: &Path) -> Result<(), OpError> {
    let aside = aside_of(to);
    hearth_disk::remove(&aside)?;
    hearth_disk::clone_file(from, &aside)?;
    Ok(fs::rename(&aside, to).map_err(failed("put in place", to))?)
}

/// Renames `file` to `before`; done already is success.
pub(super) fn put_aside(file: &Path, before: &Path) -> Result<(), FileError> {
    match fs::rename(file, before) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && before.exists() => Ok(()),
        result => result.map_err(failed("put aside", file)),
    }
}

/// Renames `before` to `file`, if there is one.
pub(crate) fn put_back(before: &Path, file: &Path) -> Result<(), FileError> {
    match fs::rename(before, file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed("put back", file)),
    }
}

/// For each of a bundle's disks of which the guest can only read: it, and its place in an instance.
pub(super) fn read_only_disks(bundle: &Bundle, dir: &InstanceDir) -> Vec<(PathBuf, PathBuf)> {
    disks(bundle, dir, true)
}

/// The same for those that the guest writes to.
pub(super) fn writable_disks(bundle: &Bundle, dir: &InstanceDir) -> Vec<(PathBuf, PathBuf)> {
    disks(bundle, dir, false)
}

fn disks(bundle: &Bundle, dir: &InstanceDir, read_only: bool) -> Vec<(PathBuf, PathBuf)> {
    let disks = bundle.manifest().disks().into_iter().filter(|disk| disk.read_only == read_only);
    disks.map(|disk| (bundle.dir().join(&disk.path), dir.disk(&disk.path))).collect()
}

/// Clones each `(from, to)`, in place of what `to` was.
pub(super) async fn replace_by_clones(clones: Vec<(PathBuf, PathBuf)>) -> Result<(), OpError> {
    blocking(move || clones.iter().try_for_each(|(from, to)| replace_by_clone(from, to))).await
}

/// Where what is to take a file's place is made.
pub(crate) fn aside_of(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// The path, if there is something of that name.
pub(super) fn if_there(path: PathBuf) -> Result<Option<PathBuf>, FileError> {
    let is_there = path.try_exists().map_err(failed("look for", &path))?;
    Ok(is_there.then_some(path))
}

fn forget(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_takes_the_place_of_what_was_there_twice_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").expect("written");
        fs::write(&to, "old").expect("written");
        for _ in 0..2 {
            replace_links(vec![(from.clone(), to.clone())]).await.expect("linked");
            assert_eq!(fs::read_to_string(&to).expect("read"), "new");
            assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2, "nothing is left aside");
        }
    }

    #[test]
    fn what_was_put_aside_comes_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, before) = (dir.path().join("file"), dir.path().join("before"));
        fs::write(&file, "1").expect("written");
        put_aside(&file, &before).expect("put aside");
        put_aside(&file, &before).expect("put aside already");
        fs::write(&file, "2").expect("written");
        put_back(&before, &file).expect("put back");
        put_back(&before, &file).expect("nothing to put back");
        assert_eq!(fs::read_to_string(&file).expect("read"), "1");
    }
}
