//! Where everything of the metadata goes, before any of it is written.
//!
//! In: the tree and the first free block. Out: for each reachable inode its place in the inode
//! area, its block for what does not fit beside it, link counts and parents.

use std::collections::BTreeMap;
use std::io;

use super::data::too_large;
use super::{BLOCK, INLINE_MAX, blocks};
use crate::tree::{Body, Dirent, Ino, Inode, Meta, Place, ROOT, Tree};

/// Bytes of an extended inode; the compact one has no mtime.
pub(super) const INODE: u64 = 64;
/// Inodes are addressed in such steps.
pub(super) const SLOT: u64 = 32;
const XATTR_HEADER: u64 = 12;
pub(super) const DIRENT: u64 = 12;

/// One inode's place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spot {
    pub(super) ino: Ino,
    /// Byte offset in the inode area.
    pub(super) at: u64,
    /// Bytes of its xattrs, beside it.
    pub(super) xattrs: u64,
    /// Bytes of its body.
    pub(super) size: u64,
    /// Of these, how many lie beside it.
    pub(super) inline: u64,
    /// First block of the others.
    pub(super) block: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of the inode area, the root first.
    pub(super) spots: Vec<Spot>,
    /// By inode index: position in `spots`.
    pub(super) index: Vec<Option<u32>>,
    /// By inode index.
    pub(super) links: Vec<u32>,
    /// By inode index, for directories.
    pub(super) parents: Vec<Ino>,
    /// First block of the inode area.
    pub(super) inodes_at: u64,
    /// Bytes of the inode area.
    pub(super) inodes_len: u64,
}

impl Layout {
    /// `next` is the first free block.
    pub(super) fn of(tree: &Tree, mut next: u64) -> io::Result<Self> {
        let count = tree.inodes().len();
        let mut layout = Self {
            spots: Vec::new(),
            index: vec![None; count],
            links: vec![0; count],
            parents: vec![ROOT; count],
            inodes_at: 0,
            // Number 0 stays free: a directory entry with inode 0 is skipped by libc.
            inodes_len: INODE,
        };
        for ino in layout.reachable(tree) {
            let position = u32::try_from(layout.spots.len()).map_err(|_| too_large())?;
            layout.index[ino.index()] = Some(position);
            let spot = place(ino, tree.inode(ino), &mut layout.inodes_len, &mut next)?;
            layout.spots.push(spot);
        }
        layout.inodes_at = next;
        Ok(layout)
    }

    /// The number by which directories and the superblock name an inode.
    pub(super) fn nid(&self, ino: Ino) -> u64 {
        let position = self.index[ino.index()].unwrap_or(0);
        self.spots[position as usize].at / SLOT
    }

    /// All inodes that have a name, those of a directory side by side; counts their names.
    fn reachable(&mut self, tree: &Tree) -> Vec<Ino> {
        let mut order = vec![ROOT];
        let mut dirs = vec![ROOT];
        self.links[ROOT.index()] = 2;
        while let Some(dir) = dirs.pop() {
            let Body::Dir(children) = &tree.inode(dir).body else { continue };
            let mut below = Vec::new();
            for child in children.values() {
                let seen = self.links[child.ino.index()] > 0;
                if let Body::Dir(_) = tree.inode(child.ino).body {
                    self.links[child.ino.index()] = 2;
                    self.links[dir.index()] += 1;
                    self.parents[child.ino.index()] = dir;
                    below.push(child.ino);
                } else {
                    self.links[child.ino.index()] += 1;
                }
                if !seen {
                    order.push(child.ino);
                }
            }
            dirs.extend(below.into_iter().rev());
        }
        order
    }
}

fn place(ino: Ino, inode: &Inode, inodes_len: &mut u64, next: &mut u64) -> io::Result<Spot> {
    let xattrs = xattrs_len(&inode.meta);
    let (size, movable) = match &inode.body {
        Body::Dir(children) => (dir_len(&names(children, ino, ino)), true),
        Body::Symlink(target) => (target.len() as u64, true),
        Body::File(content) => (content.len, matches!(content.place, Place::Memory(_))),
        Body::Char(..) | Body::Block(..) | Body::Fifo => (0, false),
    };
    let fixed = match &inode.body {
        Body::File(content) => match content.place {
            Place::Blocks(start) => Some(start),
            Place::Memory(_) => None,
        },
        _ => None,
    };
    let tail = size % BLOCK;
    let wanted = if movable && tail <= INLINE_MAX { tail } else { 0 };
    let (at, inline) = fit(inodes_len.next_multiple_of(SLOT), INODE + xattrs, wanted);
    *inodes_len = at + INODE + xattrs + inline;
    let mut block = fixed;
    if movable && size > inline {
        block = Some(u32::try_from(*next).map_err(|_| too_large())?);
        *next += blocks(size - inline);
    }
    Ok(Spot { ino, at, xattrs, size, inline, block })
}

