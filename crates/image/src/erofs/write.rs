//! Writes what the layout has placed, and frees what no inode uses.
//!
//! In: the tree and the data area. Out: a complete, synced image.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::data::{DataArea, too_large};
use super::layout::{DIRENT, INODE, Layout, Spot, dir_blocks, names, xattr_prefix, xattrs_len};
use super::superblock::{self, Superblock};
use super::{BLOCK, BLOCK_LEN, blocks};
use crate::tree::{Body, Content, Ino, Meta, Place, ROOT, Tree};

const PLAIN: u16 = 0;
const INLINE: u16 = 2;

/// Completes the image and syncs it; returns the bytes that are in use.
pub(crate) fn finish(area: DataArea, tree: &Tree) -> io::Result<u64> {
    let (file, data_end) = area.into_parts();
    let layout = Layout::of(tree, data_end)?;
    let end = layout.inodes_at + blocks(layout.inodes_len);
    let freed = free_unused(&file, tree, &layout)?;

    let mut out = BufWriter::with_capacity(1 << 20, &file);
    out.seek(SeekFrom::Start(data_end * BLOCK))?;
    for spot in &layout.spots {
        if let Some(body) = own_body(tree, &layout, spot)
            && spot.size > spot.inline
        {
            let outside = &body[..usize_of(spot.size - spot.inline)?];
            out.write_all(outside)?;
            pad(&mut out, (outside.len() as u64).wrapping_neg() % BLOCK)?;
        }
    }
    let mut at = 0;
    for spot in &layout.spots {
        pad(&mut out, spot.at - at)?;
        out.write_all(&inode(tree, &layout, spot)?)?;
        write_xattrs(&mut out, &tree.inode(spot.ino).meta)?;
        if spot.inline > 0
            && let Some(body) = own_body(tree, &layout, spot)
        {
            out.write_all(&body[usize_of(spot.size - spot.inline)?..])?;
        }
        at = spot.at + INODE + spot.xattrs + spot.inline;
    }
    out.flush()?;
    drop(out);

    let superblock = Superblock {
        root_nid: u16::try_from(layout.nid(ROOT)).map_err(|_| too_large())?,
        inodes: layout.spots.len() as u64,
        blocks: u32::try_from(end).map_err(|_| too_large())?,
        inodes_at: u32::try_from(layout.inodes_at).map_err(|_| too_large())?,
    };
    file.write_all_at(&superblock.bytes(), superblock::OFFSET)?;
    file.set_len(end * BLOCK)?;
    file.sync_all()?;
    Ok((end - freed) * BLOCK)
}

/// Gives back the blocks of contents that upper layers have replaced or hidden; their number.
fn free_unused(file: &File, tree: &Tree, layout: &Layout) -> io::Result<u64> {
    let mut freed = 0;
    for (inode, position) in tree.inodes().iter().zip(&layout.index) {
        let Body::File(Content { len, place: Place::Blocks(start), .. }) = &inode.body else { continue };
        if position.is_some() {
            continue;
        }
        let (from, len) = (u64::from(*start) * BLOCK, blocks(*len) * BLOCK);
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, how, from, len) {
            Ok(()) => freed += len / BLOCK,
            // Not on every file system; the space is lost then, nothing else.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(freed),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(freed)
}

/// The body of an inode that is not in the data area.
fn own_body<'a>(tree: &'a Tree, layout: &Layout, spot: &Spot) -> Option<std::borrow::Cow<'a, [u8]>> {
    match &tree.inode(spot.ino).body {
        Body::Dir(children) => {
            let names = names(children, spot.ino, layout.parents[spot.ino.index()]);
            Some(dir_bytes(tree, layout, &names, spot.size).into())
        }
        Body::Symlink(target) => Some((&**target).into()),
        Body::File(Content { place: Place::Memory(bytes), .. }) => Some((&**bytes).into()),
        Body::File(_) | Body::Char(..) | Body::Block(..) | Body::Fifo => None,
    }
}

