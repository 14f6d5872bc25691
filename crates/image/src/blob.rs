//! Where documents and layers are read from: files of a directory, or entries of a tar archive.
//!
//! In: names and digests. Out: byte ranges of files, readers that hash and decompress. Nothing is
//! copied: an entry of a plain tar is a range of its file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::Problem;
use crate::limits::{Budget, Limits};
use crate::tarball::{EntryKind, Input, TarError, TarReader};

/// A range of a file.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Slice {
    /// The whole of a regular file.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), at: 0, end })
    }

    pub(crate) fn len(&self) -> u64 {
        self.end - self.at
    }

    /// The first bytes; fewer if there are fewer.
    pub(crate) fn head<const N: usize>(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::with_capacity(N);
        self.clone().take(N as u64).read_to_end(&mut head)?;
        Ok(head)
    }

    fn range(&self, offset: u64, len: u64) -> Option<Self> {
        let at = self.at.checked_add(offset)?;
        let end = at.checked_add(len).filter(|end| *end <= self.end)?;
        Some(Self { file: Arc::clone(&self.file), at, end })
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Input for Slice {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += bytes;
        Ok(())
    }
}

/// The blobs of an image.
#[derive(Debug)]
pub(crate) enum Blobs {
    Dir(PathBuf),
    Tar(BTreeMap<Vec<u8>, Member>),
}

#[derive(Debug)]
pub(crate) enum Member {
    File(Slice),
    /// Old `docker save` names equal layers once and links to them.
    Link(Vec<u8>),
}

impl Blobs {
    /// The members of a plain tar.
    pub(crate) fn of_tar(archive: &Slice, limits: &Limits) -> Result<Self, Problem> {
        let mut budget = Budget::new(limits);
        let mut reader = TarReader::new(archive.clone(), limits.max_document_bytes);
        let mut members = BTreeMap::new();
        while let Some(entry) = reader.next_entry().map_err(|e| tar_problem("the archive", e, limits))? {
            budget.entry(entry.path.len())?;
            let name = member_name(&entry.path);
            let member = match entry.kind {
                EntryKind::File => {
                    let damaged = || Problem::Damaged {
                        archive: "the archive".into(),
                        problem: format!("it ends within {:?}", String::from_utf8_lossy(&name)),
                    };
                    Member::File(archive.range(entry.offset, entry.size).ok_or_else(damaged)?)
                }
                EntryKind::HardLink(target) => Member::Link(member_name(&target)),
                EntryKind::Symlink(target) => {
                    let mut full = name.clone();
                    full.truncate(name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1));
                    full.extend_from_slice(&target);
                    Member::Link(member_name(&full))
                }
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self::Tar(members))
    }

    /// The member of that name; `None` if there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Slice>, Problem> {
        match self {
            Self::Dir(dir) => open_member(&dir.join(name)),
            Self::Tar(members) => {
                let mut name = member_name(name.as_bytes());
                for _ in 0..8 {
                    match members.get(&name) {
                        Some(Member::File(slice)) => return Ok(Some(slice.clone())),
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// A JSON document by its name, not checked against a digest.
    pub(crate) fn document(&self, name: &str, limits: &Limits) -> Result<Option<Vec<u8>>, Problem> {
        let Some(slice) = self.find(name)? else { return Ok(None) };
        read_document(slice, name, limits).map(Some)
    }
}

/// A file of a layout directory. Checked before it is opened for reading: opening a pipe would wait.
fn open_member(path: &Path) -> Result<Option<Slice>, Problem> {
    let read = |source| Problem::Read { what: path.display().to_string(), source };
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    match std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path) {
        Ok(file) if file.metadata().map_err(read)?.is_file() => Slice::whole(file).map(Some).map_err(read),
        Ok(_) => Ok(None),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(read(error)),
    }
}

pub(crate) fn read_document(mut slice: Slice, name: &str, limits: &Limits) -> Result<Vec<u8>, Problem> {
    if slice.len() > limits.max_document_bytes {
        return Err(Problem::Limit { what: "bytes in a JSON document", limit: limits.max_document_bytes });
    }
    let mut bytes = Vec::new();
    slice.read_to_end(&mut bytes).map_err(|source| Problem::Read { what: name.to_owned(), source })?;
    Ok(bytes)
}

/// `./a//b/../c` → `a/c`. Only a key of the map: nothing is opened by it.
fn member_name(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A reader that hashes what passes through it, and tells how much that was.
pub(crate) struct Hashing<'a, R> {
    inner: R,
    hasher: Option<Sha256>,
    passed: u64,
    report: &'a dyn Fn(u64),
    reported: u64,
}

impl<'a, R: Read> Hashing<'a, R> {
    /// `report` gets the bytes passed so far, every few MiB.
    pub(crate) fn new(inner: R, hash: bool, report: &'a dyn Fn(u64)) -> Self {
        Self { inner, hasher: hash.then(Sha256::new), passed: 0, report, reported: 0 }
    }

    /// Reads the rest; the hex digest of everything, if asked for.
    pub(crate) fn finish(mut self) -> io::Result<Option<String>> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hasher.map(|hasher| hex(&hasher.finalize())))
    }
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const REPORT_EVERY: u64 = 4 << 20;
        let n = self.inner.read(buffer)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..n]);
        }
        self.passed += n as u64;
        if self.passed - self.reported >= REPORT_EVERY {
            self.reported = self.passed;
            (self.report)(self.passed);
        }
        Ok(n)
    }
}

