//! Checksums of files: one SHA-256 of a small one, one CRC per non-zero MiB of a large sparse one.
//!
//! Holes are not read, and a MiB of zeros counts as a hole: so the sums depend on the content
//! alone, not on how the file system happens to have laid it out.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
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

/// For a file of at most some MiB: it is read whole.
pub(crate) fn sha256(file: &File) -> io::Result<Sum> {
    let mut content = Vec::new();
    io::Read::read_to_end(&mut &*file, &mut content)?;
    Ok(Sum::Sha256(hex(&Sha256::digest(&content))))
}

/// For a file of any size.
pub(crate) fn chunks(file: &File) -> io::Result<Sum> {
    let length = file.metadata()?.len();
    let mut sums = Vec::new();
    let mut buffer = vec![0; usize::try_from(CHUNK).expect("a MiB fits")];
    let mut at = 0;
    while let Some(number) = next_data(file, at)?.map(|data| data / CHUNK) {
        let start = number * CHUNK;
        if start >= length {
            break;
        }
        let size = usize::try_from(CHUNK.min(length - start)).expect("at most a MiB");
        let chunk = &mut buffer[..size];
        file.read_exact_at(chunk, start)?;
        if chunk.iter().any(|byte| *byte != 0) {
            sums.push((number, crc32fast::hash(chunk)));
        }
        at = start + CHUNK;
    }
    Ok(Sum::Chunks(sums))
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
