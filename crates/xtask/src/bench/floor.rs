//! The floor: QEMU driven by a minimal client.
//!
//! In: the arguments of a VMM that the product started, and a directory with what it reads. Out: a
//! guest whose agent has answered, and the moments on the way. The devices are the product's; the
//! client is none of its code: it blocks, it checks nothing, it keeps no record.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::{Value, json};

use crate::bench::guest;
use crate::bench::qmp::Qmp;

/// How the product started a VMM.
#[derive(Debug, Clone)]
pub struct Arguments {
    pub(super) words: Vec<String>,
}

/// A VMM, killed when it is dropped.
#[derive(Debug)]
pub struct Floor {
    child: Child,
    qmp: Qmp,
}

/// From the start of QEMU.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// It greets.
    pub up: Duration,
    /// The device state is loaded.
    pub loaded: Duration,
    /// The vCPUs run.
    pub resumed: Duration,
    /// The agent has answered.
    pub answered: Duration,
}

/// One at a time: a descriptor meant for one QEMU must not be inherited by another.
static STARTING: Mutex<()> = Mutex::new(());

impl Arguments {
    /// Of a running VMM.
    pub fn of(pid: u32) -> Result<Self> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).with_context(|| format!("look at process {pid}"))?;
        let text = String::from_utf8(line).context("read a command line")?;
        let words: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
        ensure!(!words.is_empty(), "process {pid} has no command line");
        Ok(Self { words })
    }

    /// With our descriptors in the places of the product's.
    fn with(&self, qmp: BorrowedFd<'_>, agent: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Vec<String>> {
        let mut words = self.words.clone();
        for (prefix, place, fd) in [
            ("socket,id=qmp,", "fd=", qmp),
            ("socket,id=agent,", "fd=", agent),
            ("memory-backend-file,", "mem-path=/proc/self/fd/", memory),
        ] {
            let word = words.iter_mut().find(|word| word.starts_with(prefix));
            let word = word.with_context(|| format!("the product starts QEMU without {prefix}"))?;
            let (before, rest) = word.split_once(place).with_context(|| format!("there is no {place} in {word}"))?;
            let after = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            *word = format!("{before}{place}{}{after}", fd.as_raw_fd());
        }
        Ok(words)
    }
}

impl Floor {
    /// Loads what is in `dir` (`memory.base`, `vmstate`, `disks/`) and waits for the agent.
    pub fn load(arguments: &Arguments, dir: &Path) -> Result<(Self, Moments)> {
        let memory = open(&dir.join("memory.base"))?;
        let state = open(&dir.join("vmstate"))?;
        let began = Instant::now();
        let (mut floor, agent) = Self::start(arguments, dir, &memory, Some(&state))?;
        let up = began.elapsed();
        floor.report_migrations()?;
        floor.qmp.run("migrate-incoming", json!({ "uri": format!("fd:{}", state.as_raw_fd()) }))?;
        floor.qmp.migrated()?;
        let loaded = began.elapsed();
        floor.qmp.run("cont", Value::Null)?;
        let resumed = began.elapsed();
        guest::ping(agent)?;
        Ok((floor, Moments { up, loaded, resumed, answered: began.elapsed() }))
    }

    /// Boots what is in `dir` (`disks/`) with that much memory, and waits for the agent.
    pub fn boot(arguments: &Arguments, dir: &Path, memory_bytes: u64) -> Result<Self> {
        let path = dir.join("memory");
        let memory = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let memory = memory.with_context(|| format!("make {}", path.display()))?;
        memory.set_len(memory_bytes).with_context(|| format!("make {} large enough", path.display()))?;
        let (mut floor, agent) = Self::start(arguments, dir, &memory, None)?;
        floor.report_migrations()?;
        guest::ping(agent)?;
        Ok(floor)
    }

