//! The merged tree: what the layers so far make of the root file system.
//!
//! In: entries of layers in their order, with normalised paths. Out: inodes and directories.
//! Pure: contents are references. Every path is resolved *in this tree*, never on the host.
//!
//! Whiteouts hide what lower layers brought, never what the same layer did, wherever in the layer
//! they stand; hence every directory entry remembers the layer that last named it.

use std::collections::BTreeMap;

/// Number of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Ino(u32);

impl Ino {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

pub(crate) const ROOT: Ino = Ino(0);

/// How deep directories may nest: deeper ones cannot be named by any path in the guest.
const MAX_DEPTH: usize = 1024;
/// Linux's own limit.
const MAX_LINKS: usize = 40;

/// Full name → value.
pub(crate) type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Dir(BTreeMap<Box<[u8]>, Dirent>),
    File(Content),
    Symlink(Box<[u8]>),
    /// Major, minor.
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl Body {
    pub(crate) fn empty_dir() -> Self {
        Self::Dir(BTreeMap::new())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dirent {
    pub(crate) ino: Ino,
    layer: u32,
}

/// Where a file's content lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) len: u64,
    pub(crate) place: Place,
    /// Known where the content decides the image's digest.
    pub(crate) sha256: Option<Box<[u8; 32]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Memory(Box<[u8]>),
    /// In the image file, from this block on.
    Blocks(u32),
}

#[derive(Debug, Clone)]
pub(crate) struct Inode {
    pub(crate) meta: Meta,
    pub(crate) body: Body,
}

/// Why an entry cannot be applied; `Display` is the end of a sentence about the entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("goes through the symbolic link {name:?} -> {target:?}, which leads outside the image")]
    LeadsOutside { name: String, target: String },
    #[error("goes through more than {MAX_LINKS} symbolic links")]
    TooManyLinks,
    #[error("goes through {0:?}, which is not a directory")]
    NotADirectory(String),
    #[error("lies more than {MAX_DEPTH} directories deep")]
    TooDeep,
    #[error("is a hard link to {0:?}, which does not exist")]
    NoTarget(String),
    #[error("is a hard link to the directory {0:?}")]
    LinkToDirectory(String),
    #[error("is the root of the image, but not a directory")]
    RootNotADirectory,
    #[error("would be one inode too many")]
    TooManyInodes,
}

/// The merged tree.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    layer: u32,
}

impl Tree {
    /// An empty root directory (0755, root's).
    pub(crate) fn new() -> Self {
        Self { inodes: vec![implied_dir()], layer: 0 }
    }

    /// What follows belongs to the next layer.
    pub(crate) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    pub(crate) fn inode(&self, ino: Ino) -> &Inode {
        &self.inodes[ino.index()]
    }

