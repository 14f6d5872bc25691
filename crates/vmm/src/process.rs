//! A VMM as a process of the host: started in a session of its own, watched and ended by pidfd,
//! found again by pid, start time and boot.
//!
//! A pid alone names nobody: it is used again. Whoever holds a pidfd that was checked against the
//! recorded start time holds that process and no other.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hearth_model::capacity::free_bytes;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::cgroup::{self, Cgroup};
use crate::spec::{VMM_ERRORS, VMM_LOG};
use crate::sys;

/// What tells our VMMs from other programs: QEMU's `-name`, Firecracker's `--id`.
pub(crate) const NAME: &str = "hearth";

/// A killed process leaves at once, unless the kernel is stuck in I/O for it.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Nobody knows: it was not started by this process.
    Unknown,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => f.write_str("how is not known"),
        }
    }
}

/// The end of a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// How it ended.
    pub ended: Ended,
    /// The kernel killed it, or something that it had started, for want of memory; false also where
    /// nobody tells.
    pub out_of_memory: bool,
    /// It has said that its disk has no room, or it gave up on a disk that had none.
    pub disk_full: bool,
    /// The last lines of its log.
    pub log_tail: String,
}

impl Exit {
    pub(crate) fn unknown() -> Self {
        Self { ended: Ended::Unknown, out_of_memory: false, disk_full: false, log_tail: String::new() }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        let words = (!self.log_tail.is_empty()).then(|| format!("the VMM's last words: {}", self.log_tail));
        match (self.disk_full, words) {
            (true, Some(words)) => Some(format!("{FREE_SPACE}; {words}")),
            (true, None) => Some(FREE_SPACE.into()),
            (false, words) => words,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = if self.disk_full { "; its disk is full" } else { "" };
        write!(f, "{}{disk}", self.ended)
    }
}

/// What to do about a VMM that has found no room.
pub(crate) const FREE_SPACE: &str = "free space where the data directory is";

/// Whether a program says that a disk has no room: it has that from the kernel, whose words it keeps.
pub(crate) fn tells_of_a_full_disk(words: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"].iter().any(|text| words.contains(text))
}

/// Whether it ended because something went wrong for it.
fn gave_up(ended: Ended) -> bool {
    matches!(ended, Ended::Code(code) if code != 0)
}

/// Whether the disk of `dir` may have had no room for sockets and a few lines. Not every VMM says so.
fn is_full(dir: &Path) -> bool {
    const LITTLE: u64 = 1 << 20;
    rustix::fs::statvfs(dir).is_ok_and(|disk| {
        // Some file systems do not count their files.
        free_bytes(disk.f_blocks, disk.f_bavail, disk.f_frsize) < LITTLE || (disk.f_files > 0 && disk.f_favail == 0)
    })
}

/// A process to start.
#[derive(Debug)]
pub(crate) struct Program {
    /// Absolute path.
    pub path: PathBuf,
    /// What follows the program's name.
    pub args: Vec<OsString>,
    /// Its working directory.
    pub dir: PathBuf,
    /// Where its output goes.
    pub stdout: File,
    /// Where its complaints go.
    pub stderr: File,
    /// Its descriptors 3, 4, …
    pub fds: Vec<OwnedFd>,
    /// The network namespace it is started in; the daemon's where there is none.
    pub netns: Option<Arc<OwnedFd>>,
    /// The cgroup that it is started in; the daemon's where there is none.
    pub cgroup: Option<Cgroup>,
}

/// A VMM's process, watched by a task until its end. A clone is another handle on the same one.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub pid: u32,
    pub start_ticks: u64,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
    /// Its cgroup, which is removed after it.
    pub cgroup: Option<Arc<Path>>,
}

