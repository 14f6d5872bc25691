//! Writes an EROFS image: uncompressed, 4 KiB blocks, features that every Linux since 5.4 reads.
//!
//! In: file contents in the order in which they arrive, then the finished [`Tree`]. Out: the
//! image in the given file. Contents come first, so they are written once, in one pass over the
//! layers; directories, inodes, xattrs and small contents follow and lie together.
//!
//! Uncompressed, because guests may run without hardware virtualisation, where decompression is
//! dear, and because the host's page cache is shared by all guests of an image. Contents that
//! upper layers have replaced leave holes: the file is sparse.
//!
//! Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux.

mod data;
mod layout;
mod superblock;
mod write;

pub(crate) use data::DataArea;
pub(crate) use layout::xattr_prefix;
pub(crate) use write::finish;

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

/// Contents up to this size are stored beside their inode.
const INLINE_MAX: u64 = 2048;

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK)
}
