//! Out of a guest: what the guest sends is not trusted. No entry is ever written outside the
//! destination: paths are checked, and resolved by the kernel below the destination without
//! following any link.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use hearth_api::client::{Client, CpEvent};
use hearth_api::cp::{CpHeader, CpRequest};
use hearth_model::ErrorKind;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, mkdirat,
    openat, openat2, symlinkat, unlinkat, utimensat,
};

use super::{Copied, GuestPath, Options, is_content, last_name};
use crate::error::CliError;

pub(super) async fn copy(client: &Client, from: &GuestPath, to: &Path, options: Options) -> Result<Copied, CliError> {
    let asked = if is_content(&from.path) { &from.path[..from.path.len() - 1] } else { &from.path };
    let what = match asked.trim_matches('/') {
        // The root has no name: its entries' paths begin with their own.
        "" => What::Root,
        _ if is_content(&from.path) => What::Content,
        _ => What::Whole,
    };
    let request = CpRequest { follow_links: options.follow_links, ..CpRequest::from(asked) };
    let mut entries = client.cp_from(&from.instance, &request).await?;

    let mut copied = Copied::default();
    let mut tree: Option<Tree> = None;
    let mut file: Option<(File, CpHeader)> = None;
    while let Some(event) = entries.next().await? {
        match event {
            CpEvent::Entry(header) => {
                let tree = match &mut tree {
                    Some(tree) => tree,
                    // The first entry is what was asked for.
                    none => none.insert(Tree::begin(to, &header, what, options)?),
                };
                file = tree.add(&header)?.map(|file| (file, header));
                copied.entries += 1;
            }
            CpEvent::Data(data) => {
                let Some((file, header)) = &mut file else {
                    return Err(strange("data that belongs to no file"));
                };
                file.write_all(&data).map_err(|error| CliError::host(format!("write {}", header.path), &error))?;
                copied.bytes += data.len() as u64;
            }
            CpEvent::EntryEnd => {
                if let (Some((file, header)), Some(tree)) = (file.take(), &tree) {
                    tree.complete(&file, &header)?;
                }
            }
        }
    }
    tree.ok_or_else(|| strange("nothing at all"))?.finish()?;
    Ok(copied)
}

fn strange(what: &str) -> CliError {
    CliError::new(ErrorKind::Internal, format!("the guest sent {what}"))
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    /// An entry with all that is in it.
    Whole,
    /// What is in a directory.
    Content,
    /// What is in the root directory.
    Root,
}

/// Where a tree is written.
struct Tree {
    /// The directory that everything is in.
    base: OwnedFd,
    base_path: PathBuf,
    /// What the first entry is called here; `None` if its content goes into the base itself.
    root: Option<PathBuf>,
    what: What,
    options: Options,
    /// Directories, whose times and permissions are set when nothing more goes into them.
    directories: Vec<(PathBuf, CpHeader)>,
}

