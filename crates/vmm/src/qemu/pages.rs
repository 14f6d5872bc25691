//! The pages that a loaded guest changed, written onto a copy of the file it was loaded from.
//!
//! Guest RAM is a private mapping of the snapshot's memory file. What the guest wrote is therefore
//! the mapping's anonymous pages, and the kernel knows which those are. QEMU maps the file in one
//! piece, whatever holes the guest's physical addresses have, so a page's place in the mapping is
//! its place in the file.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::fault::ControlError;
use crate::spec::{PageCount, Seat};
use crate::sys;

pub(super) const PAGE: u64 = 4096;
/// What is copied at once.
const BATCH_PAGES: u64 = 256;

/// A piece of the mapping: its addresses in the VMM, and its place in the file.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    addresses: Range<u64>,
    offset: u64,
}

/// Writes the pages of the paused guest in that seat onto the file `onto`, which is as long as its
/// memory. The caller makes it durable.
pub(crate) fn write_onto(seat: &Seat, onto: &Path) -> Result<PageCount, ControlError> {
    let write = |source| ControlError::Write { what: "memory file", path: onto.to_owned(), source };
    let pages = |action| move |source| ControlError::Pages { action, source };
    let file = File::options().write(true).open(onto).map_err(write)?;
    let bytes = seat.memory.size().bytes();
    if file.metadata().map_err(write)?.len() != bytes {
        return Err(write(io::Error::new(io::ErrorKind::InvalidInput, "it is not as long as the guest's memory")));
    }
    let find = pages("find the guest's memory in the VMM");
    let maps = fs::read_to_string(format!("/proc/{}/maps", seat.pid)).map_err(find)?;
    let pieces = mapping(&maps, seat.memory_inode);
    if pieces.iter().map(|p| p.addresses.end - p.addresses.start).sum::<u64>() != bytes {
        return Err(find(io::Error::other("its mapping is not as long as its memory")));
    }
    let pagemap = File::open(format!("/proc/{}/pagemap", seat.pid)).map_err(find)?;
    let mut count = PageCount::default();
    for piece in &pieces {
        let changed =
            private_pages(&pagemap, &piece.addresses).map_err(pages("find the pages that the guest changed"))?;
        for batch in batches(changed) {
            let mut bytes = vec![0; usize::try_from(batch.iter().map(|r| r.end - r.start).sum::<u64>()).unwrap_or(0)];
            sys::read_process(seat.pid, &batch, &mut bytes).map_err(pages("copy the guest's pages"))?;
            let mut rest = &bytes[..];
            for run in batch {
                let (data, after) = rest.split_at(usize::try_from(run.end - run.start).unwrap_or(0));
                rest = after;
                let at = run.start - piece.addresses.start + piece.offset;
                count.changed += (run.end - run.start) / PAGE;
                count.zero += write_run(&file, at, data).map_err(write)?;
            }
        }
    }
    Ok(count)
}

/// The private mappings of the file with that inode, by address.
///
/// By inode alone: some file systems show another device number in `maps` than in `stat`. That the
/// whole is as long as the guest's memory, which the caller checks, rules out all else.
fn mapping(maps: &str, inode: u64) -> Vec<Piece> {
    let parse = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let private = fields.next()?.starts_with("rw-p");
        let offset = hex(fields.next()?)?;
        let same = fields.nth(1)?.parse() == Ok(inode);
        (private && same).then_some(Piece { addresses: hex(start)?..hex(end)?, offset })
    };
    maps.lines().filter_map(parse).collect()
}

fn private_pages(pagemap: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    match sys::scan_private_pages(pagemap, range.clone()) {
        // A kernel before 6.7 does not know the call.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => read_pagemap(pagemap, range),
        found => found,
    }
}

/// The same by reading an entry for every page: slower, on any kernel.
fn read_pagemap(pagemap: &File, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
    const FILE_PAGE: u64 = 1 << 61;
    const SWAPPED: u64 = 1 << 62;
    const PRESENT: u64 = 1 << 63;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let entries = ((range.end - at) / PAGE).min(8 << 10);
        let buffer = &mut buffer[..usize::try_from(entries * 8).unwrap_or(0)];
        pagemap.read_exact_at(buffer, at / PAGE * 8)?;
        for entry in buffer.chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            if entry & (PRESENT | SWAPPED) != 0 && entry & FILE_PAGE == 0 {
                match found.last_mut() {
                    Some(run) if run.end == at => run.end += PAGE,
                    _ => found.push(at..at + PAGE),
                }
            }
            at += PAGE;
        }
    }
    Ok(found)
}

