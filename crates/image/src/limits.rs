//! How much an import may cost, and the counters that say when it is too much.
//!
//! In: what an archive makes us read or remember. Out: [`Problem::Limit`] as soon as a limit is
//! passed, while reading, not afterwards.

use crate::error::Problem;

/// What one import may use. The defaults fit every real image that we know of, and no bomb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Layers of an image.
    pub max_layers: usize,
    /// Entries of all layers or of an archive, overwritten and deleted ones included.
    pub max_entries: u64,
    /// Bytes of all layers after decompression, holes of sparse files included.
    pub max_expanded_bytes: u64,
    /// Length of an entry's path or link target, in bytes.
    pub max_path_len: usize,
    /// Names, link targets and extended attributes, which are kept in memory, in bytes.
    pub max_metadata_bytes: u64,
    /// Size of a JSON document or of an extended tar header, in bytes.
    pub max_document_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_layers: 512,
            max_entries: 2_000_000,
            max_expanded_bytes: 64 << 30,
            max_path_len: 4096,
            max_metadata_bytes: 512 << 20,
            max_document_bytes: 4 << 20,
        }
    }
}

/// What is left of the [`Limits`] during one import.
#[derive(Debug)]
pub(crate) struct Budget<'a> {
    pub(crate) limits: &'a Limits,
    entries: u64,
    metadata: u64,
    expanded: u64,
}

impl<'a> Budget<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, entries: 0, metadata: 0, expanded: 0 }
    }

    /// One more entry that makes us remember so many bytes.
    pub(crate) fn entry(&mut self, remembered: usize) -> Result<(), Problem> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(Problem::Limit { what: "entries", limit: self.limits.max_entries });
        }
        self.metadata = self.metadata.saturating_add(remembered as u64);
        if self.metadata > self.limits.max_metadata_bytes {
            return Err(Problem::Limit {
                what: "bytes of names and attributes",
                limit: self.limits.max_metadata_bytes,
            });
        }
        Ok(())
    }

    /// So many more bytes came out of a decompressor.
    pub(crate) fn expanded(&mut self, bytes: u64) -> Result<(), Problem> {
        self.expanded = self.expanded.saturating_add(bytes);
        if self.expanded > self.limits.max_expanded_bytes {
            return Err(Problem::Limit { what: "bytes of unpacked content", limit: self.limits.max_expanded_bytes });
        }
        Ok(())
    }

    /// How many unpacked bytes are still allowed.
    pub(crate) fn expandable(&self) -> u64 {
        self.limits.max_expanded_bytes.saturating_sub(self.expanded)
    }
}