/// Starts the program. On return it is at most a moment before `exec`. When it fails, its cgroup is
/// gone too.
pub(crate) fn start(mut program: Program) -> io::Result<Process> {
    let cgroup = program.cgroup.take();
    match begin(&program, cgroup.as_ref()) {
        Ok((process, None)) => Ok(process),
        Ok((process, Some(refused))) => {
            tracing::warn!(pid = process.pid, error = %refused, "the VMM is in the daemon's cgroup");
            cgroup.into_iter().for_each(Cgroup::discard);
            Ok(process)
        }
        Err(error) => {
            cgroup.into_iter().for_each(Cgroup::discard);
            Err(error)
        }
    }
}

fn begin(program: &Program, cgroup: Option<&Cgroup>) -> io::Result<(Process, Option<io::Error>)> {
    let null = File::open("/dev/null")?;
    let wanted = [null.as_fd(), program.stdout.as_fd(), program.stderr.as_fd()]
        .into_iter()
        .chain(program.fds.iter().map(AsFd::as_fd));
    let floor = 3 + i32::try_from(program.fds.len()).unwrap_or(i32::MAX);
    let fds: Vec<OwnedFd> = wanted.map(|fd| sys::above(fd, floor)).collect::<io::Result<_>>()?;

    let c = |s: &OsStr| CString::new(s.as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    // The daemon's environment holds secrets that are none of a VMM's business.
    let env = ["PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "QEMU_MODULE_DIR"].iter().filter_map(|name| {
        let value = std::env::var_os(name)?;
        let mut line = OsString::from(format!("{name}="));
        line.push(value);
        Some(c(&line))
    });
    let sys::Spawned { pid, not_in_cgroup, stat: line } = sys::spawn(&sys::Spawn {
        argv: [c(program.path.as_os_str())]
            .into_iter()
            .chain(program.args.iter().map(|a| c(a)))
            .collect::<Result<_, _>>()?,
        program: c(program.path.as_os_str())?,
        env: env.collect::<Result<_, _>>()?,
        dir: c(program.dir.as_os_str())?,
        fds: fds.iter().map(AsFd::as_fd).collect(),
        netns: program.netns.as_deref().map(AsFd::as_fd),
        cgroup: cgroup.map(Cgroup::dir),
    })?;
    // Our own child, which nobody else waits for: its pid is its own until we have waited.
    let raw = raw_pid(pid)?;
    let watched = || {
        let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK)?;
        let stat = match parse_stat(&String::from_utf8_lossy(&line)) {
            Some(stat) => stat,
            None => stat(pid)?.ok_or_else(|| io::Error::other("a child that nobody waited for is gone"))?,
        };
        let inside = cgroup.filter(|_| not_in_cgroup.is_none()).map(|cgroup| cgroup.path().into());
        watch_end(pid, stat.start_ticks, pidfd, program.dir.clone(), inside)
    };
    let process = watched().inspect_err(|_| {
        // For instance no descriptor is left: then nobody would know of the child.
        let _ = rustix::process::kill_process(raw, Signal::KILL);
        let _ = rustix::process::waitpid(Some(raw), rustix::process::WaitOptions::empty());
    })?;
    Ok((process, not_in_cgroup))
}

/// Has the calling thread, and those that it starts, answer soon after they were woken, though guests keep
/// every CPU busy: else one that is woken on a guest's CPU may wait for the rest of that guest's slice, some
/// 3 ms. Linux has had this since 6.12; before, nothing changes. VMMs do not inherit it.
pub fn answer_promptly() -> io::Result<()> {
    /// The shortest that there is.
    const SLICE_NS: u64 = 100_000;
    sys::set_slice(SLICE_NS)
}

/// Starts a program that ends at once in a cgroup, to see whether that can be done.
pub(crate) fn try_in_cgroup(program: &Path, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let program = CString::new(program.as_os_str().as_bytes())?;
    let null = sys::above(File::options().read(true).write(true).open("/dev/null")?.as_fd(), 3)?;
    let started = sys::spawn(&sys::Spawn {
        argv: vec![program.clone()],
        program,
        env: Vec::new(),
        dir: c"/".to_owned(),
        fds: vec![null.as_fd(); 3],
        netns: None,
        cgroup: Some(cgroup),
    })?;
    rustix::process::waitpid(Some(raw_pid(started.pid)?), rustix::process::WaitOptions::empty())?;
    started.not_in_cgroup.map_or(Ok(()), Err)
}