/// Cuts runs into groups of at most [`BATCH_PAGES`] pages.
fn batches(runs: Vec<Range<u64>>) -> Vec<Vec<Range<u64>>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut room = BATCH_PAGES * PAGE;
    for mut run in runs {
        while !run.is_empty() {
            let end = run.end.min(run.start + room);
            room -= end - run.start;
            batch.push(run.start..end);
            run.start = end;
            if room == 0 {
                batches.push(std::mem::take(&mut batch));
                room = BATCH_PAGES * PAGE;
            }
        }
    }
    batches.push(batch);
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// Writes whole pages; zero pages become holes. Returns how many those were.
pub(super) fn write_run(file: &File, mut at: u64, data: &[u8]) -> io::Result<u64> {
    const BYTES: usize = 4096;
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let (mut rest, mut zero) = (data, 0);
    while !rest.is_empty() {
        let empty = is_zero(&rest[..BYTES]);
        let alike = rest.chunks_exact(BYTES).take_while(|page| is_zero(page) == empty).count() * BYTES;
        let (run, after) = rest.split_at(alike);
        let length = run.len() as u64;
        if empty {
            punch(file, at, run)?;
            zero += length / PAGE;
        } else {
            file.write_all_at(run, at)?;
        }
        at += length;
        rest = after;
    }
    Ok(zero)
}

/// A hole reads as zeroes, whatever the base had there.
fn punch(file: &File, at: u64, zeroes: &[u8]) -> io::Result<()> {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file.as_fd(), hole, at, zeroes.len() as u64) {
        Err(rustix::io::Errno::OPNOTSUPP) => file.write_all_at(zeroes, at),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_mapping_is_found_by_inode_and_only_when_private() {
        let maps = "\
7f0000000000-7f0000002000 rw-p 00000000 00:1b 77 /a/memory (deleted)
7f0000002000-7f0000003000 rw-p 00002000 00:1b 77 /a/memory (deleted)
7f0000005000-7f0000006000 rw-s 00000000 00:1b 77 /a/memory
7f0000007000-7f0000008000 rw-p 00000000 00:1b 78 /lib/x.so
7f0000009000-7f000000a000 rw-p 00000000 00:00 0
";
        let piece = |addresses, offset| Piece { addresses, offset };
        assert_eq!(
            mapping(maps, 77),
            [piece(0x7f00_0000_0000..0x7f00_0000_2000, 0), piece(0x7f00_0000_2000..0x7f00_0000_3000, 0x2000)]
        );
        assert!(mapping(maps, 79).is_empty());
    }

    #[test]
    fn batches_hold_every_page_once_and_none_is_too_large() {
        let runs = vec![0..PAGE, 10 * PAGE..700 * PAGE, 800 * PAGE..801 * PAGE];
        let batches = batches(runs.clone());
        let size = |runs: &[Range<u64>]| runs.iter().map(|r| r.end - r.start).sum::<u64>();
        assert!(batches.iter().all(|b| (1..=BATCH_PAGES * PAGE).contains(&size(b))));
        assert_eq!(batches.iter().map(|b| size(b)).sum::<u64>(), size(&runs));
        let (first, last) = (&batches[0][0], batches.last().and_then(|b| b.last()).expect("one"));
        assert_eq!((first.start, last.end), (0, 801 * PAGE));
    }

    #[test]
    fn pages_that_ended_as_zeroes_replace_what_the_base_had() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&[7; 4 * 4096], 0).expect("written");
        let mut data = vec![0; 3 * 4096];
        data[4096..2 * 4096].fill(9);
        assert_eq!(write_run(&file, 4096, &data).expect("written"), 2);
        let mut back = vec![1; 4 * 4096];
        file.read_exact_at(&mut back, 0).expect("read");
        assert_eq!(back.chunks(4096).map(|page| page[5]).collect::<Vec<_>>(), [7, 0, 9, 0]);
        assert!(file.metadata().expect("metadata").blocks() * 512 <= 4 * 4096);
    }

    /// Both ways of asking the kernel, on a private mapping of this process: written pages are
    /// found, read ones are not.
    #[test]
    fn both_ways_find_the_written_pages_and_no_others() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        std::io::Write::write_all(&mut file, &vec![1; 64 * 4096]).expect("written");
        let mapped = sys::tests::MappedPrivately::new(file.as_file(), 64 * 4096);
        let start = mapped.address();
        let range = start..start + 64 * PAGE;
        assert_eq!(mapped.read(20 * 4096), 1);
        for page in [3, 4, 5, 40] {
            mapped.write(page * 4096, 0);
        }
        let at = |from: u64, to: u64| start + from * PAGE..start + to * PAGE;
        let expected = [at(3, 6), at(40, 41)];
        let pagemap = File::open("/proc/self/pagemap").expect("a page map");
        assert_eq!(read_pagemap(&pagemap, &range).expect("read"), expected);
        match sys::scan_private_pages(&pagemap, range) {
            Ok(found) => assert_eq!(found, expected),
            Err(error) => eprintln!("SKIPPED: PAGEMAP_SCAN: {error}"),
        }
        let mut bytes = vec![9; 2 * 4096];
        sys::read_process(std::process::id(), &[at(5, 6), at(6, 7)], &mut bytes).expect("read");
        assert_eq!((bytes[0], bytes[4096]), (0, 1));
    }
}
