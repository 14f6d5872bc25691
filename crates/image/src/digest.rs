//! The digest of a root file system that came without one.
//!
//! In: the finished tree. Out: a sha256 over every name, kind, owner, mode, mtime, xattr and
//! content in the order of names. The same tree has the same digest, whether it came as a tar or
//! as a directory, and however its contents happened to be written.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::blob::hex;
use crate::tree::{Body, Ino, ROOT, Tree};

/// Hex digest. Contents must have been hashed when they were written.
pub(crate) fn of(tree: &Tree) -> String {
    let mut hasher = Sha256::new();
    let mut field = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(b"hearth rootfs 1");
    let mut first_names: BTreeMap<Ino, u64> = BTreeMap::new();
    let mut todo: Vec<(usize, &[u8], Ino)> = vec![(0, b"", ROOT)];
    while let Some((depth, name, ino)) = todo.pop() {
        let number = first_names.len() as u64;
        // The depth says where a directory ends.
        field(&(depth as u64).to_le_bytes());
        field(name);
        if let Some(first) = first_names.get(&ino) {
            field(b"link");
            field(&first.to_le_bytes());
            continue;
        }
        first_names.insert(ino, number);
        let inode = tree.inode(ino);
        let meta = &inode.meta;
        field(&meta.mode.to_le_bytes());
        field(&meta.uid.to_le_bytes());
        field(&meta.gid.to_le_bytes());
        field(&meta.mtime.0.to_le_bytes());
        field(&meta.mtime.1.to_le_bytes());
        field(&(meta.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &meta.xattrs {
            field(name);
            field(value);
        }
        let mut device = |kind: &[u8], major: u32, minor: u32| {
            field(kind);
            field(&major.to_le_bytes());
            field(&minor.to_le_bytes());
        };
        match &inode.body {
            Body::Dir(children) => {
                field(b"dir");
                todo.extend(children.iter().rev().map(|(name, child)| (depth + 1, &**name, child.ino)));
            }
            Body::File(content) => {
                field(b"file");
                field(content.sha256.as_deref().map(|sha| &sha[..]).unwrap_or_default());
            }
            Body::Symlink(target) => {
                field(b"symlink");
                field(target);
            }
            Body::Char(major, minor) => device(b"char", *major, *minor),
            Body::Block(major, minor) => device(b"block", *major, *minor),
            Body::Fifo => field(b"fifo"),
        }
    }
    hex(&hasher.finalize())
}