/// How a stream is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    pub(crate) fn reader<'a>(self, input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let input = BufReader::with_capacity(256 << 10, input);
        Ok(match self {
            Self::None => Box::new(input),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        })
    }
}

/// A decompressed stream, counted against the limits.
pub(crate) struct Expanded<'b, 'l, R> {
    inner: R,
    budget: &'b mut Budget<'l>,
}

/// Passes through `io::Error` from where a limit is noticed to where problems are made.
#[derive(Debug, thiserror::Error)]
#[error("more bytes than allowed")]
struct OverLimit;

impl<'b, 'l, R: Read> Expanded<'b, 'l, R> {
    pub(crate) fn new(inner: R, budget: &'b mut Budget<'l>) -> Self {
        Self { inner, budget }
    }

    pub(crate) fn budget(&mut self) -> &mut Budget<'l> {
        self.budget
    }
}

impl<R: Read> Read for Expanded<'_, '_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.budget.expanded(n as u64).map_err(|_| io::Error::other(OverLimit))?;
        Ok(n)
    }
}

impl<R: Read> Input for Expanded<'_, '_, R> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if io::copy(&mut self.by_ref().take(bytes), &mut io::sink())? < bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

/// What an error while reading a (compressed) stream means. Errors that a decompressor makes have
/// no number of the operating system.
pub(crate) fn stream_problem(what: &str, error: io::Error, limits: &Limits) -> Problem {
    if error.get_ref().is_some_and(|inner| inner.is::<OverLimit>()) {
        return Problem::Limit { what: "bytes of unpacked content", limit: limits.max_expanded_bytes };
    }
    if error.raw_os_error().is_some() {
        return Problem::Read { what: what.to_owned(), source: error };
    }
    let problem = match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
        _ => error.to_string(),
    };
    Problem::Damaged { archive: what.to_owned(), problem }
}

/// What an error while reading a tar means.
pub(crate) fn tar_problem(what: &str, error: TarError, limits: &Limits) -> Problem {
    match error {
        TarError::Input(error) => stream_problem(what, error, limits),
        TarError::Bad { at, problem } => {
            Problem::Damaged { archive: what.to_owned(), problem: format!("{problem} at byte {at}") }
        }
        TarError::Entry { path, problem } => Problem::Entry { layer: what.to_owned(), entry: path, problem },
        TarError::HeaderLimit(limit) => Problem::Limit { what: "bytes in an extended header", limit },
    }
}

/// The file, or if it is compressed, its content in an unnamed file in `scratch`.
pub(crate) fn plain(source: &Path, scratch: &Path, limits: &Limits, report: &dyn Fn(u64)) -> Result<Slice, Problem> {
    let what = "the archive";
    let read = |source: io::Error| Problem::Read { what: what.into(), source };
    let slice = File::open(source).and_then(Slice::whole).map_err(read)?;
    let compression = Compression::of(&slice.head::<4>().map_err(read)?);
    if compression == Compression::None {
        return Ok(slice);
    }
    let write = |source: io::Error| Problem::Write { path: scratch.join("(unpacked archive)"), source };
    let mut file = tempfile::tempfile_in(scratch).map_err(write)?;
    let mut budget = Budget::new(limits);
    let raw = Hashing::new(slice, false, report);
    let mut input = Expanded::new(compression.reader(raw).map_err(read)?, &mut budget);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = input.read(&mut buffer).map_err(|e| stream_problem(what, e, limits))?;
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).map_err(write)?;
    }
    file.seek(SeekFrom::Start(0)).and_then(|_| Slice::whole(file)).map_err(write)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
