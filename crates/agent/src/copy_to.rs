//! A copy into the guest: entries and data in, files out.
//!
//! Existing files are written in place, so that hard links, mounts and open descriptors see the
//! new content; existing directories are kept. Nothing is undone when a copy breaks off.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use hearth_agent_proto::{CopyDone, CopyEntry, CopyToStart, Failure, FailureKind, FileKind, ReceiveWindow, ToHost};

use crate::outbox::Outbox;
use crate::stat::{absolute, failure};

pub struct CopyTo {
    channel: u32,
    root: PathBuf,
    open: Option<Open>,
    /// Directories whose time is set at the end, since their entries change it.
    dirs: Vec<(PathBuf, i64)>,
    receive: ReceiveWindow,
    done: CopyDone,
}

struct Open {
    path: PathBuf,
    file: File,
    entry: CopyEntry,
}

impl CopyTo {
    pub fn start(channel: u32, request: &CopyToStart) -> Result<Self, Failure> {
        let root = absolute(&request.path)?;
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).map_err(|error| failure("make directory", parent, &error))?;
        }
        let (open, dirs) = (None, Vec::new());
        Ok(Self { channel, root, open, dirs, receive: ReceiveWindow::default(), done: CopyDone::default() })
    }

    pub fn entry(&mut self, entry: CopyEntry, outbox: &mut Outbox) -> Result<(), Failure> {
        let cost = entry.cost();
        self.receive.received(cost).map_err(|_| invalid("the copy ignores flow control".into()))?;
        if self.open.is_some() {
            return Err(invalid(format!("entry {:?} comes before the end of the one before", entry.path)));
        }
        let path = self.place(&entry.path)?;
        match &entry.kind {
            FileKind::Dir => self.dir(&path, &entry)?,
            FileKind::Symlink { target } => link(&path, target, &entry)?,
            FileKind::File => {
                let file = create(&path).map_err(|error| failure("write", &path, &error))?;
                self.open = Some(Open { path, file, entry });
            }
            FileKind::Other => return Err(invalid(format!("{:?} is no file, directory or link", entry.path))),
        }
        self.done.entries += 1;
        self.consumed(cost, outbox);
        Ok(())
    }

    pub fn data(&mut self, data: &[u8], outbox: &mut Outbox) -> Result<(), Failure> {
        self.receive.received(data.len()).map_err(|_| invalid("the copy ignores flow control".into()))?;
        let Some(open) = &mut self.open else { return Err(invalid("data without a file".into())) };
        open.file.write_all(data).map_err(|error| failure("write", &open.path, &error))?;
        self.done.bytes += data.len() as u64;
        self.consumed(data.len(), outbox);
        Ok(())
    }

    pub fn entry_end(&mut self, outbox: &mut Outbox) -> Result<(), Failure> {
        self.receive.received(0).map_err(|_| invalid("the copy ignores flow control".into()))?;
        self.consumed(0, outbox);
        // Directories and links end with their entry; saying so again does no harm.
        let Some(Open { path, file, entry }) = self.open.take() else { return Ok(()) };
        let finish = || {
            std::os::unix::fs::fchown(&file, Some(entry.uid), Some(entry.gid)).or_else(unprivileged)?;
            file.set_permissions(fs::Permissions::from_mode(entry.mode & 0o7777))?;
            if entry.mtime_s > 0 { file.set_modified(time(entry.mtime_s)) } else { Ok(()) }
        };
        finish().map_err(|error| failure("set attributes of", &path, &error))
    }

    pub fn end(&mut self) -> Result<CopyDone, Failure> {
        if let Some(open) = &self.open {
            return Err(invalid(format!("the copy ends within {}", open.path.display())));
        }
        for (path, mtime_s) in self.dirs.iter().rev() {
            let set = File::open(path).and_then(|dir| dir.set_modified(time(*mtime_s)));
            set.map_err(|error| failure("set time of", path, &error))?;
        }
        Ok(self.done)
    }

    fn dir(&mut self, path: &Path, entry: &CopyEntry) -> Result<(), Failure> {
        let make = || {
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
                other => other?,
            }
            chown(path, Some(entry.uid), Some(entry.gid)).or_else(unprivileged)?;
            fs::set_permissions(path, fs::Permissions::from_mode(entry.mode & 0o7777))
        };
        make().map_err(|error| failure("make directory", path, &error))?;
        if entry.mtime_s > 0 {
            self.dirs.push((path.to_owned(), entry.mtime_s));
        }
        Ok(())
    }

    /// Where an entry goes: below the copy's root, by names only.
    fn place(&self, relative: &str) -> Result<PathBuf, Failure> {
        let path = Path::new(relative);
        let names_only = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !names_only || relative.contains('\0') {
            return Err(invalid(format!("entry {relative:?} leads out of the copy")));
        }
        Ok(if relative.is_empty() { self.root.clone() } else { self.root.join(path) })
    }

    fn consumed(&mut self, bytes: usize, outbox: &mut Outbox) {
        if let Some(grant) = self.receive.consumed(bytes) {
            outbox.send(self.channel, &ToHost::Credit(grant), &[]);
        }
    }
}

/// Opens without waiting for the other end of a pipe, and refuses what is no regular file.
fn create(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn link(path: &Path, target: &str, entry: &CopyEntry) -> Result<(), Failure> {
    let make = || {
        if fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
            fs::remove_file(path)?;
        }
        symlink(target, path)?;
        lchown(path, Some(entry.uid), Some(entry.gid)).or_else(unprivileged)
    };
    make().map_err(|error| failure("make link", path, &error))
}

/// Who is not root keeps its own files.
fn unprivileged(error: io::Error) -> io::Result<()> {
    if rustix::process::getuid().is_root() { Err(error) } else { Ok(()) }
}

fn time(mtime_s: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(mtime_s).unwrap_or(0))
}

fn invalid(text: String) -> Failure {
    Failure { kind: FailureKind::Invalid, text }
}