/// Finds a process again. `None`: looked, and it is not there any more. `cgroup` is where it may be.
pub(crate) fn find(
    pid: u32,
    start_ticks: u64,
    boot: &str,
    dir: &Path,
    cgroup: Option<PathBuf>,
) -> io::Result<Option<Process>> {
    if boot != boot_id()? {
        return Ok(None);
    }
    let pidfd = match rustix::process::pidfd_open(raw_pid(pid)?, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match stat(pid)? {
        Some(stat) if stat.start_ticks == start_ticks && !stat.dead => {
            watch_end(pid, start_ticks, pidfd, dir.to_owned(), cgroup.map(Into::into)).map(Some)
        }
        _ => Ok(None),
    }
}

impl Process {
    /// Its end; already there when it has ended.
    pub(crate) fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        let mut exit = self.exit.clone();
        async move {
            let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            // The watching task only ends without a word when its runtime does.
            ended.unwrap_or_else(Exit::unknown)
        }
    }

    /// Ends it at once and waits until it is gone; already gone is success.
    pub(crate) async fn kill(&self) -> Result<(), KillProblem> {
        match rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(KillProblem::Signal(error.into())),
        }
        // Cancel-safe: only a receiver is dropped.
        match tokio::time::timeout(KILL_DEADLINE, self.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(KillProblem::Lingers(KILL_DEADLINE)),
        }
    }
}

/// Why a process is still there.
#[derive(Debug)]
pub(crate) enum KillProblem {
    Signal(io::Error),
    Lingers(Duration),
}

fn watch_end(
    pid: u32,
    start_ticks: u64,
    pidfd: OwnedFd,
    dir: PathBuf,
    cgroup: Option<Arc<Path>>,
) -> io::Result<Process> {
    let pidfd = Arc::new(pidfd);
    let (tell, exit) = watch::channel(None);
    let ready = sys::watched(Arc::clone(&pidfd))?;
    let its_cgroup = cgroup.clone();
    // Ends with the process; holding the pidfd, it also keeps it from staying a zombie.
    tokio::spawn(async move {
        let ended = match ready.readable().await {
            Ok(_) => reap(&ready),
            Err(_) => Ended::Unknown,
        };
        let log_tail = last_words(&dir);
        let disk_full = tells_of_a_full_disk(&log_tail) || (gave_up(ended) && is_full(&dir));
        // Whoever is told of the end removes the cgroup.
        let out_of_memory = its_cgroup.is_some_and(|path| cgroup::ran_out_of_memory(&path));
        tracing::debug!(pid, %ended, out_of_memory, disk_full, "VMM process ended");
        let _ = tell.send(Some(Exit { ended, out_of_memory, disk_full, log_tail }));
    });
    Ok(Process { pid, start_ticks, pidfd, exit, cgroup })
}

fn reap(pidfd: &AsyncFd<Arc<OwnedFd>>) -> Ended {
    let fd = pidfd.get_ref().as_fd();
    match rustix::process::waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Code(code),
            (None, Some(signal)) => Ended::Signal(signal),
            (None, None) => Ended::Unknown,
        },
        // Not our child: adopted.
        _ => Ended::Unknown,
    }
}

/// One line of `/proc/PID/stat`.
#[derive(Debug)]
pub(crate) struct Stat {
    /// Clock ticks since the host's boot.
    pub start_ticks: u64,
    /// Clock ticks of CPU, user and system.
    pub cpu_ticks: u64,
    /// Ended, and not waited for.
    pub dead: bool,
}

/// `None`: there is no such process.
pub(crate) fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    parse_stat(&String::from_utf8_lossy(&text))
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the line in stat is not understood"))
}

/// Whether reading below `/proc/PID` says that the process is not there.
pub(crate) fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The second field is the program's name in parentheses, and may itself contain `) `.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |nth: usize| fields.get(nth - 3)?.parse::<u64>().ok();
    Some(Stat {
        dead: matches!(*fields.first()?, "Z" | "X"),
        cpu_ticks: number(14)? + number(15)?,
        start_ticks: number(22)?,
    })
}

