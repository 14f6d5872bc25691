//! Maps of sparse files, in the four notations that GNU tar has had.
//!
//! In: headers, PAX records or leading data. Out: checked segments of data in ascending order.

use tar::GnuHeader;

use super::extended::{PaxSparse, number};

/// A part of a sparse file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

#[derive(Debug)]
pub(super) struct Map {
    pub(super) segments: Vec<Segment>,
    pub(super) real_size: u64,
    /// More of the map follows elsewhere.
    pub(super) continues: bool,
}

impl Map {
    /// The map in an old GNU header.
    pub(super) fn of_gnu(header: &GnuHeader) -> Result<Self, &'static str> {
        let real_size = header.real_size().map_err(|_| "is sparse, but has no readable size")?;
        let mut map = Self { segments: Vec::new(), real_size, continues: header.is_extended() };
        for sparse in &header.sparse {
            if sparse.is_empty() {
                break;
            }
            map.push(sparse.offset().ok(), sparse.length().ok())?;
        }
        Ok(map)
    }

    /// A 512-byte block of 21 more segments.
    pub(super) fn read_gnu_extension(&mut self, block: &[u8; 512]) -> Result<(), &'static str> {
        let mut extension = tar::GnuExtSparseHeader::new();
        extension.as_mut_bytes().copy_from_slice(block);
        for sparse in extension.sparse() {
            if sparse.is_empty() {
                break;
            }
            self.push(sparse.offset().ok(), sparse.length().ok())?;
        }
        self.continues = extension.is_extended();
        Ok(())
    }

    /// The map in PAX records: versions 0.0 and 0.1 have it whole, 1.0 has it in the data.
    pub(super) fn of_pax(pax: &PaxSparse) -> Result<Self, &'static str> {
        let real_size = pax.real_size.ok_or("is sparse, but has no size")?;
        let mut map = Self { segments: Vec::new(), real_size, continues: pax.major >= 1 };
        if !map.continues {
            for pair in pax.numbers.chunks(2) {
                map.push(pair.first().copied(), pair.get(1).copied())?;
            }
        }
        Ok(map)
    }

    fn push(&mut self, offset: Option<u64>, len: Option<u64>) -> Result<(), &'static str> {
        let (Some(offset), Some(len)) = (offset, len) else { return Err("has an unreadable map of its holes") };
        self.segments.push(Segment { offset, len });
        Ok(())
    }

    /// Ascending, within the file, and as many bytes as are stored.
    pub(super) fn check(&self, stored: u64) -> Result<(), &'static str> {
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for segment in &self.segments {
            let next = segment.offset.checked_add(segment.len).filter(|_| segment.offset >= end);
            end = next.ok_or("has an impossible map of its holes")?;
            sum += segment.len;
        }
        if end > self.real_size || sum != stored {
            return Err("has a map of its holes that does not fit its size");
        }
        Ok(())
    }
}

/// Version 1.0: decimal numbers, one per line, in blocks of 512 bytes: how many, then pairs.
#[derive(Debug)]
pub(super) struct DataMap {
    numbers: Vec<u64>,
    line: Vec<u8>,
    max_bytes: u64,
    read: u64,
}

impl DataMap {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { numbers: Vec::new(), line: Vec::new(), max_bytes, read: 0 }
    }

    pub(super) fn done(&self) -> bool {
        self.numbers.first().is_some_and(|count| (self.numbers.len() as u64 - 1) / 2 >= *count)
    }

    pub(super) fn feed(&mut self, block: &[u8; 512]) -> Result<(), &'static str> {
        self.read += block.len() as u64;
        if self.read > self.max_bytes {
            return Err("has a map of its holes that is too large");
        }
        for byte in block {
            if self.done() {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let value = number(&self.line).ok_or("has an unreadable map of its holes")?;
            self.numbers.push(value);
            self.line.clear();
        }
        Ok(())
    }

    pub(super) fn segments(&self) -> Vec<Segment> {
        let pairs = self.numbers.get(1..).unwrap_or_default();
        pairs.chunks_exact(2).map(|pair| Segment { offset: pair[0], len: pair[1] }).collect()
    }
}
