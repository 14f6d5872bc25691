//! A copy out of the guest: a path in, entries and data out, as fast as the host takes them.
//!
//! Depth first, one open file and one open directory per level. Devices, sockets and pipes are
//! left out and counted. A file that vanishes on the way is left out too.

use std::fs::{self, File, ReadDir};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hearth_agent_proto::{CopyDone, CopyEntry, CopyFromStart, Failure, FailureKind, FileKind, SendWindow, ToHost};

use crate::outbox::Outbox;
use crate::stat::{absolute, failure, kind, text};

/// Deeper than any sane tree, and far below what the open directories cost.
const MAX_DEPTH: usize = 128;

pub struct CopyFrom {
    channel: u32,
    follow: bool,
    next: Option<Found>,
    open: Option<(PathBuf, File)>,
    dirs: Vec<Dir>,
    send: SendWindow,
    done: CopyDone,
}

struct Found {
    path: PathBuf,
    relative: String,
}

struct Dir {
    /// Device and inode, to notice a link that leads back up.
    identity: (u64, u64),
    relative: String,
    entries: ReadDir,
}

/// Whether there is more to come.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    More,
    /// Until the host grants credit, or the link takes more.
    Blocked,
    Done(CopyDone),
}

impl CopyFrom {
    pub fn start(channel: u32, request: &CopyFromStart) -> Result<Self, Failure> {
        let path = absolute(&request.path)?;
        let found = if request.follow_links { fs::metadata(&path) } else { fs::symlink_metadata(&path) };
        let found = found.map_err(|error| failure("copy", &path, &error))?;
        if kind(&path, &found)? == FileKind::Other {
            let text = format!("copy {}: it is no file, directory or link", path.display());
            return Err(Failure { kind: FailureKind::Invalid, text });
        }
        Ok(Self {
            channel,
            follow: request.follow_links,
            next: Some(Found { path, relative: String::new() }),
            open: None,
            dirs: Vec::new(),
            send: SendWindow::default(),
            done: CopyDone::default(),
        })
    }

    pub fn grant(&mut self, bytes: u32) {
        self.send.grant(bytes);
    }

    /// Sends the next piece, if it may.
    pub fn produce(&mut self, scratch: &mut [u8], outbox: &mut Outbox) -> Result<Progress, Failure> {
        if !outbox.room() || !self.send.is_open() {
            return Ok(Progress::Blocked);
        }
        if let Some((path, file)) = &mut self.open {
            let bytes = match file.read(scratch) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Progress::More),
                other => other.map_err(|error| failure("read", path, &error))?,
            };
            if bytes == 0 {
                self.open = None;
                self.entry_ends(outbox);
            } else {
                self.send.spend(bytes);
                self.done.bytes += bytes as u64;
                outbox.send(self.channel, &ToHost::Data, &scratch[..bytes]);
            }
            return Ok(Progress::More);
        }
        match self.next_found()? {
            Some(found) => {
                let is_top = found.relative.is_empty();
                match self.announce(found, outbox) {
                    Err(failure) if failure.kind == FailureKind::NotFound && !is_top => Ok(Progress::More),
                    Err(failure) => Err(failure),
                    Ok(()) => Ok(Progress::More),
                }
            }
            None => Ok(Progress::Done(self.done)),
        }
    }

    fn next_found(&mut self) -> Result<Option<Found>, Failure> {
        if let Some(top) = self.next.take() {
            return Ok(Some(top));
        }
        while let Some(dir) = self.dirs.last_mut() {
            match dir.entries.next() {
                None => drop(self.dirs.pop()),
                Some(Err(error)) => return Err(failure("list", Path::new(&dir.relative), &error)),
                Some(Ok(entry)) => {
                    let name = text(&entry.file_name())?;
                    let relative = if dir.relative.is_empty() { name } else { format!("{}/{name}", dir.relative) };
                    return Ok(Some(Found { path: entry.path(), relative }));
                }
            }
        }
        Ok(None)
    }

    fn announce(&mut self, Found { path, relative }: Found, outbox: &mut Outbox) -> Result<(), Failure> {
        let link = fs::symlink_metadata(&path).map_err(|error| failure("copy", &path, &error))?;
        // A link that leads nowhere is copied as a link even when links are followed.
        let found = if self.follow { fs::metadata(&path).unwrap_or(link) } else { link };
        let kind = kind(&path, &found)?;
        let is_dir = kind == FileKind::Dir;
        match kind {
            FileKind::Other => {
                self.done.skipped += 1;
                return Ok(());
            }
            FileKind::File => {
                let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
                let file = File::options().read(true).custom_flags(flags).open(&path);
                self.open = Some((path.clone(), file.map_err(|error| failure("read", &path, &error))?));
            }
            FileKind::Dir => self.enter(&path, &relative, (found.dev(), found.ino()))?,
            FileKind::Symlink { .. } => {}
        }
        let entry = CopyEntry {
            path: relative,
            kind,
            mode: found.mode() & 0o7777,
            size: if is_dir { 0 } else { found.size() },
            mtime_s: found.mtime(),
            uid: found.uid(),
            gid: found.gid(),
        };
        self.send.spend(entry.cost());
        self.done.entries += 1;
        outbox.send(self.channel, &ToHost::Entry(entry), &[]);
        if self.open.is_none() {
            self.entry_ends(outbox);
        }
        Ok(())
    }

    fn entry_ends(&mut self, outbox: &mut Outbox) {
        self.send.spend(0);
        outbox.send(self.channel, &ToHost::EntryEnd, &[]);
    }

    fn enter(&mut self, path: &Path, relative: &str, identity: (u64, u64)) -> Result<(), Failure> {
        if self.dirs.len() >= MAX_DEPTH || self.dirs.iter().any(|dir| dir.identity == identity) {
            let text = format!("copy {}: links lead back to a directory above", path.display());
            return Err(Failure { kind: FailureKind::Invalid, text });
        }
        let entries = fs::read_dir(path).map_err(|error| failure("list", path, &error))?;
        self.dirs.push(Dir { identity, relative: relative.to_owned(), entries });
        Ok(())
    }
}
