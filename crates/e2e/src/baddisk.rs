//! A disk that fails or is slow, without a device that does: the calls of a program that touch files are
//! held up by a filter of the kernel, and what happens to each is decided here.
//!
//! ```text
//!   program ─► call ─► held up ─► below the directory, and of that kind?  ─► EIO, or later
//!                                 otherwise, and whenever nothing is wrong ─► goes its way
//! ```
//! The filter belongs to the thread that loads it and to all that this thread starts, their children too:
//! so a thread of its own starts what shall have such a disk. Memory that is mapped is not touched by
//! calls, and never fails.

mod sys;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libc::{c_long, seccomp_notif};

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Of the calls of that kind, from the `first` on (1 is the first), one in `each` fails with EIO.
    Fails {
        /// Which.
        calls: Calls,
        /// Number of the first that fails.
        first: u64,
        /// 1: all of them, from there on.
        each: u64,
    },
    /// Every call that waits for the disk takes so much longer: all but those that read or write data, which
    /// the kernel has in memory.
    Slow {
        /// Milliseconds.
        ms: u64,
    },
}

/// Kinds of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calls {
    /// What reads data or names, or asks what is there.
    Reads,
    /// What writes data.
    Writes,
    /// What makes, moves and removes names.
    Names,
    /// What waits until it is on the disk.
    Syncs,
    /// All of them.
    All,
}

/// The part of a call that says which file it touches.
#[derive(Debug, Clone, Copy)]
enum At {
    /// A descriptor, in that argument.
    Fd(usize),
    /// A path, in that argument; relative to the working directory.
    Path(usize),
    /// A directory's descriptor and a path relative to it.
    DirPath(usize, usize),
}

/// The calls that touch files, each with what it is and where its object stands. `openat` is a name's if it
/// makes one.
const TABLE: &[(c_long, Calls, At)] = &[
    (libc::SYS_openat, Calls::Reads, At::DirPath(0, 1)),
    (libc::SYS_open, Calls::Reads, At::Path(0)),
    (libc::SYS_read, Calls::Reads, At::Fd(0)),
    (libc::SYS_readv, Calls::Reads, At::Fd(0)),
    (libc::SYS_pread64, Calls::Reads, At::Fd(0)),
    (libc::SYS_preadv, Calls::Reads, At::Fd(0)),
    (libc::SYS_getdents64, Calls::Reads, At::Fd(0)),
    (libc::SYS_stat, Calls::Reads, At::Path(0)),
    (libc::SYS_lstat, Calls::Reads, At::Path(0)),
    (libc::SYS_newfstatat, Calls::Reads, At::DirPath(0, 1)),
    (libc::SYS_statx, Calls::Reads, At::DirPath(0, 1)),
    (libc::SYS_readlink, Calls::Reads, At::Path(0)),
    (libc::SYS_readlinkat, Calls::Reads, At::DirPath(0, 1)),
    (libc::SYS_write, Calls::Writes, At::Fd(0)),
    (libc::SYS_writev, Calls::Writes, At::Fd(0)),
    (libc::SYS_pwrite64, Calls::Writes, At::Fd(0)),
    (libc::SYS_pwritev, Calls::Writes, At::Fd(0)),
    (libc::SYS_sendfile, Calls::Writes, At::Fd(0)),
    (libc::SYS_copy_file_range, Calls::Writes, At::Fd(2)),
    (libc::SYS_ioctl, Calls::Writes, At::Fd(0)),
    (libc::SYS_ftruncate, Calls::Writes, At::Fd(0)),
    (libc::SYS_fallocate, Calls::Writes, At::Fd(0)),
    (libc::SYS_mkdir, Calls::Names, At::Path(0)),
    (libc::SYS_mkdirat, Calls::Names, At::DirPath(0, 1)),
    (libc::SYS_rmdir, Calls::Names, At::Path(0)),
    (libc::SYS_unlink, Calls::Names, At::Path(0)),
    (libc::SYS_unlinkat, Calls::Names, At::DirPath(0, 1)),
    (libc::SYS_rename, Calls::Names, At::Path(1)),
    (libc::SYS_renameat, Calls::Names, At::DirPath(2, 3)),
    (libc::SYS_renameat2, Calls::Names, At::DirPath(2, 3)),
    (libc::SYS_link, Calls::Names, At::Path(1)),
    (libc::SYS_linkat, Calls::Names, At::DirPath(2, 3)),
    (libc::SYS_symlink, Calls::Names, At::Path(1)),
    (libc::SYS_symlinkat, Calls::Names, At::DirPath(1, 2)),
    (libc::SYS_fsync, Calls::Syncs, At::Fd(0)),
    (libc::SYS_fdatasync, Calls::Syncs, At::Fd(0)),
    (libc::SYS_sync_file_range, Calls::Syncs, At::Fd(0)),
    (libc::SYS_syncfs, Calls::Syncs, At::Fd(0)),
];
/// Of `ioctl` only those by which files share their blocks: `FICLONE`, `FICLONERANGE`.
const IOCTLS: &[u32] = &[0x4004_9409, 0x4020_940d];