/// This boot of the host: read once, for no process sees a second one.
pub(crate) fn boot_id() -> io::Result<String> {
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let read = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(KNOWN.get_or_init(|| read.trim().to_owned()).clone())
}

fn raw_pid(pid: u32) -> io::Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// What a VMM said last: in its log or, if it never came to have one, before.
fn last_words(dir: &Path) -> String {
    let log = tail(&dir.join(VMM_LOG));
    if log.is_empty() { tail(&dir.join(VMM_ERRORS)) } else { log }
}

/// The last lines of a log, on one line.
fn tail(path: &Path) -> String {
    const BYTES: i64 = 2048;
    const LINES: usize = 8;
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        if file.metadata()?.len() > BYTES.unsigned_abs() {
            file.seek(SeekFrom::End(-BYTES))?;
        }
        let mut bytes = Vec::new();
        file.take(BYTES.unsigned_abs()).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

/// What a process was started with.
pub(crate) fn arguments(pid: u32) -> io::Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline"))?;
    Ok(line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}

/// The processes with that working directory that were started as our VMMs are, and when.
pub(crate) fn with_cwd(dir: &Path) -> io::Result<Vec<(u32, u64)>> {
    let Ok(dir) = dir.canonicalize() else {
        // A directory that is not there is nobody's.
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        match fs::read_link(format!("/proc/{pid}/cwd")) {
            Ok(cwd) if cwd == dir => {}
            Ok(_) => continue,
            Err(error) if gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(error) => return Err(error),
        }
        // Someone's shell may stand in the directory too.
        let args = arguments(pid).unwrap_or_default();
        let ours = |pair: &[String]| (pair[0] == "-name" || pair[0] == "--id") && pair[1] == NAME;
        if args.windows(2).any(ours)
            && let Some(stat) = stat(pid)?
        {
            found.push((pid, stat.start_ticks));
        }
    }
    Ok(found)
}

/// The program of that path or, for a bare name, found in `PATH`: there once, and again when what
/// was found is gone.
pub(crate) fn look_up(program: &Path) -> Option<PathBuf> {
    static FOUND: Mutex<BTreeMap<PathBuf, PathBuf>> = Mutex::new(BTreeMap::new());
    if program.as_os_str().as_bytes().contains(&b'/') {
        return runs(program).then(|| std::path::absolute(program).ok()).flatten();
    }
    let known = || FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(program).filter(|found| runs(found)) {
        return Some(found.clone());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from_vec(b"/usr/bin:/bin".to_vec()));
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|found| runs(found))?;
    known().insert(program.to_owned(), found.clone());
    Some(found)
}