/// Blocks of fixed-size entries, each followed by its names.
fn dir_bytes(tree: &Tree, layout: &Layout, names: &[(&[u8], Ino)], size: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    for block in dir_blocks(names) {
        bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
        let mut name_at = u16::try_from(block.len() as u64 * DIRENT).unwrap_or(0);
        for (name, ino) in block {
            bytes.extend_from_slice(&layout.nid(*ino).to_le_bytes());
            bytes.extend_from_slice(&name_at.to_le_bytes());
            bytes.extend_from_slice(&[file_type(&tree.inode(*ino).body), 0]);
            // Both fit: a block's names end within its 4096 bytes.
            name_at += u16::try_from(name.len()).unwrap_or(0);
        }
        for (name, _) in block {
            bytes.extend_from_slice(name);
        }
    }
    bytes
}

fn inode(tree: &Tree, layout: &Layout, spot: &Spot) -> io::Result<[u8; 64]> {
    let node = tree.inode(spot.ino);
    let (kind, place) = match &node.body {
        Body::Dir(_) => (0o040_000, spot.block.unwrap_or(0)),
        Body::File(_) => (0o100_000, spot.block.unwrap_or(0)),
        Body::Symlink(_) => (0o120_000, spot.block.unwrap_or(0)),
        Body::Char(major, minor) => (0o020_000, device(*major, *minor)),
        Body::Block(major, minor) => (0o060_000, device(*major, *minor)),
        Body::Fifo => (0o010_000, 0),
    };
    let layout_bits = if spot.inline > 0 { INLINE } else { PLAIN };
    let xattr_count = match xattrs_len(&node.meta) {
        0 => 0,
        len => (len - 12) / 4 + 1,
    };
    let mut bytes = [0; 64];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    // Bit 0: the extended form.
    put(0, &(1 | layout_bits << 1).to_le_bytes());
    put(2, &u16::try_from(xattr_count).map_err(|_| too_large())?.to_le_bytes());
    put(4, &(kind | node.meta.mode).to_le_bytes());
    put(8, &spot.size.to_le_bytes());
    put(16, &place.to_le_bytes());
    put(20, &u32::try_from(layout.nid(spot.ino)).unwrap_or(u32::MAX).to_le_bytes());
    put(24, &node.meta.uid.to_le_bytes());
    put(28, &node.meta.gid.to_le_bytes());
    put(32, &node.meta.mtime.0.to_le_bytes());
    put(40, &node.meta.mtime.1.to_le_bytes());
    put(44, &layout.links[spot.ino.index()].to_le_bytes());
    Ok(bytes)
}

fn write_xattrs(out: &mut impl Write, meta: &Meta) -> io::Result<()> {
    if xattrs_len(meta) == 0 {
        return Ok(());
    }
    out.write_all(&[0; 12])?;
    for (name, value) in &meta.xattrs {
        let Some((prefix, rest)) = xattr_prefix(name) else { continue };
        let name_len = u8::try_from(rest.len()).map_err(|_| too_large())?;
        let value_len = u16::try_from(value.len()).map_err(|_| too_large())?;
        out.write_all(&[name_len, prefix])?;
        out.write_all(&value_len.to_le_bytes())?;
        out.write_all(rest)?;
        out.write_all(value)?;
        pad(out, (rest.len() as u64 + value.len() as u64).wrapping_neg() % 4)?;
    }
    Ok(())
}

fn file_type(body: &Body) -> u8 {
    match body {
        Body::File(_) => 1,
        Body::Dir(_) => 2,
        Body::Char(..) => 3,
        Body::Block(..) => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

/// As Linux stores device numbers in 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn pad(out: &mut impl Write, bytes: u64) -> io::Result<()> {
    io::copy(&mut io::Read::take(io::repeat(0), bytes), out).map(drop)
}

fn usize_of(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| too_large())
}
