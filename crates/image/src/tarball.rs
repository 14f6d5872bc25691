//! Reads tar archives: ustar, GNU (long names, sparse) and PAX (long names, sizes, xattrs, sparse).
//!
//! In: a byte stream that nobody trusts. Out: entries with raw names, and their data. Field
//! parsing is the `tar` crate's; the walk from header to header is ours, because extended headers
//! must be bounded before they are read into memory and PAX sparse files are needed.
//!
//! It does not judge names: [`crate::layer`] does.

mod extended;
mod sparse;

use std::io::{self, Read};

use extended::Extensions;
pub(crate) use sparse::Segment;

const BLOCK: u64 = 512;

/// Where an archive comes from: bytes, some of which can be skipped cheaply.
pub(crate) trait Input: Read {
    /// Skips exactly so many bytes, or fails with `UnexpectedEof`.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

/// Where a file's data goes.
pub(crate) trait Sink {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn hole(&mut self, len: u64) -> io::Result<()>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    /// Target, as a path from the archive's root.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Dir,
    Fifo,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// As it stands in the archive.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file, holes included.
    pub(crate) size: u64,
    /// Where the data starts in the archive.
    pub(crate) offset: u64,
    /// The parts that are not holes; `None` for a file without holes.
    segments: Option<Vec<Segment>>,
}

impl Entry {
    /// Bytes that are not stored, because they are zeros.
    pub(crate) fn holes(&self) -> u64 {
        let stored = |segments: &Vec<Segment>| segments.iter().map(|segment| segment.len).sum();
        self.segments.as_ref().map_or(0, |segments| self.size.saturating_sub(stored(segments)))
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The input failed or ended early.
    #[error("{0}")]
    Input(io::Error),
    /// The bytes are no tar archive.
    #[error("at byte {at}: {problem}")]
    Bad { at: u64, problem: String },
    /// A well-formed entry that cannot be right, by its name.
    #[error("entry {path:?} {problem}")]
    Entry { path: String, problem: String },
    /// An extended header is larger than allowed.
    #[error("there are extended headers of more than {0} bytes")]
    HeaderLimit(u64),
}

#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    at: u64,
    /// Data and padding of the current entry that have not been read.
    left: u64,
    padding: u64,
    global: Extensions,
    max_extension: u64,
    ended: bool,
}

impl<R: Input> TarReader<R> {
    pub(crate) fn new(input: R, max_extension: u64) -> Self {
        Self { input, at: 0, left: 0, padding: 0, global: Extensions::default(), max_extension, ended: false }
    }

    /// Whether the end mark has been seen; an archive may also just end after an entry.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    pub(crate) fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The next entry; skips what is left of the one before.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut own = Extensions::default();
        loop {
            self.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else { return Ok(None) };
            let at = self.at - BLOCK;
            let bad = |problem: String| TarError::Bad { at, problem };
            let size = numeric(&header.as_old().size, header.entry_size());
            let stored = size.map_err(|e| bad(e.to_string()))?;
            match header.entry_type().as_byte() {
                b'x' | b'X' => {
                    let data = self.extension(stored)?;
                    own.read_pax(&data).map_err(bad)?;
                }
                b'g' => {
                    let data = self.extension(stored)?;
                    self.global.read_pax(&data).map_err(bad)?;
                }
                b'L' => own.path = Some(until_nul(self.extension(stored)?)),
                b'K' => own.link = Some(until_nul(self.extension(stored)?)),
                b'V' => self.expect(stored),
                _ => return self.entry(&header, own, stored).map(Some),
            }
        }
    }