fn runs(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_program_named_like_a_stat_line_is_still_read() {
        let line = "42 (a) R 1 (b)) S 1 42 42 0 -1 4194560 9 0 0 0 11 22 0 0 20 0 1 0 777 1000 5 18";
        let stat = parse_stat(line).expect("a stat line");
        assert_eq!((stat.cpu_ticks, stat.start_ticks, stat.dead), (33, 777, false));
        assert!(parse_stat("42 (a").is_none());
    }

    #[test]
    fn this_process_is_found_and_another_boot_s_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _in = runtime.enter();
        let me = std::process::id();
        let boot = boot_id().expect("a boot id");
        let ticks = stat(me).expect("stat").expect("this process").start_ticks;
        let at = |ticks, boot: &str| find(me, ticks, boot, Path::new("/"), None).expect("could look").is_some();
        assert!(at(ticks, &boot));
        assert!(!at(ticks + 1, &boot), "the same pid, used again");
        assert!(!at(ticks, "another boot"));
    }

    #[tokio::test]
    async fn a_full_disk_is_known_by_the_kernel_s_words() {
        for (line, full) in [
            ("echo 'bind: No space left on device (os error 28)' >&2; exit 1", true),
            ("echo 'no space for you' >&2; exit 1", false),
            ("exit 1", false),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let exit = start(shell(dir.path(), line)).expect("a shell starts").exited().await;
            assert_eq!((exit.ended, exit.disk_full), (Ended::Code(1), full), "{line}");
            let says = exit.hint().is_some_and(|hint| hint.contains(FREE_SPACE));
            assert_eq!((exit.to_string().contains("full"), says), (full, full), "{exit}");
        }
    }

    /// A shell that runs a line with its output in `out`.
    pub(crate) fn shell(dir: &Path, line: &str) -> Program {
        let open = |name| File::create(dir.join(name)).expect("made");
        Program {
            path: "/bin/sh".into(),
            args: ["-c", line].map(OsString::from).into(),
            dir: dir.to_owned(),
            stdout: open("out"),
            stderr: open(VMM_ERRORS),
            fds: Vec::new(),
            netns: None,
            cgroup: None,
        }
    }

    async fn said(dir: &Path, process: &Process) -> String {
        let exit = process.exited().await;
        assert_eq!(exit.ended, Ended::Code(0), "{}", exit.log_tail);
        fs::read_to_string(dir.join("out")).expect("its output")
    }

    #[tokio::test]
    async fn a_program_begins_with_a_session_signals_and_descriptors_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path();
        let mut program =
            shell(dir, "pwd; cut -d ' ' -f 6 /proc/self/stat; echo $$; grep Sig /proc/self/status; cat <&3");
        fs::write(dir.join("third"), "the third\n").expect("written");
        program.fds.push(File::open(dir.join("third")).expect("opened").into());
        let process = start(program).expect("a shell starts");
        let said = said(dir, &process).await;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(Path::new(lines[0]), dir.canonicalize().expect("it is there"));
        assert_eq!(lines[1], process.pid.to_string(), "its session");
        assert_eq!(lines[2], process.pid.to_string());
        let set = |name: &str| {
            let line = lines.iter().find_map(|line| line.strip_prefix(name)).expect("a set of signals");
            u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("a mask")
        };
        assert_eq!(set("SigBlk"), 0);
        // Rust's runtime ignores it; nobody told the child to.
        assert_eq!(set("SigIgn") & 1 << (Signal::PIPE.as_raw() - 1), 0, "{said}");
        assert_eq!(lines.last(), Some(&"the third"));
    }

    #[tokio::test]
    async fn a_vmm_is_known_by_its_start_and_short_slices_are_the_daemon_s_alone() {
        let slice = |of| sys::tests::slice(of).expect("the kernel tells");
        let of_this_thread = move || slice(0);
        let usual = of_this_thread();
        answer_promptly().expect("everybody may");
        if usual == 0 {
            eprintln!("skipped: this kernel has one slice for all");
            return;
        }
        let short = of_this_thread();
        assert!(short < usual, "{short} of {usual} ns");
        assert_eq!(std::thread::spawn(of_this_thread).join().expect("it ends"), short, "a thread of ours");
        let dir = tempfile::tempdir().expect("a directory");
        let process = start(shell(dir.path(), "exec sleep 60")).expect("a shell starts");
        assert_eq!(slice(process.pid), usual, "a VMM");
        let stat = stat(process.pid).expect("could look").expect("it sleeps");
        assert_eq!(stat.start_ticks, process.start_ticks);
        process.kill().await.expect("ends");
    }

    #[tokio::test]
    async fn what_cannot_be_started_leaves_no_child_and_the_reason() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut program = shell(dir.path(), "true");
        program.path = dir.path().join("not-there");
        assert_eq!(start(program).expect_err("no such program").kind(), io::ErrorKind::NotFound);
        let mut program = shell(dir.path(), "true");
        program.netns = Some(Arc::new(File::open("/dev/null").expect("it is there").into()));
        let error = start(program).expect_err("that is no namespace");
        assert_eq!(error.to_string(), "enter its network namespace");
        // Whoever waits for any child finds none of these: other tests have theirs, of other names.
        let children = fs::read_to_string("/proc/thread-self/children").expect("this thread's children");
        assert_eq!(children, "");
    }

    #[tokio::test]
    async fn a_program_is_started_in_the_network_namespace_it_is_given() {
        let netns = match sys::tests::new_netns() {
            Ok(netns) => Arc::new(netns),
            Err(error) => return println!("SKIPPED: no network namespace can be made here: {error}"),
        };
        let dir = tempfile::tempdir().expect("a directory");
        let name = |fd: &OwnedFd| format!("net:[{}]", rustix::fs::fstat(fd).expect("stat").st_ino);
        let ours = || fs::read_link("/proc/thread-self/ns/net").expect("ours").to_string_lossy().into_owned();
        let before = ours();
        let program = Program { netns: Some(Arc::clone(&netns)), ..shell(dir.path(), "readlink /proc/self/ns/net") };
        let process = start(program).expect("a shell starts");
        assert_eq!(said(dir.path(), &process).await.trim(), name(&netns));
        assert_eq!(ours(), before, "the thread that started it is where it was");
        assert_ne!(before, name(&netns));
    }

    #[tokio::test]
    async fn a_program_is_started_in_the_cgroup_it_is_given() {
        let dir = tempfile::tempdir().expect("a directory");
        let cgroups = crate::Cgroups::of(dir.path());
        if let Err(why) = cgroups.parent() {
            return println!("SKIPPED: no cgroups here: {why}");
        }
        let program = Program {
            cgroup: cgroups.make(dir.path()),
            netns: sys::tests::new_netns().ok().map(Arc::new),
            ..shell(dir.path(), "grep ^0: /proc/self/cgroup")
        };
        let process = start(program).expect("a shell starts");
        let said = said(dir.path(), &process).await;
        let path = cgroups.path(dir.path()).expect("a name");
        assert!(path.ends_with(said.trim().trim_start_matches("0::/")), "{said} is not {path:?}");
        cgroups.remove(dir.path()).await.expect("removed");
        assert!(!path.exists());
    }

    /// The end of a VMM is to be known within 100 ms. Whatever else the machine does may make one of
    /// several late.
    #[tokio::test]
    async fn an_end_is_known_when_it_comes_with_its_signal() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut soonest = Duration::MAX;
        for _ in 0..5 {
            let process = start(shell(dir.path(), "exec sleep 60")).expect("a shell starts");
            let pid = raw_pid(process.pid).expect("a pid");
            let began = std::time::Instant::now();
            rustix::process::kill_process(pid, Signal::SEGV).expect("signalled");
            let exit = process.exited().await;
            soonest = soonest.min(began.elapsed());
            assert_eq!(exit.ended, Ended::Signal(Signal::SEGV.as_raw()));
            assert!(!exit.out_of_memory);
        }
        assert!(soonest < Duration::from_millis(100), "{soonest:?}");
    }

    #[tokio::test]
    async fn an_oom_kill_is_told_with_the_end() {
        let dir = tempfile::tempdir().expect("a directory");
        // As the kernel would have left it.
        let cgroup = dir.path().join("cgroup");
        fs::create_dir(&cgroup).expect("made");
        fs::write(cgroup.join("memory.events"), "oom 1\noom_kill 1\n").expect("written");
        let process = start(shell(dir.path(), "exec sleep 60")).expect("a shell starts");
        let boot = boot_id().expect("a boot id");
        let found = find(process.pid, process.start_ticks, &boot, dir.path(), Some(cgroup)).expect("could look");
        process.kill().await.expect("ended");
        assert!(found.expect("it is there").exited().await.out_of_memory);
        assert!(!process.exited().await.out_of_memory, "nobody tells where there is no cgroup");
    }

    #[test]
    fn only_what_can_be_run_is_a_program() {
        assert!(look_up(Path::new("sh")).is_some());
        let text = tempfile::NamedTempFile::new().expect("a file");
        assert!(look_up(text.path()).is_none());
        assert!(look_up(Path::new("no-such-program-here")).is_none());
    }
}