impl Tree {
    fn begin(to: &Path, first: &CpHeader, what: What, options: Options) -> Result<Self, CliError> {
        let there = std::fs::metadata(to).ok();
        let into = there.as_ref().is_some_and(std::fs::Metadata::is_dir);
        let (content, directory) = (what != What::Whole, first.is_dir || what == What::Root);
        if content && !directory {
            return Err(CliError::new(ErrorKind::Invalid, format!("{} in the guest is not a directory", first.path)));
        }
        if there.is_some() && !into && directory {
            return Err(CliError::new(ErrorKind::Invalid, format!("{} is not a directory", to.display())));
        }
        if there.is_none() && !directory && to.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Err(CliError::new(ErrorKind::NotFound, format!("there is no directory {}", to.display())));
        }
        let (base_path, root) = if content {
            if !into {
                std::fs::create_dir(to).map_err(|error| CliError::host(format!("make {}", to.display()), &error))?;
            }
            (to.to_owned(), None)
        } else if into {
            let name = components(&first.path)?.into_iter().next().ok_or_else(|| outside(&first.path))?;
            (to.to_owned(), Some(name))
        } else {
            let absolute = std::path::absolute(to).map_err(|error| CliError::host("find our directory", &error))?;
            let name = last_name(&absolute).ok_or_else(|| {
                CliError::new(ErrorKind::Invalid, format!("{} is not a name to copy to", to.display()))
            })?;
            (absolute.parent().unwrap_or(Path::new("/")).to_owned(), Some(name.into()))
        };
        let base = openat(CWD, &base_path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| CliError::host(format!("open {}", base_path.display()), &error.into()))?;
        Ok(Self { base, base_path, root, what, options, directories: Vec::new() })
    }

    /// Makes an entry; a file's handle, to write its bytes to.
    fn add(&mut self, header: &CpHeader) -> Result<Option<File>, CliError> {
        let Some(path) = self.place(header)? else {
            return Ok(None);
        };
        let (parent, name) = self.parent(&path)?;
        let failed = |error: rustix::io::Errno| {
            CliError::host(format!("write {}", self.base_path.join(&path).display()), &error.into())
        };
        if header.is_dir {
            match mkdirat(&parent, name.as_path(), Mode::RWXU) {
                // One that is there already is written into, if it is no link.
                Err(rustix::io::Errno::EXIST) => drop(self.open_dir(&path)?),
                made => made.map_err(failed)?,
            }
            self.directories.push((path, header.clone()));
            return Ok(None);
        }
        // What was there is replaced, not written through: it may be a link.
        match unlinkat(&parent, name.as_path(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        if header.is_symlink {
            symlinkat(header.link_target.as_str(), &parent, name.as_path()).map_err(failed)?;
            self.own(&parent, &name, header)?;
            return Ok(None);
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&parent, name.as_path(), flags, Mode::RUSR | Mode::WUSR).map(|file| Some(file.into())).map_err(failed)
    }

    /// A file has all its bytes.
    fn complete(&self, file: &File, header: &CpHeader) -> Result<(), CliError> {
        let failed = |error: std::io::Error| CliError::host(format!("complete {}", header.path), &error);
        if self.options.archive {
            std::os::unix::fs::fchown(file, Some(header.uid), Some(header.gid)).map_err(failed)?;
        }
        fchmod(file, mode(header)).map_err(|error| failed(error.into()))?;
        rustix::fs::futimens(file, &times(header)).map_err(|error| failed(error.into()))
    }

    /// All entries are there: directories get their permissions and times, the innermost first.
    fn finish(self) -> Result<(), CliError> {
        for (path, header) in self.directories.iter().rev() {
            let failed = |error: rustix::io::Errno| {
                CliError::host(format!("complete {}", self.base_path.join(path).display()), &error.into())
            };
            let (parent, name) = self.parent(path)?;
            self.own(&parent, &name, header)?;
            let directory = self.open_dir(path)?;
            fchmod(&directory, mode(header)).map_err(failed)?;
            rustix::fs::futimens(&directory, &times(header)).map_err(failed)?;
        }
        Ok(())
    }

    /// Where an entry goes, below the base; `None` for the base itself.
    fn place(&self, header: &CpHeader) -> Result<Option<PathBuf>, CliError> {
        let mut parts = components(&header.path)?.into_iter();
        if self.what != What::Root {
            // The first component is the name of what was asked for.
            parts.next().ok_or_else(|| outside(&header.path))?;
        }
        let path: PathBuf = self.root.iter().cloned().chain(parts).collect();
        Ok((!path.as_os_str().is_empty()).then_some(path))
    }

    fn parent(&self, path: &Path) -> Result<(OwnedFd, PathBuf), CliError> {
        let name = path.file_name().ok_or_else(|| outside(&path.to_string_lossy()))?.into();
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.open_dir(parent)?,
            _ => self.open_dir(Path::new("."))?,
        };
        Ok((parent, name))
    }

    /// Opens a directory below the base; no link is followed on the way.
    fn open_dir(&self, path: &Path) -> Result<OwnedFd, CliError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(&self.base, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS).map_err(
            |error| {
                let path = self.base_path.join(path);
                if matches!(error, rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) {
                    let message =
                        format!("{} is a link or a file, and a directory was to be written there", path.display());
                    CliError::new(ErrorKind::Invalid, message).hint("copy to another place, or remove it first")
                } else {
                    CliError::host(format!("open {}", path.display()), &error.into())
                }
            },
        )
    }

    /// Gives a directory or link its owner, with `-a`, and a link its times.
    fn own(&self, parent: &OwnedFd, name: &Path, header: &CpHeader) -> Result<(), CliError> {
        let failed = |error: rustix::io::Errno| CliError::host(format!("complete {}", header.path), &error.into());
        if self.options.archive {
            let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        }
        utimensat(parent, name, &times(header), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }
}

