//! Following a file that others append to, replace or remove: lines out, woken by inotify.
//!
//! In: a path, and how many lines from the end to begin with. Out: batches of complete lines. It
//! blocks on nothing but [`Follower::changed`]; reads are short and local.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::unix::pipe::Receiver;

/// How much is read at once.
const CHUNK: usize = 64 << 10;
/// A line without an end is handed out after that much of it.
const LONGEST: usize = 1 << 20;

/// A file, and how far it has been read.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    open: Option<Open>,
    /// The beginning of a line whose end has not been written yet.
    partial: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: u64,
    position: u64,
}

impl Lines {
    /// Begins `last` lines before the end; a file that is not there yet begins at its beginning.
    pub(super) fn open(path: PathBuf, last: u64) -> io::Result<Self> {
        let mut this = Self { path, open: None, partial: Vec::new() };
        if this.reopen()?
            && let Some(open) = &mut this.open
        {
            open.position = before_last(&mut open.file, last)?;
        }
        Ok(this)
    }

    /// Lines that were written since the last call, without their ends; none if there are no more
    /// for now. At most a chunk's worth.
    pub(super) fn read(&mut self) -> io::Result<Vec<String>> {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match &mut self.open {
                None => 0,
                Some(open) => {
                    // Emptied in place: it begins anew.
                    if open.file.metadata()?.len() < open.position {
                        open.position = 0;
                        self.partial.clear();
                    }
                    // What has been given back of a log that was too long (`log_space`) is passed over.
                    let data = first_data(&open.file, open.position)?;
                    if data > open.position {
                        open.position = data;
                        self.partial.clear();
                    }
                    open.file.seek(SeekFrom::Start(open.position))?;
                    let read = open.file.read(&mut chunk)?;
                    open.position += read as u64;
                    read
                }
            };
            // Only a file that has been read to its end is left for the one in its place.
            if read == 0 && !self.reopen()? {
                return Ok(Vec::new());
            }
            let lines = self.split(&chunk[..read]);
            if !lines.is_empty() {
                return Ok(lines);
            }
        }
    }

    /// What was written of a line that has no end.
    pub(super) fn rest(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| text(&std::mem::take(&mut self.partial)))
    }

    fn split(&mut self, data: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() >= LONGEST {
                lines.push(text(&std::mem::take(&mut self.partial)));
            }
        }
        lines
    }

    /// Opens what is at the path now; true if that is another file than before.
    fn reopen(&mut self) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let inode = file.metadata()?.ino();
        if self.open.as_ref().is_some_and(|open| open.inode == inode) {
            return Ok(false);
        }
        self.open = Some(Open { file, inode, position: 0 });
        self.partial.clear();
        Ok(true)
    }
}

/// Consoles end lines with `\r\n`, and some programs with `\r\r\n`.
fn text(line: &[u8]) -> String {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
    String::from_utf8_lossy(&line[..end]).into_owned()
}

/// Where there is something at that place or behind it: at the end, if nowhere.
fn first_data(file: &File, from: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Err(rustix::io::Errno::NXIO) => Ok(from.max(file.metadata()?.len())),
        // A file system that does not know holes has none.
        Err(rustix::io::Errno::INVAL) => Ok(from),
        found => Ok(found?),
    }
}

/// Where the last so many lines begin; read from the end, so that a long file costs nothing.
fn before_last(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    // The end of the last line does not begin another one.
    let mut wanted = lines + 1;
    let mut last_byte = true;
    let mut chunk = vec![0; CHUNK];
    let begin = first_data(file, 0)?;
    while end > begin {
        let size = usize::try_from(end - begin).unwrap_or(CHUNK).min(CHUNK);
        let start = end - size as u64;
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut chunk[..size])?;
        for at in (0..size).rev() {
            let counts = chunk[at] == b'\n' || std::mem::take(&mut last_byte);
            last_byte = false;
            if counts {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(start + at as u64 + 1);
                }
            }
        }
        end = start;
    }
    Ok(begin)
}