/// An inode must not cross a block, and a tail stays in its inode's block (older kernels insist on
/// it for symbolic links): moves the inode to the next block, or the tail elsewhere (0).
fn fit(at: u64, head: u64, tail: u64) -> (u64, u64) {
    let one_block = |from: u64, len: u64| from / BLOCK == (from + len - 1) / BLOCK;
    let fits = |at: u64, tail: u64| one_block(at, if tail == 0 { INODE } else { head + tail });
    let next = at.next_multiple_of(BLOCK);
    if fits(at, tail) {
        (at, tail)
    } else if fits(next, tail) {
        (next, tail)
    } else if fits(at, 0) {
        (at, 0)
    } else {
        (next, 0)
    }
}

/// Bytes of the xattrs beside the inode.
pub(super) fn xattrs_len(meta: &Meta) -> u64 {
    let entries = meta.xattrs.iter().filter_map(|(name, value)| {
        let (_, rest) = xattr_prefix(name)?;
        Some((4 + rest.len() as u64 + value.len() as u64).next_multiple_of(4))
    });
    match entries.sum::<u64>() {
        0 => 0,
        sum => XATTR_HEADER + sum,
    }
}

/// The number of a name's prefix, and the rest of the name; `None` for those that EROFS cannot
/// keep (they are left out when read).
pub(crate) fn xattr_prefix(name: &[u8]) -> Option<(u8, &[u8])> {
    if name == b"system.posix_acl_access" {
        return Some((2, b""));
    }
    if name == b"system.posix_acl_default" {
        return Some((3, b""));
    }
    for (prefix, number) in [(&b"user."[..], 1), (b"trusted.", 4), (b"security.", 6)] {
        if let Some(rest) = name.strip_prefix(prefix) {
            return (!rest.is_empty()).then_some((number, rest));
        }
    }
    None
}

/// A directory's names in the order of bytes, `.` and `..` among them.
pub(super) fn names(children: &BTreeMap<Box<[u8]>, Dirent>, own: Ino, parent: Ino) -> Vec<(&[u8], Ino)> {
    let mut all: Vec<(&[u8], Ino)> = children.iter().map(|(name, child)| (&**name, child.ino)).collect();
    all.extend([(&b"."[..], own), (b"..", parent)]);
    all.sort_unstable();
    all
}

/// The names of each block of a directory.
pub(super) fn dir_blocks<'n, 'a>(mut names: &'n [(&'a [u8], Ino)]) -> impl Iterator<Item = &'n [(&'a [u8], Ino)]> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = names.iter().take_while(|(name, _)| {
            used += DIRENT + name.len() as u64;
            used <= BLOCK
        });
        let (now, later) = names.split_at(fitting.count());
        names = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Bytes of a directory: whole blocks, and what the last one needs.
fn dir_len(names: &[(&[u8], Ino)]) -> u64 {
    let used = |block: &[(&[u8], Ino)]| block.iter().map(|(name, _)| DIRENT + name.len() as u64).sum::<u64>();
    let (full, last) = dir_blocks(names).fold((0, 0), |(full, _), block| (full + 1, used(block)));
    (full - 1) * BLOCK + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_inode_and_no_tail_crosses_a_block() {
        for at in (0..2 * BLOCK).step_by(32) {
            for head in [64, 80, 3000, 4096, 5000, 8192] {
                for tail in [0, 1, 100, 2048] {
                    let (to, inline) = fit(at, head, tail);
                    assert!(to >= at && to % SLOT == 0 && (inline == tail || inline == 0));
                    assert!(to % BLOCK + INODE <= BLOCK, "inode at {to}");
                    assert!(inline == 0 || to % BLOCK + head + inline <= BLOCK, "tail of {to}");
                }
            }
        }
    }

    #[test]
    fn names_that_erofs_cannot_keep_are_known() {
        assert_eq!(xattr_prefix(b"security.capability"), Some((6, &b"capability"[..])));
        assert_eq!(xattr_prefix(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(xattr_prefix(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(xattr_prefix(b"system.nfs4_acl"), None);
        assert_eq!(xattr_prefix(b"user."), None);
    }
}