/// The names in a relative path that stays where it is.
fn components(path: &str) -> Result<Vec<PathBuf>, CliError> {
    Path::new(path)
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(name) => Ok(PathBuf::from(name)),
            _ => Err(outside(path)),
        })
        .collect()
}

fn outside(path: &str) -> CliError {
    CliError::new(ErrorKind::Corrupt, format!("the guest sent an entry {path:?}, which leads out of the destination"))
        .hint("nothing was written there; the guest may have been tampered with")
}

/// Permissions without set-user-ID and its like: the guest's word does not make programs of root's.
fn mode(header: &CpHeader) -> Mode {
    Mode::from_raw_mode(header.mode & 0o777)
}

fn times(header: &CpHeader) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: header.mtime, tv_nsec: 0 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const PLAIN: Options = Options { archive: false, follow_links: false };

    fn file(path: &str) -> CpHeader {
        CpHeader { path: path.into(), mode: 0o644, ..CpHeader::default() }
    }

    fn dir(path: &str) -> CpHeader {
        CpHeader { is_dir: true, mode: 0o755, ..file(path) }
    }

    fn link(path: &str, target: &str) -> CpHeader {
        CpHeader { is_symlink: true, link_target: target.into(), ..file(path) }
    }

    fn write(to: &Path, entries: &[CpHeader]) -> Result<(), CliError> {
        let mut tree = Tree::begin(to, &entries[0], What::Whole, PLAIN)?;
        for entry in entries {
            if let Some(file) = tree.add(entry)? {
                tree.complete(&file, entry)?;
            }
        }
        tree.finish()
    }

    #[test]
    fn a_tree_arrives_with_its_permissions_and_times() {
        let here = tempfile::tempdir().expect("a directory");
        let locked = CpHeader { mode: 0o555, mtime: 1_000_000, ..dir("a/locked") };
        write(&here.path().join("b"), &[dir("a"), locked, file("a/locked/x"), link("a/l", "locked/x")])
            .expect("writes");
        let meta = std::fs::metadata(here.path().join("b/locked")).expect("is there");
        assert_eq!(meta.permissions().mode() & 0o777, 0o555);
        assert_eq!(std::os::unix::fs::MetadataExt::mtime(&meta), 1_000_000);
        assert!(here.path().join("b/l").exists(), "the link leads to the file");

        let into = here.path().join("b");
        write(&into, &[CpHeader { mode: 0o4755, ..file("tool") }]).expect("writes into what is a directory");
        let mode = std::fs::metadata(into.join("tool")).expect("is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "set-user-ID does not come out of a guest");
    }

    #[test]
    fn a_guest_cannot_write_outside_the_destination() {
        for bad in ["/etc/x", "../x", "a/../../x", ""] {
            let here = tempfile::tempdir().expect("a directory");
            assert!(write(&here.path().join("in"), &[dir("a"), file(bad)]).is_err(), "{bad}");
            assert!(!here.path().join("x").exists());
        }
        // Through a link that it sent before.
        let here = tempfile::tempdir().expect("a directory");
        let outside = here.path().join("outside");
        std::fs::create_dir(&outside).expect("makes");
        let target = outside.to_str().expect("UTF-8");
        assert!(write(&here.path().join("in"), &[dir("a"), link("a/l", target), file("a/l/x")]).is_err());
        assert!(write(&here.path().join("in"), &[dir("a"), link("a/m", target), dir("a/m"), file("a/m/x")]).is_err());
        assert!(!outside.join("x").exists());
        // Over a link that is there: the link is replaced, not what it leads to.
        std::fs::write(outside.join("kept"), "kept").expect("writes");
        std::os::unix::fs::symlink(outside.join("kept"), here.path().join("in/f")).expect("links");
        write(&here.path().join("in"), &[dir("in")]).expect("writes");
        write(&here.path().join("in/f"), &[file("f")]).expect("writes");
        assert_eq!(std::fs::read_to_string(outside.join("kept")).expect("is there"), "kept");
    }
}