/// Wakes when something in a directory changes.
#[derive(Debug)]
pub(super) struct Follower {
    /// An inotify descriptor: like a pipe it is only ever read.
    inotify: Receiver,
}

impl Follower {
    /// Watches from now on.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&inotify, dir, changes | WatchFlags::ONLYDIR)?;
        Ok(Self { inotify: Receiver::from_owned_fd_unchecked(inotify)? })
    }

    /// Resolves when something has changed since the last call. Cancel safe.
    pub(super) async fn changed(&self) -> io::Result<()> {
        // Which file it was does not matter: the reader looks for itself.
        let mut events = [0; 4096];
        let mut any = false;
        loop {
            match self.inotify.try_read(&mut events) {
                Ok(_) => any = true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && any => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.inotify.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(lines: &mut Lines) -> Vec<String> {
        let mut all = Vec::new();
        loop {
            match lines.read().expect("readable") {
                more if more.is_empty() => return all,
                more => all.extend(more),
            }
        }
    }

    #[test]
    fn the_last_lines_whatever_the_files_length() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        for count in [0_usize, 1, 2, 5, 50_000] {
            for complete in [true, false] {
                let mut content: Vec<String> = (0..count).map(|number| format!("line {number}")).collect();
                let mut text = content.iter().map(|line| format!("{line}\r\n")).collect::<String>();
                if !complete {
                    text.push_str("no end");
                    content.push("no end".into());
                }
                std::fs::write(&path, text).expect("written");
                for last in [0_usize, 1, 3, 49_999, 100_000] {
                    let mut lines = Lines::open(path.clone(), last as u64).expect("opened");
                    let mut seen = all(&mut lines);
                    seen.extend(lines.rest());
                    assert_eq!(seen, content[content.len().saturating_sub(last)..], "{count} {complete} {last}");
                }
            }
        }
    }

    #[test]
    fn what_was_given_back_of_a_long_log_is_passed_over() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let line = |number: u32| format!("line {number:09}");
        let text: String = (0..100_000).map(|number| line(number) + "\n").collect();
        std::fs::write(&path, &text).expect("written");
        let mut slow = Lines::open(path.clone(), 1_000_000).expect("opened");
        assert_eq!(slow.read().expect("readable")[0], line(0));
        let file = File::options().write(true).open(&path).expect("opened");
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, flags, 0, 1 << 20).expect("a file system with holes");
        for mut lines in [slow, Lines::open(path.clone(), 1_000_000).expect("opened")] {
            let seen = all(&mut lines);
            // The first one begins where the hole ends.
            assert!(seen.iter().all(|line| !line.contains('\0')) && seen.len() > 20_000, "{}", seen.len());
            assert_eq!((seen[1].len(), seen.last()), (14, Some(&line(99_999))));
        }
        let mut last = Lines::open(path, 2).expect("opened");
        assert_eq!(all(&mut last), [line(99_998), line(99_999)]);
    }

    #[tokio::test]
    async fn what_is_written_later_comes_later_also_when_the_file_is_new_or_emptied() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let follower = Follower::new(dir.path()).expect("watched");
        let mut lines = Lines::open(path.clone(), 10).expect("it need not be there");
        assert_eq!(all(&mut lines), [""; 0]);

        let mut file = File::create(&path).expect("created");
        file.write_all(b"one\ntw").expect("written");
        follower.changed().await.expect("woken");
        assert_eq!(all(&mut lines), ["one"]);

        file.write_all(b"o\n").expect("written");
        follower.changed().await.expect("woken");
        assert_eq!(all(&mut lines), ["two"]);

        file.set_len(0).expect("emptied");
        file.rewind().expect("at its beginning");
        file.write_all(b"3\n").expect("written");
        follower.changed().await.expect("woken");
        assert_eq!(all(&mut lines), ["3"]);

        std::fs::write(dir.path().join("new"), "four\n").expect("written");
        std::fs::rename(dir.path().join("new"), &path).expect("replaced");
        follower.changed().await.expect("woken");
        assert_eq!(all(&mut lines), ["four"]);
    }
}