    /// All inodes ever made; some are no longer reachable.
    pub(crate) fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// An entry: replaces what is there, but for a directory over a directory, which only gets the
    /// new metadata. `path` has no empty, `.` or `..` components; the root's is empty.
    pub(crate) fn put(&mut self, path: &[&[u8]], meta: Meta, body: Body) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else {
            if !matches!(body, Body::Dir(_)) {
                return Err(TreeError::RootNotADirectory);
            }
            self.inodes[ROOT.index()].meta = meta;
            return Ok(());
        };
        let parent = self.make_parents(parents)?;
        if matches!(body, Body::Dir(_))
            && let Some(Dirent { ino, .. }) = self.child(parent, name)
            && matches!(self.inode(ino).body, Body::Dir(_))
        {
            self.inodes[ino.index()].meta = meta;
            return self.enter(parent, name, ino);
        }
        let ino = self.add(Inode { meta, body })?;
        self.enter(parent, name, ino)
    }

    /// A further name for what `target` names.
    pub(crate) fn link(&mut self, path: &[&[u8]], target: &[&[u8]]) -> Result<(), TreeError> {
        let shown = || text(&target.join(&b'/'));
        let Some((name, parents)) = path.split_last() else { return Err(TreeError::RootNotADirectory) };
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(TreeError::LinkToDirectory("/".into()));
        };
        let found = self.resolve(target_parents, false)?.and_then(|dir| self.child(dir, target_name));
        let Some(Dirent { ino, .. }) = found else { return Err(TreeError::NoTarget(shown())) };
        if matches!(self.inode(ino).body, Body::Dir(_)) {
            return Err(TreeError::LinkToDirectory(shown()));
        }
        let parent = self.make_parents(parents)?;
        self.enter(parent, name, ino)
    }

    /// Hides what lower layers have at `path`.
    pub(crate) fn whiteout(&mut self, path: &[&[u8]]) -> Result<(), TreeError> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let Some(parent) = self.resolve(parents, false)? else { return Ok(()) };
        if let Some(found) = self.child(parent, name)
            && !self.prune(found)
            && let Body::Dir(children) = &mut self.inodes[parent.index()].body
        {
            children.remove(*name);
        }
        Ok(())
    }

    /// Hides what lower layers have *in* the directory `path`, which exists afterwards.
    pub(crate) fn opaque(&mut self, path: &[&[u8]]) -> Result<(), TreeError> {
        let dir = self.make_parents(path)?;
        self.prune_children(dir);
        // Who names something in a directory names the directory.
        if let Some((name, parents)) = path.split_last() {
            let parent = self.make_parents(parents)?;
            if self.child(parent, name).is_some_and(|found| found.ino == dir) {
                self.enter(parent, name, dir)?;
            }
        }
        Ok(())
    }

    /// Drops what is not this layer's; whether the entry itself stays. Depth is bounded by
    /// [`MAX_DEPTH`], so recursion is safe.
    fn prune(&mut self, entry: Dirent) -> bool {
        let stays_below = self.prune_children(entry.ino);
        stays_below || entry.layer == self.layer
    }

    /// Whether any child stays.
    fn prune_children(&mut self, dir: Ino) -> bool {
        let Body::Dir(children) = &mut self.inodes[dir.index()].body else { return false };
        let mut children = std::mem::take(children);
        children.retain(|_, child| self.prune(*child));
        let any = !children.is_empty();
        self.inodes[dir.index()].body = Body::Dir(children);
        any
    }

    fn child(&self, dir: Ino, name: &[u8]) -> Option<Dirent> {
        match &self.inode(dir).body {
            Body::Dir(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn add(&mut self, inode: Inode) -> Result<Ino, TreeError> {
        let ino = u32::try_from(self.inodes.len()).map_err(|_| TreeError::TooManyInodes)?;
        self.inodes.push(inode);
        Ok(Ino(ino))
    }

    fn enter(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<(), TreeError> {
        let layer = self.layer;
        let Body::Dir(children) = &mut self.inodes[dir.index()].body else {
            return Err(TreeError::NotADirectory(text(name)));
        };
        children.insert(name.into(), Dirent { ino, layer });
        Ok(())
    }

    fn make_parents(&mut self, path: &[&[u8]]) -> Result<Ino, TreeError> {
        let found = self.resolve(path, true)?;
        // With `make`, resolve has made what was missing.
        found.ok_or(TreeError::TooDeep)
    }

    /// The directory that `path` names, through symbolic links as the guest would follow them.
    /// A link that is absolute or climbs over the root is refused: no builder makes layers that
    /// write through one, and those who do mean the host's files.
    fn resolve(&mut self, path: &[&[u8]], make: bool) -> Result<Option<Ino>, TreeError> {
        let mut at = vec![ROOT];
        let mut links = 0;
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|part| part.to_vec()).collect();
        let mut last_link = (String::new(), String::new());
        while let Some(name) = todo.pop() {
            let outside = || TreeError::LeadsOutside { name: last_link.0.clone(), target: last_link.1.clone() };
            if name == b".." {
                at.pop();
                if at.is_empty() {
                    return Err(outside());
                }
                continue;
            }
            let Some(dir) = at.last().copied() else { return Err(outside()) };
            if at.len() >= MAX_DEPTH {
                return Err(TreeError::TooDeep);
            }
            let next = match self.child(dir, &name) {
                None if !make => return Ok(None),
                None => self.make_dir(dir, &name)?,
                Some(Dirent { ino, layer }) => match &self.inode(ino).body {
                    Body::Dir(_) => ino,
                    Body::Symlink(target) => {
                        links += 1;
                        last_link = (text(&name), text(target));
                        if target.starts_with(b"/") {
                            let (name, target) = last_link;
                            return Err(TreeError::LeadsOutside { name, target });
                        }
                        if links > MAX_LINKS {
                            return Err(TreeError::TooManyLinks);
                        }
                        let parts = target.split(|b| *b == b'/').rev().filter(|part| !matches!(*part, b"" | b"."));
                        todo.extend(parts.map(<[u8]>::to_vec));
                        continue;
                    }
                    _ if !make => return Ok(None),
                    // A lower layer's file gives way, as it does on an overlay mount.
                    _ if layer < self.layer => self.make_dir(dir, &name)?,
                    _ => return Err(TreeError::NotADirectory(text(&name))),
                },
            };
            at.push(next);
        }
        Ok(at.last().copied())
    }

    fn make_dir(&mut self, parent: Ino, name: &[u8]) -> Result<Ino, TreeError> {
        let ino = self.add(implied_dir())?;
        self.enter(parent, name, ino)?;
        Ok(ino)
    }
}

/// A directory that no entry describes.
fn implied_dir() -> Inode {
    Inode { meta: Meta { mode: 0o755, ..Meta::default() }, body: Body::empty_dir() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
