//! Checksums of files: one SHA-256 of a small one, one CRC per non-zero MiB of a large sparse one.
//!
//! Holes are not read, and a MiB of zeros counts as a hole: so the sums depend on the content
//! alone, not on how the file system happens to have laid it out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// The unit of a large file's sums, in bytes.
pub(crate) const CHUNK: u64 = 1 << 20;

/// What a file's content adds up to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sum {
    /// Of the whole file, in hexadecimal.
    Sha256(String),
    /// CRC-32 of each [`CHUNK`] that is not all zeros, with its number.
    Chunks(Vec<(u64, u32)>),
}

impl Sum {
    /// Where another file's content first differs, in bytes; `None` if it does not.
    pub(crate) fn first_difference(&self, other: &Self) -> Option<u64> {
        let (Self::Chunks(ours), Self::Chunks(theirs)) = (self, other) else {
            return (self != other).then_some(0);
        };
        let same = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let next = [ours.get(same), theirs.get(same)];
        next.into_iter().flatten().map(|(number, _)| number * CHUNK).min()
    }
}

/// For a file of at most some MiB.
pub(crate) fn sha256(file: &File) -> io::Result<Sum> {
    let length = file.metadata()?.len();
    let mut buffer = Buffer::new();
    let mut digest = Sha256::new();
    for start in (0..length).step_by(Buffer::SIZE) {
        digest.update(buffer.fill(file, start, length)?);
    }
    Ok(Sum::Sha256(hex(&digest.finalize())))
}

/// For a file of any size.
pub(crate) fn chunks(file: &File) -> io::Result<Sum> {
    let length = file.metadata()?.len();
    let mut sums = Vec::new();
    let mut buffer = Buffer::new();
    let mut at = 0;
    while let Some(number) = next_data(file, at)?.map(|data| data / CHUNK) {
        let start = number * CHUNK;
        if start >= length {
            break;
        }
        let chunk = buffer.fill(file, start, length)?;
        if !is_zeros(chunk) {
            sums.push((number, crc32fast::hash(chunk)));
        }
        at = start + CHUNK;
    }
    Ok(Sum::Chunks(sums))
}

/// Opens a file to read what is on the disk, past the page cache: what forks map from there is not
/// pushed out by a reader that wants each byte once, and rot below it is not hidden by it. Where
/// the file system cannot, what the cache says has to do.
pub(crate) fn open_past_the_cache(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let usual = rustix::fs::fcntl_getfl(&file)?;
    // Some refuse the flag, and some only the read.
    if rustix::fs::fcntl_setfl(&file, usual | OFlags::DIRECT).is_ok() {
        let mut buffer = Buffer::new();
        if matches!(file.read_at(buffer.aligned(), 0), Err(error) if error.raw_os_error() == Some(EINVAL)) {
            rustix::fs::fcntl_setfl(&file, usual)?;
        }
    }
    Ok(file)
}

const EINVAL: i32 = Errno::INVAL.raw_os_error();

/// Room for one [`CHUNK`], where a disk can write to it directly.
struct Buffer {
    room: Vec<u8>,
}

impl Buffer {
    const SIZE: usize = 1 << 20;
    /// More than any disk's sector asks for.
    const ALIGNMENT: usize = 4096;

    fn new() -> Self {
        Self { room: vec![0; Self::SIZE + Self::ALIGNMENT] }
    }

    fn aligned(&mut self) -> &mut [u8] {
        let skip = self.room.as_ptr().align_offset(Self::ALIGNMENT).min(Self::ALIGNMENT);
        &mut self.room[skip..skip + Self::SIZE]
    }

    /// What a file of that length has from `start` on, a chunk at most.
    fn fill(&mut self, file: &File, start: u64, length: u64) -> io::Result<&[u8]> {
        let wanted = usize::try_from(CHUNK.min(length.saturating_sub(start))).expect("at most a MiB");
        // The whole room is offered: a direct read takes whole sectors, also at a file's end.
        let room = self.aligned();
        let mut filled = 0;
        while filled < wanted {
            match file.read_at(&mut room[filled..], start + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&room[..wanted])
    }
}

/// By one comparison of memory: most of a memory file's data that was never written to is zeros.
fn is_zeros(chunk: &[u8]) -> bool {
    chunk.split_first().is_none_or(|(first, rest)| *first == 0 && *rest == chunk[..rest.len()])
}

/// Where the next data begins, at or after `at`.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(other) => Err(other.into()),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(length: u64, content: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(length).expect("sets its length");
        for (at, bytes) in content {
            file.write_all_at(bytes, *at).expect("writes");
        }
        file
    }

    #[test]
    fn written_zeros_and_holes_are_the_same_content() {
        let hole = file(5 * CHUNK + 7, &[(3 * CHUNK + 5, b"x")]);
        let zeros = file(5 * CHUNK + 7, &[(CHUNK, &[0; 4096]), (3 * CHUNK + 5, b"x")]);
        let sum = chunks(&hole).expect("sums");
        assert_eq!(sum, chunks(&zeros).expect("sums"));
        assert!(matches!(&sum, Sum::Chunks(list) if list.len() == 1 && list[0].0 == 3));
    }

    #[test]
    fn past_the_cache_is_the_same_content() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        for length in [0_usize, 1, 4096, 5000, 1 << 20, (1 << 20) + 1] {
            std::fs::write(&path, vec![7; length]).expect("writes");
            let (usual, direct) =
                (File::open(&path).expect("opens"), open_past_the_cache(&path).expect("opens past the cache"));
            assert_eq!(chunks(&usual).expect("sums"), chunks(&direct).expect("sums"), "{length}");
            let sum = sha256(&direct).expect("sums");
            assert_eq!(sum, Sum::Sha256(hex(&Sha256::digest(vec![7; length]))), "{length}");
        }
    }

    #[test]
    fn a_difference_is_found_where_it_is() {
        let one = chunks(&file(4 * CHUNK, &[(CHUNK, b"a"), (3 * CHUNK, b"c")])).expect("sums");
        for (content, differs) in [
            (vec![(CHUNK, b"a".as_slice()), (3 * CHUNK, b"d")], CHUNK * 3),
            (vec![(CHUNK, b"a".as_slice())], CHUNK * 3),
            (vec![(0, b"z".as_slice()), (CHUNK, b"a"), (3 * CHUNK, b"c")], 0),
        ] {
            let other = chunks(&file(4 * CHUNK, &content)).expect("sums");
            assert_eq!(one.first_difference(&other), Some(differs), "{content:?}");
        }
        assert_eq!(one.first_difference(&one), None);
    }

    #[test]
    fn the_last_byte_counts() {
        let length = CHUNK + 1;
        let one = chunks(&file(length, &[(CHUNK, b"a")])).expect("sums");
        let two = chunks(&file(length, &[(CHUNK, b"b")])).expect("sums");
        assert_eq!(one.first_difference(&two), Some(CHUNK));
    }
}