/// A file by which a simulated VMM is told what to do wrong: that is not on the disk.
const OTHERS: &str = "simulated.json";

/// Starts programs whose disk may be bad.
#[derive(Debug)]
pub(crate) struct BadDisk {
    state: Arc<Mutex<State>>,
    start: Sender<(Command, Sender<io::Result<Child>>)>,
}

#[derive(Debug, Default)]
struct State {
    /// What is wrong, and where.
    wrong: Option<(DiskFault, PathBuf)>,
    /// How many calls of that kind there were since then.
    seen: u64,
    /// How many failed or were late.
    hit: u64,
}

impl BadDisk {
    /// A disk with which nothing is wrong yet.
    ///
    /// # Errors
    /// The kernel does not let the filter be loaded.
    pub(crate) fn new() -> Result<Self> {
        let state: Arc<Mutex<State>> = Arc::default();
        let (start, starts) = channel();
        let (loaded, was_loaded) = channel();
        thread::Builder::new().name("bad-disk-start".into()).spawn(move || {
            let calls: Vec<c_long> =
                TABLE.iter().map(|(call, ..)| *call).filter(|call| *call != libc::SYS_ioctl).collect();
            // From here on this thread waits for the other one with every call that touches a file.
            let held = sys::hold_up(&calls, IOCTLS);
            let is_loaded = held.is_ok();
            loaded.send(held).ok();
            if is_loaded {
                start_all(&starts);
            }
        })?;
        let held = was_loaded.recv().context("a thread that starts programs")?;
        let held = Arc::new(held.context("load a filter of system calls")?);
        let (later, late) = channel();
        thread::Builder::new().name("bad-disk-late".into()).spawn({
            let held = Arc::clone(&held);
            move || let_go_later(&held, &late)
        })?;
        thread::Builder::new().name("bad-disk".into()).spawn({
            let state = Arc::clone(&state);
            move || decide_all(&held, &state, &later)
        })?;
        Ok(Self { state, start })
    }

    /// Starts a program with this disk.
    pub(crate) fn spawn(&self, command: Command) -> io::Result<Child> {
        let (child, started) = channel();
        self.start.send((command, child)).map_err(io::Error::other)?;
        started.recv().map_err(io::Error::other)?
    }

