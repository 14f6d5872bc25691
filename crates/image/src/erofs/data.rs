//! The data area: contents of files, appended as they arrive.
//!
//! In: bytes and holes of one file after another. Out: where each lies. Blocks of zeros are never
//! written, so they cost nothing on the host.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::{BLOCK, BLOCK_LEN, INLINE_MAX, blocks};
use crate::tarball::Sink;
use crate::tree::{Content, Place};

/// How many bytes of small contents are kept in memory until their inodes are written.
const MEMORY: u64 = 128 << 20;
const BUFFER: usize = 256 * BLOCK_LEN;

#[derive(Debug)]
pub(crate) struct DataArea {
    file: File,
    next: u64,
    memory_left: u64,
    hashing: bool,
}

impl DataArea {
    /// In an empty file. `hashing`: every content gets its digest.
    pub(crate) fn new(file: File, hashing: bool) -> Self {
        // Block 0 holds the superblock.
        Self { file, next: 1, memory_left: MEMORY, hashing }
    }

    /// Begins the content of a file.
    pub(crate) fn begin(&mut self) -> FileWriter<'_> {
        let hasher = self.hashing.then(Sha256::new);
        FileWriter { area: self, buffer: Vec::new(), flushed: 0, hasher }
    }

    /// The file and its first free block.
    pub(super) fn into_parts(self) -> (File, u64) {
        (self.file, self.next)
    }
}

/// The content of one file on its way.
#[derive(Debug)]
pub(crate) struct FileWriter<'a> {
    area: &'a mut DataArea,
    buffer: Vec<u8>,
    /// Whole blocks before the buffer, in bytes.
    flushed: u64,
    hasher: Option<Sha256>,
}

impl FileWriter<'_> {
    /// The content is complete.
    pub(crate) fn finish(mut self) -> io::Result<Content> {
        let len = self.flushed + self.buffer.len() as u64;
        let sha256 = self.hasher.take().map(|hasher| Box::new(hasher.finalize().into()));
        if self.flushed == 0 && len <= INLINE_MAX && len <= self.area.memory_left {
            self.area.memory_left -= len;
            return Ok(Content { len, place: Place::Memory(self.buffer.into()), sha256 });
        }
        self.flush()?;
        let start = u32::try_from(self.area.next).map_err(|_| too_large())?;
        self.area.next += blocks(len);
        Ok(Content { len, place: Place::Blocks(start), sha256 })
    }

    fn flush(&mut self) -> io::Result<()> {
        let start = self.area.next * BLOCK + self.flushed;
        write_sparse(&self.area.file, start, &self.buffer)?;
        self.flushed += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Sink for FileWriter<'_> {
    fn data(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn hole(&mut self, mut len: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];
        let part = |len: u64| usize::try_from(len.min(BLOCK)).unwrap_or(BLOCK_LEN);
        if let Some(hasher) = &mut self.hasher {
            let mut left = len;
            while left > 0 {
                hasher.update(&ZEROS[..part(left)]);
                left -= part(left) as u64;
            }
        }
        // Up to a block's boundary by bytes, then whole blocks by number, then the rest.
        let to_boundary = (self.buffer.len() as u64).wrapping_neg() % BLOCK;
        let first = len.min(to_boundary);
        self.buffer.extend_from_slice(&ZEROS[..part(first)]);
        len -= first;
        if len >= BLOCK {
            self.flush()?;
            self.flushed += len / BLOCK * BLOCK;
            len %= BLOCK;
        }
        self.buffer.extend_from_slice(&ZEROS[..part(len)]);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(())
    }
}

/// Writes all blocks but those of zeros, which a new file already has.
fn write_sparse(file: &File, start: u64, bytes: &[u8]) -> io::Result<()> {
    let mut run = 0;
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + BLOCK_LEN).min(bytes.len());
        if bytes[at..end].iter().all(|b| *b == 0) {
            file.write_all_at(&bytes[run..at], start + run as u64)?;
            run = end;
        }
        at = end;
    }
    file.write_all_at(&bytes[run..], start + run as u64)
}

pub(super) fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "an EROFS image has at most 16 TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> (DataArea, File) {
        let file = tempfile::tempfile().expect("a temporary file");
        (DataArea::new(file.try_clone().expect("a second handle"), true), file)
    }

    #[test]
    fn data_and_holes_come_out_where_they_went_in() {
        let (mut area, file) = area();
        let mut expected = Vec::new();
        let mut writer = area.begin();
        for (data, hole) in [(10, 5), (4096, 4096), (3, 3_000_000), (1 << 20, 1), (70_000, 8191), (0, 12_288)] {
            let bytes: Vec<u8> = (0..data).map(|n: u32| u8::try_from(n % 251).expect("small") + 1).collect();
            writer.data(&bytes).expect("data");
            writer.hole(hole).expect("hole");
            expected.extend_from_slice(&bytes);
            expected.resize(expected.len() + usize::try_from(hole).expect("small"), 0);
        }
        let content = writer.finish().expect("content");
        assert_eq!(content.len, expected.len() as u64);
        assert_eq!(content.sha256.as_deref(), Some(&Sha256::digest(&expected).into()));
        let mut read = vec![0; expected.len()];
        file.set_len(1 << 30).expect("grows");
        assert_eq!(content.place, Place::Blocks(1));
        file.read_exact_at(&mut read, BLOCK).expect("reads");
        assert!(read == expected);
    }

    #[test]
    fn small_contents_stay_in_memory_and_use_no_block() {
        let (mut area, _file) = area();
        let mut writer = area.begin();
        writer.data(b"hello").expect("data");
        assert_eq!(writer.finish().expect("content").place, Place::Memory((*b"hello").into()));
        assert_eq!(area.into_parts().1, 1);
    }
}
