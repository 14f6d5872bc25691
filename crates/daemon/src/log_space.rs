//! Keeps the logs of instances short: a guest that floods its console must not fill the host's disk.
//!
//! VMMs write their logs themselves, also while no daemon runs, so nothing stands between a guest and
//! the file. A thread of its own looks at the files instead, and gives the head of one that has grown
//! too long back to the file system, in place: whoever writes or reads it goes on where it was, and what
//! is kept lost nothing. Such a file is as long as before, and begins with a hole.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use hearth_vmm::{SERIAL_LOG, VMM_ERRORS, VMM_LOG};
use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, open};
use rustix::io::Errno;
use tracing::{debug, warn};

use crate::paths::HEARTH_LOG;

/// The logs of an instance: of its guest, its VMM and what was done to it.
const LOGS: [&str; 4] = [SERIAL_LOG, VMM_LOG, VMM_ERRORS, HEARTH_LOG];
/// So often it is looked at them. A serial port is slow: what comes in between is some MB.
const LOOK: Duration = Duration::from_secs(3);
/// The lowest priority there is.
const NICE: i32 = 19;
/// File systems give back whole blocks; no usual one has larger ones.
const BLOCK: u64 = 64 << 10;

/// The thread that does it. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct LogSpace {
    _ends: Sender<()>,
}

impl LogSpace {
    /// `most`: bytes on the disk that one log may take.
    pub(crate) fn start(instances: PathBuf, most: u64) -> io::Result<Self> {
        let (ends, ended) = channel();
        std::thread::Builder::new().name("log-space".into()).spawn(move || work(&instances, most, &ended))?;
        Ok(Self { _ends: ends })
    }
}

fn work(instances: &Path, most: u64, ended: &Receiver<()>) {
    if let Err(error) = rustix::process::nice(NICE) {
        debug!(%error, "looking after logs at normal priority");
    }
    while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        look(instances, most);
    }
}

/// What cannot be looked at is looked at again the next time: it may just be made or removed.
fn look(instances: &Path, most: u64) {
    let Ok(dirs) = std::fs::read_dir(instances) else { return };
    for dir in dirs.flatten() {
        for log in LOGS.map(|log| dir.path().join(log)) {
            match shorten(&log, most) {
                Ok(0) => {}
                Ok(bytes) => debug!(log = %log.display(), bytes, "the head of a long log was given back"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn!(log = %log.display(), %error, "a log could not be kept short"),
            }
        }
    }
}

/// Gives back all but the last half of what a log may take, if it takes more: how many bytes.
fn shorten(log: &Path, most: u64) -> io::Result<u64> {
    let seen = std::fs::symlink_metadata(log)?;
    // What is counted is what the disk has of it: of a file that was cut before its length says nothing.
    if !seen.is_file() || seen.blocks() * 512 <= most {
        return Ok(0);
    }
    // Not through a link, should somebody have put one there meanwhile.
    let file = File::from(open(log, OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?);
    let head = seen.len().saturating_sub(most / 2) / BLOCK * BLOCK;
    if head == 0 {
        return Ok(0);
    }
    match fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, head) {
        Ok(()) => Ok((seen.blocks() * 512).saturating_sub(file.metadata()?.blocks() * 512)),
        // Then all of it goes: a console's writers append, and begin anew.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(0).map(|()| seen.len()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    const MOST: u64 = 1 << 20;

    #[test]
    fn a_guest_that_floods_its_console_keeps_the_last_lines_and_no_more() {
        let instances = tempfile::tempdir().expect("a directory");
        let dir = instances.path().join("web");
        std::fs::create_dir(&dir).expect("made");
        let log = dir.join(SERIAL_LOG);
        // As a VMM has it open.
        let mut console = File::options().append(true).create(true).open(&log).expect("opened");
        let taken = || std::fs::metadata(&log).expect("there").blocks() * 512;
        let mut said = 0;
        for round in 0..40 {
            let lines: String = (0..10_000).map(|line| format!("round {round} line {line} of a flood\n")).collect();
            console.write_all(lines.as_bytes()).expect("written");
            said += lines.len() as u64;
            look(instances.path(), MOST);
            assert!(taken() <= MOST, "{} bytes after round {round}", taken());
        }
        assert!(said > 8 * MOST);
        console.write_all(b"the last line\n").expect("written");
        let mut file = File::open(&log).expect("opened");
        file.seek(SeekFrom::End(-60)).expect("long enough");
        let mut end = String::new();
        file.read_to_string(&mut end).expect("text");
        assert!(end.ends_with("round 39 line 9999 of a flood\nthe last line\n"), "{end}");
    }

    #[test]
    fn a_short_log_and_what_is_no_file_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        std::fs::write(&log, "one\n").expect("written");
        assert_eq!(shorten(&log, MOST).expect("looked at"), 0);
        assert_eq!(std::fs::read(&log).expect("there"), b"one\n");
        assert_eq!(shorten(dir.path(), 0).expect("looked at"), 0);
        // A guest's directory may be gone by now.
        assert_eq!(shorten(&dir.path().join("gone"), MOST).expect_err("none").kind(), io::ErrorKind::NotFound);
        let victim = dir.path().join("victim");
        std::fs::write(&victim, vec![1; 3 << 20]).expect("written");
        std::os::unix::fs::symlink(&victim, dir.path().join("link")).expect("linked");
        assert_eq!(shorten(&dir.path().join("link"), MOST).expect("looked at"), 0, "a link is followed by nobody");
    }
}