    /// Something is wrong below that directory from now on, or nothing any more. Returns how many calls the
    /// fault before has hit.
    pub(crate) fn set(&self, wrong: Option<(DiskFault, PathBuf)>) -> u64 {
        let mut state = lock(&self.state);
        let hit = state.hit;
        *state = State { wrong, ..State::default() };
        hit
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start_all(starts: &Receiver<(Command, Sender<io::Result<Child>>)>) {
    for (mut command, child) in starts {
        // Who has asked waits for it.
        child.send(command.spawn()).ok();
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Goes,
    Fails,
    Waits(Duration),
}

fn decide_all(held: &OwnedFd, state: &Mutex<State>, later: &Sender<(Instant, u64)>) {
    loop {
        let call = match sys::take(held) {
            Ok(call) => call,
            // Who has called was killed, or called for a signal.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Interrupted) => continue,
            Err(error) => {
                eprintln!("calls are held up no more: {error}");
                return;
            }
        };
        let errno = match decide(&call, state) {
            Fate::Goes => None,
            Fate::Fails => Some(libc::EIO),
            Fate::Waits(time) => {
                later.send((Instant::now() + time, call.id)).ok();
                continue;
            }
        };
        // Who has called may be gone.
        sys::answer(held, call.id, errno).ok();
    }
}

/// All of a fault wait for the same time: the first to come is the first to go.
fn let_go_later(held: &OwnedFd, late: &Receiver<(Instant, u64)>) {
    for (due, id) in late {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        sys::answer(held, id, None).ok();
    }
}

fn decide(call: &seccomp_notif, state: &Mutex<State>) -> Fate {
    let Some((fault, dir)) = lock(state).wrong.clone() else { return Fate::Goes };
    let of = TABLE.iter().find(|(number, ..)| *number == c_long::from(call.data.nr));
    let Some((number, kind, at)) = of else { return Fate::Goes };
    let kind = if makes_a_name(*number, call) { Calls::Names } else { *kind };
    let wanted = match fault {
        DiskFault::Fails { calls, .. } => calls == Calls::All || calls == kind,
        DiskFault::Slow { .. } => kind == Calls::Syncs || !matches!(at, At::Fd(_)),
    };
    let is_there = |object: PathBuf| object.starts_with(&dir) && !object.ends_with(OTHERS);
    if !wanted || !object(call, *at).is_some_and(is_there) {
        return Fate::Goes;
    }
    let mut state = lock(state);
    // It may have been mended meanwhile.
    if state.wrong.is_none() {
        return Fate::Goes;
    }
    state.seen += 1;
    let fate = match fault {
        DiskFault::Slow { ms } => Fate::Waits(Duration::from_millis(ms)),
        DiskFault::Fails { first, each, .. } if fails(state.seen, first, each) => Fate::Fails,
        DiskFault::Fails { .. } => Fate::Goes,
    };
    state.hit += u64::from(fate != Fate::Goes);
    fate
}

/// Whether the call of that number fails.
fn fails(nth: u64, first: u64, each: u64) -> bool {
    nth >= first && (nth - first).is_multiple_of(each)
}

fn makes_a_name(number: c_long, call: &seccomp_notif) -> bool {
    let flags = match number {
        libc::SYS_openat => call.data.args[2],
        libc::SYS_open => call.data.args[1],
        _ => return false,
    };
    flags & u64::from(libc::O_CREAT.unsigned_abs()) != 0
}

/// The file that a call touches; `None` if that cannot be seen, or it is none.
fn object(call: &seccomp_notif, at: At) -> Option<PathBuf> {
    let proc = PathBuf::from(format!("/proc/{}", call.pid));
    // Descriptors are passed as 32 bits.
    let fd = |nth: usize| i32::try_from(call.data.args[nth] & 0xffff_ffff).ok().or(Some(libc::AT_FDCWD));
    let opened = |fd: i32| match fd {
        libc::AT_FDCWD => fs::read_link(proc.join("cwd")).ok(),
        fd => fs::read_link(proc.join("fd").join(fd.to_string())).ok(),
    };
    match at {
        At::Fd(nth) => opened(fd(nth)?),
        At::Path(nth) => below(opened(libc::AT_FDCWD), &text(&proc, call.data.args[nth])?),
        At::DirPath(dir, nth) => below(opened(fd(dir)?), &text(&proc, call.data.args[nth])?),
    }
}

fn below(dir: Option<PathBuf>, path: &Path) -> Option<PathBuf> {
    if path.is_absolute() { Some(path.to_owned()) } else { Some(dir?.join(path)) }
}

/// The path at that address of a process.
fn text(proc: &Path, address: u64) -> Option<PathBuf> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let memory = File::open(proc.join("mem")).ok()?;
    let mut bytes = [0; 4096];
    // Less than that may be mapped.
    let read = memory.read_at(&mut bytes, address).ok()?;
    let end = bytes[..read].iter().position(|byte| *byte == 0)?;
    Some(PathBuf::from(OsStr::from_bytes(&bytes[..end])))
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    /// What a shell says and how it ends, on a disk with that fault below its directory.
    fn sh(disk: &BadDisk, dir: &Path, script: &str) -> (bool, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = disk.spawn(command).and_then(Child::wait_with_output).expect("a shell");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn calls_of_that_kind_fail_below_the_directory_alone_and_until_it_is_mended() {
        let disk = match BadDisk::new() {
            Ok(disk) => disk,
            Err(error) => {
                assert!(std::env::var_os("HEARTH_TEST_MUST_RUN").is_none(), "cannot run here: {error:#}");
                eprintln!("SKIPPED: a disk that fails: {error:#}");
                return;
            }
        };
        let (bad, good) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let (inside, outside) = (bad.path(), good.path());
        assert_eq!(sh(&disk, inside, "echo a > a"), (true, String::new()), "nothing is wrong yet");

        let all = |calls| Some((DiskFault::Fails { calls, first: 1, each: 1 }, inside.to_owned()));
        disk.set(all(Calls::Writes));
        let (went, told) = sh(&disk, inside, "echo b > b");
        assert!(!went && (told.contains("I/O error") || told.contains("Input/output error")), "{told}");
        assert_eq!(sh(&disk, inside, "cat a"), (true, String::new()), "what is there is read");
        assert_eq!(sh(&disk, outside, "echo b > b"), (true, String::new()));
        assert!(disk.set(all(Calls::Reads)) > 0);
        assert!(!sh(&disk, inside, "cat a").0);
        disk.set(all(Calls::Names));
        assert!(!sh(&disk, inside, "mv a c || rm a || mkdir d || echo e > e").0);
        assert!(!sh(&disk, outside, &format!("mv b {}", inside.join("b").display())).0, "by its whole path");
        disk.set(None);
        assert_eq!(sh(&disk, inside, "mv a c && cat c"), (true, String::new()), "it works again");

        disk.set(Some((DiskFault::Slow { ms: 50 }, inside.to_owned())));
        let began = Instant::now();
        assert!(sh(&disk, inside, "cat c").0);
        assert!(began.elapsed() >= Duration::from_millis(100), "it was opened and read");
        assert!(disk.set(None) >= 2);
        assert!(sh(&disk, inside, "cat c").0 && disk.set(None) == 0, "it is mended");
    }

    #[test]
    fn from_the_first_on_one_in_so_many_fails() {
        let failing = |first, each| (1..=8).filter(|nth| fails(*nth, first, each)).collect::<Vec<_>>();
        assert_eq!(failing(1, 1), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(failing(6, 1), [6, 7, 8]);
        assert_eq!(failing(2, 3), [2, 5, 8]);
    }
}
