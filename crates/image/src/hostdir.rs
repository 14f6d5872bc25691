//! A directory of the host as a root file system.
//!
//! In: the directory. Out: its entries in the tree, its contents in the data area. Walks by file
//! descriptors and never follows a symbolic link, so a tree that somebody changes meanwhile cannot
//! bring in files from outside. Stays on one file system (a mounted /proc is no content). Sockets
//! are left out.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use crate::error::Problem;
use crate::layer::{Target, symlink, xattrs};
use crate::limits::Budget;
use crate::tarball::Sink;
use crate::tree::{Body, Meta};

/// Reads the whole directory.
pub(crate) fn read(
    root: &Path,
    target: &mut Target<'_>,
    budget: &mut Budget<'_>,
    report: &dyn Fn(u64),
) -> Result<(), Problem> {
    let failed = |source: rustix::io::Errno| read_problem(root, source.into());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&fd).map_err(failed)?;
    let mut walk = Walk { root, device: stat.st_dev, links: HashMap::new(), target, budget, report, bytes: 0 };
    let meta = walk.meta(&stat, Path::new(&format!("/proc/self/fd/{}/.", fd.as_raw_fd())), root)?;
    walk.put(&[], meta, Body::empty_dir(), root)?;
    walk.dir(fd, &mut Vec::new())
}

struct Walk<'w, 't, 'b, 'l> {
    root: &'w Path,
    device: u64,
    /// Files with several names: the first of them.
    links: HashMap<u64, Vec<Vec<u8>>>,
    target: &'w mut Target<'t>,
    budget: &'b mut Budget<'l>,
    report: &'w dyn Fn(u64),
    bytes: u64,
}

impl Walk<'_, '_, '_, '_> {
    /// Depth is bounded by the limit on paths' length.
    fn dir(&mut self, fd: OwnedFd, at: &mut Vec<Vec<u8>>) -> Result<(), Problem> {
        let here = self.path(at);
        let failed = |source: rustix::io::Errno| read_problem(&here, source.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&fd).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // The order of names, not of the directory: contents lie in the image in this order.
        names.sort();
        for name in names {
            at.push(name.as_bytes().to_vec());
            self.entry(&fd, &name, at)?;
            at.pop();
        }
        Ok(())
    }

    fn entry(&mut self, parent: &OwnedFd, name: &CStr, at: &mut Vec<Vec<u8>>) -> Result<(), Problem> {
        let path = self.path(at);
        let failed = |source: rustix::io::Errno| read_problem(&path, source.into());
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let len: usize = at.iter().map(|part| part.len() + 1).sum();
        self.budget.entry(len)?;
        if len > self.budget.limits.max_path_len {
            let problem = format!("has a path of {len} bytes; at most {} are allowed", self.budget.limits.max_path_len);
            return Err(refused(&path, problem));
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Socket {
            return Ok(());
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let first: Vec<&[u8]> = first.iter().map(Vec::as_slice).collect();
                let own: Vec<&[u8]> = at.iter().map(Vec::as_slice).collect();
                return self.target.tree.link(&own, &first).map_err(|e| refused(&path, e.to_string()));
            }
            self.links.insert(stat.st_ino, at.clone());
        }
        let mut by_fd = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        by_fd.push(OsStr::from_bytes(name.to_bytes()));
        let meta = self.meta(&stat, &by_fd, &path)?;
        let open = |flags| rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let body = match kind {
            FileType::Directory => {
                self.put(at, meta, Body::empty_dir(), &path)?;
                if stat.st_dev != self.device {
                    return Ok(());
                }
                let fd = open(OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
                return self.dir(fd, at);
            }
            FileType::RegularFile => {
                let file = File::from(open(OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?);
                self.content(file, &stat, &path)?
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(failed)?;
                symlink(target.as_bytes()).map_err(|problem| refused(&path, problem.to_owned()))?
            }
            FileType::CharacterDevice => Body::Char(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            FileType::BlockDevice => Body::Block(rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            FileType::Fifo => Body::Fifo,
            FileType::Socket | FileType::Unknown => return Ok(()),
        };
        self.put(at, meta, body, &path)
    }

    fn content(&mut self, file: File, stat: &Stat, path: &Path) -> Result<Body, Problem> {
        let len = u64::try_from(stat.st_size).unwrap_or(0);
        self.budget.expanded(len)?;
        let write = |source| Problem::Write { path: self.target.path.to_owned(), source };
        let mut writer = self.target.data.begin();
        let mut input = file.take(len);
        let mut buffer = vec![0; 128 << 10];
        let mut seen = 0;
        loop {
            let n = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_problem(path, error)),
            };
            writer.data(&buffer[..n]).map_err(write)?;
            seen += n as u64;
        }
        if seen != len {
            return Err(Problem::Changed { path: path.to_owned() });
        }
        let content = writer.finish().map_err(write)?;
        self.bytes += len;
        (self.report)(self.bytes);
        Ok(Body::File(content))
    }

    fn put(&mut self, at: &[Vec<u8>], meta: Meta, body: Body, path: &Path) -> Result<(), Problem> {
        let at: Vec<&[u8]> = at.iter().map(Vec::as_slice).collect();
        self.target.tree.put(&at, meta, body).map_err(|e| refused(path, e.to_string()))
    }

    /// `by_fd` names the file through its parent's descriptor, so that only the last part can be a
    /// symbolic link, which is not followed.
    fn meta(&mut self, stat: &Stat, by_fd: &Path, path: &Path) -> Result<Meta, Problem> {
        let found = read_xattrs(by_fd).map_err(|e| read_problem(path, e.into()))?;
        let found = found.iter().map(|(name, value)| (&name[..], &value[..]));
        Ok(Meta {
            mode: u16::try_from(stat.st_mode & 0o7777).unwrap_or(0),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            xattrs: xattrs(found).map_err(|problem| refused(path, problem))?,
        })
    }

    fn path(&self, at: &[Vec<u8>]) -> PathBuf {
        let mut path = self.root.to_owned();
        path.extend(at.iter().map(|part| OsStr::from_bytes(part)));
        path
    }
}

/// All extended attributes; none where the file system has no such thing.
fn read_xattrs(path: &Path) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut names[..]) {
        Ok(len) => len,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    let mut value = Vec::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        value.resize(64 << 10, 0);
        match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(len) => all.push((name.to_vec(), value[..len].to_vec())),
            // Removed meanwhile, or only listed.
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn read_problem(path: &Path, source: io::Error) -> Problem {
    Problem::Read { what: path.display().to_string(), source }
}

fn refused(path: &Path, problem: String) -> Problem {
    Problem::Entry { layer: "the directory".into(), entry: path.display().to_string(), problem }
}
