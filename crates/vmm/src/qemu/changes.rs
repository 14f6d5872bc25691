//! What a booted guest changed since its memory file was copied, written onto the copy.
//!
//! Guest RAM is a shared mapping of that file, so the file is the memory. The copy was taken while
//! the guest ran and is torn; of the paused guest only the pages that differ are written, which is
//! quicker than to copy all of it in the pause. Comparing needs nothing of the kernel, and is split
//! over the host's CPUs.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::pages::{PAGE, write_run};
use crate::fault::ControlError;
use crate::spec::{MEMORY, PageCount, Seat};

/// What is compared at once.
const CHUNK: u64 = 256 << 10;
/// More threads than this gain nothing: memory is the limit.
const MOST_THREADS: usize = 4;

/// Makes `onto`, a copy of the guest's memory file, what that file is now. The caller makes it
/// durable.
pub(crate) fn write_onto(seat: &Seat, onto: &Path) -> Result<PageCount, ControlError> {
    let write = |source| ControlError::Write { what: "memory file", path: onto.to_owned(), source };
    let read = |source| ControlError::Pages { action: "read the guest's memory file", source };
    let memory = File::open(seat.dir.join(MEMORY)).map_err(read)?;
    let copy = File::options().read(true).write(true).open(onto).map_err(write)?;
    let bytes = seat.memory.size().bytes();
    if copy.metadata().map_err(write)?.len() != bytes {
        return Err(write(io::Error::new(io::ErrorKind::InvalidInput, "it is not as long as the guest's memory")));
    }
    let chunks = chunks(&memory, bytes).map_err(read)?;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    let share = chunks.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let (memory, copy) = (&memory, &copy);
        let workers: Vec<_> =
            chunks.chunks(share).map(|some| scope.spawn(move || update(memory, copy, some))).collect();
        workers.into_iter().try_fold(PageCount::default(), |sum, worker| {
            let count = worker.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))).map_err(write)?;
            Ok(PageCount { changed: sum.changed + count.changed, zero: sum.zero + count.zero })
        })
    })
}

/// The parts of the file that are not holes, in chunks. A guest's page once touched stays, so what
/// is a hole in the file is one in every copy of it.
fn chunks(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < bytes {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            found => found?,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(bytes);
        at = start;
        while at < end {
            let next = end.min(at + CHUNK);
            chunks.push(at..next);
            at = next;
        }
    }
    Ok(chunks)
}

fn update(memory: &File, copy: &File, chunks: &[Range<u64>]) -> io::Result<PageCount> {
    let size = |bytes: u64| usize::try_from(bytes).expect("a chunk is small");
    let (mut now, mut then) = (vec![0; size(CHUNK)], vec![0; size(CHUNK)]);
    let page = size(PAGE);
    let mut count = PageCount::default();
    for chunk in chunks {
        let length = size(chunk.end - chunk.start);
        let (now, then) = (&mut now[..length], &mut then[..length]);
        memory.read_exact_at(now, chunk.start)?;
        copy.read_exact_at(then, chunk.start)?;
        if now == then {
            continue;
        }
        for (number, (now, then)) in (0..).zip(now.chunks(page).zip(then.chunks(page))) {
            if now != then {
                count.changed += 1;
                count.zero += write_run(copy, chunk.start + number * PAGE, now)?;
            }
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_copy_becomes_the_file_and_holes_stay() {
        const PAGES: usize = 1000;
        let page = |byte: u8| [byte; 4096];
        let (memory, copy) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        for file in [&memory, &copy] {
            file.set_len(PAGES as u64 * PAGE).expect("sized");
            for at in 100..400 {
                file.write_all_at(&page(1), at * PAGE).expect("written");
            }
        }
        for (at, byte) in [(100, 7), (250, 0), (399, 9), (900, 3)] {
            memory.write_all_at(&page(byte), at * PAGE).expect("written");
        }
        let chunks = chunks(&memory, PAGES as u64 * PAGE).expect("mapped");
        let count = update(&memory, &copy, &chunks).expect("updated");
        assert_eq!((count.changed, count.zero), (4, 1));
        let read = |file: &File| {
            let mut all = vec![0; PAGES * 4096];
            file.read_exact_at(&mut all, 0).expect("read");
            all
        };
        assert!(read(&memory) == read(&copy));
        let allocated = std::os::unix::fs::MetadataExt::blocks(&copy.metadata().expect("metadata")) * 512;
        assert!(allocated <= 400 * PAGE, "{allocated} bytes for 300 pages");
    }
}