    /// Gives the current entry's data to `sink`.
    pub(crate) fn data(&mut self, entry: &Entry, sink: &mut dyn Sink) -> Result<(), DataError> {
        let mut buffer = vec![0; 128 << 10];
        let mut done = 0;
        let whole = [Segment { offset: 0, len: entry.size }];
        for segment in entry.segments.as_deref().unwrap_or(&whole) {
            if segment.offset > done {
                sink.hole(segment.offset - done).map_err(DataError::Sink)?;
            }
            let mut left = segment.len;
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                self.read(&mut buffer[..want]).map_err(DataError::Tar)?;
                self.left -= want as u64;
                left -= want as u64;
                sink.data(&buffer[..want]).map_err(DataError::Sink)?;
            }
            done = segment.offset + segment.len;
        }
        if entry.size > done {
            sink.hole(entry.size - done).map_err(DataError::Sink)?;
        }
        Ok(())
    }

    fn entry(&mut self, header: &tar::Header, own: Extensions, stored: u64) -> Result<Entry, TarError> {
        let all = own.over(&self.global);
        let raw = header.as_old();
        let path = all.path.clone().unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&path).into_owned();
        let fail = |problem: String| TarError::Entry { path: shown.clone(), problem };
        let field =
            |what: &str, value: io::Result<u64>| value.map_err(|e| fail(format!("has no readable {what}: {e}")));
        let small = |what: &str, value: u64| {
            u32::try_from(value).map_err(|_| fail(format!("has the {what} {value}, which is too large")))
        };
        let link = all.link.clone().unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let device = || -> Result<(u32, u32), TarError> {
            let get = |value: io::Result<Option<u32>>| value.map_err(|e| fail(format!("has no readable device: {e}")));
            let major = get(header.device_major())?.unwrap_or(0);
            Ok((major, get(header.device_minor())?.unwrap_or(0)))
        };
        let kind = match header.entry_type().as_byte() {
            // Before ustar, a directory was a file whose name ends in a slash.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Dir,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink(link),
            b'2' => EntryKind::Symlink(link),
            b'3' => device().map(|(major, minor)| EntryKind::Char(major, minor))?,
            b'4' => device().map(|(major, minor)| EntryKind::Block(major, minor))?,
            b'5' => EntryKind::Dir,
            b'6' => EntryKind::Fifo,
            other => return Err(fail(format!("has the unknown type {:?}", char::from(other)))),
        };
        let stored = all.size.unwrap_or(stored);
        self.left = 0;
        if kind == EntryKind::File {
            self.expect(stored);
        }
        let mut entry = Entry {
            kind,
            mode: u16::try_from(field("mode", numeric(&raw.mode, header.mode().map(u64::from)))? & 0o7777).unwrap_or(0),
            uid: small("owner", all.uid.map_or_else(|| field("owner", numeric(&raw.uid, header.uid())), Ok)?)?,
            gid: small("group", all.gid.map_or_else(|| field("group", numeric(&raw.gid, header.gid())), Ok)?)?,
            mtime: match all.mtime {
                Some(mtime) => mtime,
                // Base 256 times before 1970 come out as huge numbers: the bits are right.
                None => (field("time", numeric(&raw.mtime, header.mtime()))?.cast_signed(), 0),
            },
            xattrs: all.xattrs.clone(),
            size: stored,
            offset: self.at,
            segments: None,
            path,
        };
        if entry.kind == EntryKind::File {
            self.sparse(&mut entry, header, &all)?;
        } else {
            entry.size = 0;
        }
        Ok(entry)
    }

    fn sparse(&mut self, entry: &mut Entry, header: &tar::Header, all: &Extensions) -> Result<(), TarError> {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let fail = |problem: &str| TarError::Entry { path: shown.clone(), problem: problem.to_owned() };
        let map = if header.entry_type().as_byte() == b'S' {
            let gnu = header.as_gnu().ok_or_else(|| fail("is sparse, but not in GNU's format"))?;
            let mut map = sparse::Map::of_gnu(gnu).map_err(&fail)?;
            while map.continues {
                if map.segments.len() as u64 * 24 > self.max_extension {
                    return Err(TarError::HeaderLimit(self.max_extension));
                }
                let mut block = [0; 512];
                self.read(&mut block)?;
                map.read_gnu_extension(&block).map_err(&fail)?;
            }
            map
        } else if let Some(pax) = &all.sparse {
            if let Some(name) = &pax.name {
                entry.path.clone_from(name);
            }
            let mut map = sparse::Map::of_pax(pax).map_err(&fail)?;
            if map.continues {
                // Version 1.0: the map is at the beginning of the data.
                let mut reader = sparse::DataMap::new(self.max_extension);
                while !reader.done() {
                    if self.left < BLOCK {
                        return Err(fail("is sparse, but its map is cut off"));
                    }
                    let mut block = [0; 512];
                    self.read(&mut block)?;
                    self.left -= BLOCK;
                    reader.feed(&block).map_err(&fail)?;
                }
                map.segments = reader.segments();
            }
            map
        } else {
            return Ok(());
        };
        map.check(self.left).map_err(&fail)?;
        entry.offset = self.at;
        entry.size = map.real_size;
        entry.segments = Some(map.segments);
        Ok(())
    }

    fn expect(&mut self, stored: u64) {
        self.left = stored;
        self.padding = stored.wrapping_neg() % BLOCK;
    }

    fn extension(&mut self, len: u64) -> Result<Vec<u8>, TarError> {
        if len > self.max_extension {
            return Err(TarError::HeaderLimit(self.max_extension));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        self.read(&mut data)?;
        self.skip(len.wrapping_neg() % BLOCK)?;
        Ok(data)
    }

    fn header(&mut self) -> Result<Option<tar::Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; 512];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(TarError::Input(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Input(e)),
            }
        }
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            return Ok(None);
        }
        if !is_header(&block) {
            return Err(TarError::Bad { at: self.at, problem: "there is no valid header".into() });
        }
        self.at += BLOCK;
        Ok(Some(tar::Header::from_byte_slice(&block).clone()))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        self.input.read_exact(buffer).map_err(TarError::Input)?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TarError> {
        self.input.skip(bytes).map_err(TarError::Input)?;
        self.at = self.at.saturating_add(bytes);
        Ok(())
    }
}

/// Copying data failed on one side or the other.
#[derive(Debug)]
pub(crate) enum DataError {
    Tar(TarError),
    Sink(io::Error),
}

/// Whether the block is a header with the right checksum.
pub(crate) fn is_header(block: &[u8; 512]) -> bool {
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * u32::from(b' ');
    tar::Header::from_byte_slice(block).cksum().is_ok_and(|stored| stored == sum)
}

/// A field that is left blank is zero.
fn numeric(raw: &[u8], parsed: io::Result<u64>) -> io::Result<u64> {
    if raw.iter().all(|b| matches!(b, 0 | b' ')) { Ok(0) } else { parsed }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests;