    /// Stops the guest, saves its devices to `file` with its RAM left where it is, and lets it go
    /// on; how long it took until it was saved.
    pub fn save(&mut self, file: &Path) -> Result<Duration> {
        let ignore_shared = [capability("x-ignore-shared", true), capability("events", true)];
        self.qmp.run("migrate-set-capabilities", json!({ "capabilities": ignore_shared }))?;
        let file = File::create(file).with_context(|| format!("make {}", file.display()))?;
        self.qmp.give_file("state", file.as_fd())?;
        let began = Instant::now();
        self.qmp.run("stop", Value::Null)?;
        self.qmp.run("migrate", json!({ "uri": "fd:state" }))?;
        self.qmp.migrated()?;
        let took = began.elapsed();
        // QEMU says "completed" a moment before it is ready to go on; nobody's time is taken here.
        while self.qmp.run("query-status", Value::Null)?["status"] == "finish-migrate" {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.qmp.run("cont", Value::Null)?;
        Ok(took)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn report_migrations(&mut self) -> Result<()> {
        self.qmp.run("migrate-set-capabilities", json!({ "capabilities": [capability("events", true)] })).map(drop)
    }

    fn start(arguments: &Arguments, dir: &Path, memory: &File, state: Option<&File>) -> Result<(Self, UnixStream)> {
        let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let place = open(dir)?;
        let qmp = listen(&place, "qmp.sock")?;
        let agent = listen(&place, "agent.sock")?;
        let mut inherited = vec![qmp.as_fd(), agent.as_fd(), memory.as_fd()];
        inherited.extend(state.map(AsFd::as_fd));
        let words = arguments.with(qmp.as_fd(), agent.as_fd(), memory.as_fd())?;
        keep_on_exec(&inherited, true)?;
        let child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("vmm.log")).context("make vmm.log")?)
            .spawn();
        keep_on_exec(&inherited, false)?;
        drop(_one);
        let child = child.with_context(|| format!("start {}", words[0]))?;
        let connect =
            |name: &str| UnixStream::connect(short(&place, name)).with_context(|| format!("connect to {name}"));
        let (to_qmp, to_agent) = (connect("qmp.sock")?, connect("agent.sock")?);
        let mut unfinished = Reaper(Some(child));
        let qmp = Qmp::greet(to_qmp).with_context(|| {
            format!("QEMU says: {}", fs::read_to_string(dir.join("vmm.log")).unwrap_or_default().trim())
        })?;
        let child = unfinished.0.take().context("a child that was just started")?;
        Ok((Self { child, qmp }, to_agent))
    }
}

/// Ends a child unless it was taken out.
struct Reaper(Option<Child>);

impl Drop for Reaper {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn capability(name: &str, state: bool) -> Value {
    json!({ "capability": name, "state": state })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

fn listen(place: &File, name: &str) -> Result<UnixListener> {
    let path = short(place, name);
    fs::remove_file(&path).ok();
    UnixListener::bind(&path).with_context(|| format!("listen at {name}"))
}

/// A socket's address holds 107 bytes of path, and a checkout may lie deeper.
pub(super) fn short(place: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", place.as_raw_fd()))
}

fn keep_on_exec(fds: &[BorrowedFd<'_>], keep: bool) -> Result<()> {
    let flags = if keep { FdFlags::empty() } else { FdFlags::CLOEXEC };
    fds.iter().try_for_each(|fd| fcntl_setfd(fd, flags)).context("say what QEMU inherits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_descriptors_take_the_places_of_the_product_s() {
        let arguments = Arguments {
            words: [
                "qemu",
                "-object",
                "memory-backend-file,id=ram,share=off,size=256M,mem-path=/proc/self/fd/5",
                "-chardev",
                "socket,id=qmp,fd=3,server=on,wait=off",
                "-chardev",
                "socket,id=agent,fd=4,server=on,wait=off",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        let file = File::open("/dev/null").expect("it is there");
        let words = arguments.with(file.as_fd(), file.as_fd(), file.as_fd()).expect("all there");
        let fd = file.as_raw_fd();
        assert_eq!(words[2], format!("memory-backend-file,id=ram,share=off,size=256M,mem-path=/proc/self/fd/{fd}"));
        assert_eq!(words[4], format!("socket,id=qmp,fd={fd},server=on,wait=off"));
        assert_eq!(words[6], format!("socket,id=agent,fd={fd},server=on,wait=off"));
        let other = Arguments { words: vec!["qemu".into()] };
        assert!(other.with(file.as_fd(), file.as_fd(), file.as_fd()).is_err());
    }
}
