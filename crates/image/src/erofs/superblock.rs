//! The superblock: 128 bytes at offset 1024.

use super::BLOCK;

pub(super) const OFFSET: u64 = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;
/// Inodes carry mtimes, not ctimes.
const COMPAT_MTIME: u32 = 2;

/// The numbers that differ from image to image.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    pub(super) inodes_at: u32,
}

impl Superblock {
    pub(super) fn bytes(&self) -> [u8; 128] {
        let mut bytes = [0; 128];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_le_bytes());
        put(8, &COMPAT_MTIME.to_le_bytes());
        put(12, &[u8::try_from(BLOCK.trailing_zeros()).unwrap_or(12)]);
        put(14, &self.root_nid.to_le_bytes());
        put(16, &self.inodes.to_le_bytes());
        // Build time and UUID stay zero: the same content makes the same image.
        put(36, &self.blocks.to_le_bytes());
        put(40, &self.inodes_at.to_le_bytes());
        put(64, b"hearth-rootfs");
        bytes
    }
}
