//! Guest memory: pages of the guest's own over nothing, or over a snapshot's file.
//!
//! The file is never written; it is read page by page when it is needed, as a private mapping is.
//! So whoever changes a file that a machine was loaded from changes that machine's memory, here as
//! there. What a snapshot writes follows Firecracker:
//!
//! | | not tracked | tracked |
//! | --- | --- | --- |
//! | `Diff` of a booted guest | every page that was ever touched | what was touched since the last snapshot |
//! | `Diff` of a loaded guest | the guest's own pages, and of its file whatever is in the page cache | the same |
//! | `Full` | every byte, zeroes too | every byte |
//!
//! Here nothing is ever in the page cache: a `Diff` of a loaded guest is not whole without a clone of
//! its file below it. There it mostly is, and lacks pages on the day when memory is short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::request::SnapshotType;

/// How large a page is.
pub(crate) const PAGE: usize = 4096;
const PAGE_LEN: u64 = 4096;

/// Guest memory.
#[derive(Debug)]
pub(crate) struct Memory {
    len: u64,
    base: Option<File>,
    own: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Pages changed since the last snapshot, if that is tracked.
    dirty: Option<BTreeSet<u64>>,
}

impl Memory {
    /// A booted guest's.
    pub(crate) fn new(mib: usize, tracked: bool) -> Self {
        Self { len: (mib as u64) << 20, base: None, own: BTreeMap::new(), dirty: tracked.then(BTreeSet::new) }
    }

    /// A loaded guest's; `None` when the file is too short.
    pub(crate) fn over(base: File, mib: usize, tracked: bool) -> io::Result<Option<Self>> {
        let mut memory = Self::new(mib, tracked);
        if base.metadata()?.len() < memory.len {
            return Ok(None);
        }
        memory.base = Some(base);
        Ok(Some(memory))
    }

    /// Whether this range is in it.
    pub(crate) fn has(&self, address: u64, len: usize) -> bool {
        address.checked_add(len as u64).is_some_and(|end| end <= self.len)
    }

    /// Reads; outside of it there are zeroes.
    pub(crate) fn read(&self, address: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        for (page, at, within) in pages(address, len) {
            let page = self.page(page)?;
            let part = page.get(within.clone()).unwrap_or_default();
            bytes[at..at + part.len()].copy_from_slice(part);
        }
        Ok(bytes)
    }

    /// Writes; what is there already is not touched. Outside of it nothing happens.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> io::Result<()> {
        for (number, at, within) in pages(address, bytes.len()) {
            let mut page = self.page(number)?;
            let new = &bytes[at..at + within.len()];
            if page[within.clone()] == *new && (self.base.is_some() || self.own.contains_key(&number)) {
                continue;
            }
            if number * PAGE_LEN < self.len {
                page[within].copy_from_slice(new);
                self.own.insert(number, page);
                if let Some(dirty) = &mut self.dirty {
                    dirty.insert(number);
                }
            }
        }
        Ok(())
    }

    /// Writes a snapshot's memory file, in Firecracker's way and with its words.
    pub(crate) fn save(&mut self, path: &Path, kind: SnapshotType) -> Result<(), String> {
        let backing = |what: &'static str| {
            move |error: io::Error| format!("Cannot perform {what} on the memory backing file: {error}")
        };
        let dump = |error: io::Error| format!("Cannot write memory file: Cannot dump memory: {error}");
        let existed = path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(backing("open"))?;
        if existed && file.metadata().map_err(backing("get_metadata"))?.len() != self.len {
            file.set_len(0).map_err(backing("truncate"))?;
        }
        file.set_len(self.len).map_err(backing("set_length"))?;
        for page in self.to_save(kind) {
            file.write_all_at(&self.page(page).map_err(dump)?[..], page * PAGE_LEN).map_err(dump)?;
        }
        if let Some(dirty) = &mut self.dirty {
            dirty.clear();
        }
        Ok(())
    }

    fn to_save(&self, kind: SnapshotType) -> BTreeSet<u64> {
        if kind == SnapshotType::Full {
            return (0..self.len / PAGE_LEN).collect();
        }
        if let Some(dirty) = &self.dirty {
            return dirty.clone();
        }
        self.own.keys().copied().collect()
    }

    fn page(&self, number: u64) -> io::Result<Box<[u8; PAGE]>> {
        let mut page = Box::new([0; PAGE]);
        match (self.own.get(&number), &self.base) {
            (Some(own), _) => page.clone_from(own),
            (None, Some(base)) if number * PAGE_LEN < self.len => {
                base.read_exact_at(&mut page[..], number * PAGE_LEN)?;
            }
            (None, _) => {}
        }
        Ok(page)
    }
}

/// The pages of a range: number, where its part begins in the range, and what of the page it is.
fn pages(address: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        (at < len).then(|| {
            let here = address + at as u64;
            let start = usize::try_from(here % PAGE_LEN).expect("less than a page");
            let part = (PAGE - start).min(len - at);
            let found = (here / PAGE_LEN, at, start..start + part);
            at += part;
            found
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_across_pages_and_saved_sparsely() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("memory");
        let mut memory = Memory::new(64, false);
        let text: Vec<u8> = (0..9000u32).map(|i| i.to_le_bytes()[0] | 1).collect();
        memory.write(PAGE_LEN * 3 - 100, &text).expect("write");
        assert_eq!(memory.read(PAGE_LEN * 3 - 100, 9000).expect("read"), text);
        memory.save(&file, SnapshotType::Diff).expect("save");
        let meta = file.metadata().expect("there");
        assert_eq!((meta.len(), meta.blocks() * 512), (64 << 20, 4 * PAGE_LEN));

        let open = || File::open(&file).expect("there");
        assert!(Memory::over(open(), 65, false).expect("metadata").is_none(), "too short");
        let mut loaded = Memory::over(open(), 64, true).expect("metadata").expect("long enough");
        assert_eq!(loaded.read(PAGE_LEN * 3 - 100, 9000).expect("read"), text);
        loaded.write(PAGE_LEN * 3, &text[100..200]).expect("write");
        loaded.write(PAGE_LEN * 9, b"own").expect("write");
        let own = dir.path().join("own");
        loaded.save(&own, SnapshotType::Diff).expect("save");
        assert_eq!(own.metadata().expect("there").blocks() * 512, PAGE_LEN, "only what differs was written");
        loaded.save(&dir.path().join("none"), SnapshotType::Diff).expect("save");
        assert_eq!(dir.path().join("none").metadata().expect("there").blocks(), 0, "and only once");
    }
}
