//! The floor: Firecracker driven by a minimal client.
//!
//! In: the arguments of a process that the product started, and a directory with what it reads.
//! Out: a guest that runs, and the moments on the way. It blocks, checks nothing and keeps no
//! record; it does what a VMM needs and no more: spawn, connect, one request.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::{Value, json};

use crate::bench::floor::{Arguments, short};

/// Longer than any load takes, so that a VMM that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How the client learns that the API socket is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The kernel tells.
    Inotify,
    /// It looks, and sleeps so long between two looks.
    Poll(Duration),
}

/// How it loads.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub wait: Wait,
    pub track_dirty_pages: bool,
}

/// From before the start of the process.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Its API socket took the connection.
    pub up: Duration,
    /// The load was answered: the guest runs.
    pub loaded: Duration,
}

/// A Firecracker, killed when it is dropped.
#[derive(Debug)]
pub struct Vmm {
    child: Child,
    stream: UnixStream,
    /// Kept: closing it takes the kernel several milliseconds, and is nothing a guest needs.
    _watch: Option<OwnedFd>,
}

impl Vmm {
    /// Loads what is in `dir` (`memory.base`, `vmstate`, `disks/`).
    pub fn load(arguments: &Arguments, dir: &Path, how: Load) -> Result<(Self, Moments)> {
        let body = json!({
            "snapshot_path": "vmstate",
            "mem_backend": { "backend_type": "File", "backend_path": "memory.base" },
            "resume_vm": true,
            "track_dirty_pages": how.track_dirty_pages,
        });
        let body = body.to_string();
        let mut place = Place::prepare(dir, how.wait)?;
        let began = Instant::now();
        let mut vmm = place.start(arguments)?;
        let up = began.elapsed();
        vmm.send("PUT", "/snapshot/load", &body)?;
        Ok((vmm, Moments { up, loaded: began.elapsed() }))
    }

    /// Boots `kernel` with so much memory and nothing else.
    pub fn boot(arguments: &Arguments, dir: &Path, kernel: &Path, mib: u32) -> Result<Self> {
        let mut vmm = Place::prepare(dir, Wait::Inotify)?.start(arguments)?;
        let config = json!({ "vcpu_count": 1, "mem_size_mib": mib });
        vmm.request("PUT", "/machine-config", &config)?;
        vmm.request("PUT", "/boot-source", &json!({ "kernel_image_path": kernel }))?;
        vmm.request("PUT", "/actions", &json!({ "action_type": "InstanceStart" }))?;
        Ok(vmm)
    }

    /// Pauses the guest, saves it in its directory, and lets it go on; how long the saving took.
    pub fn save(&mut self, kind: &str, memory: &str) -> Result<Duration> {
        self.request("PATCH", "/vm", &json!({ "state": "Paused" }))?;
        let body = json!({ "snapshot_type": kind, "snapshot_path": "vmstate", "mem_file_path": memory });
        let began = Instant::now();
        self.request("PUT", "/snapshot/create", &body)?;
        let took = began.elapsed();
        self.request("PATCH", "/vm", &json!({ "state": "Resumed" }))?;
        Ok(took)
    }

    fn request(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        self.send(method, path, &body.to_string())
    }

    /// One request; its answer says that it was done.
    fn send(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).with_context(|| format!("send {method} {path}"))?;
        let mut answer = [0; 4096];
        let mut length = 0;
        // What is not a success is no answer to read to its end.
        while !answer[..length].windows(4).any(|end| end == b"\r\n\r\n") {
            let read = self.stream.read(&mut answer[length..]).with_context(|| format!("await {method} {path}"))?;
            ensure!(read > 0, "Firecracker hung up on {method} {path}");
            length += read;
        }
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A directory in which nothing of a former VMM is left.
struct Place<'a> {
    dir: &'a Path,
    open: File,
    wait: Wait,
    watch: Option<OwnedFd>,
    logs: Option<(File, File)>,
}

impl<'a> Place<'a> {
    fn prepare(dir: &'a Path, wait: Wait) -> Result<Self> {
        for socket in ["api.sock", "vsock.sock"] {
            match fs::remove_file(dir.join(socket)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {socket} in {}", dir.display()));
                }
                _ => {}
            }
        }
        let make = |name| File::create(dir.join(name)).with_context(|| format!("make {name} in {}", dir.display()));
        make("vmm.log")?;
        let logs = Some((make("serial.log")?, make("vmm.err")?));
        let watch = match wait {
            Wait::Inotify => Some(watch(dir).with_context(|| format!("watch {}", dir.display()))?),
            Wait::Poll(_) => None,
        };
        let open = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
        Ok(Self { dir, open, wait, watch, logs })
    }

    /// Starts a process there, as the product did, and connects to it.
    fn start(&mut self, arguments: &Arguments) -> Result<Vmm> {
        let (out, err) = self.logs.take().context("a place is used once")?;
        let words = &arguments.words;
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("start {}", words[0]))?;
        match self.connect() {
            Ok(stream) => Ok(Vmm { child, stream, _watch: self.watch.take() }),
            Err(error) => {
                child.kill().ok();
                child.wait().ok();
                let said = fs::read_to_string(self.dir.join("vmm.err")).unwrap_or_default();
                Err(error.context(format!("Firecracker says: {}", said.trim())))
            }
        }
    }

    fn connect(&self) -> Result<UnixStream> {
        let path = short(&self.open, "api.sock");
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match UnixStream::connect(&path) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => match (self.wait, &self.watch) {
                    (Wait::Poll(pause), _) => thread::sleep(pause),
                    (Wait::Inotify, Some(watch)) => {
                        let patience = Timespec::try_from(PATIENCE).context("say how long to wait")?;
                        let told = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&patience));
                        ensure!(told.context("wait for the socket")? > 0, "no socket appeared");
                        rustix::io::read(watch, &mut [0; 4096]).context("wait for the socket")?;
                    }
                    (Wait::Inotify, None) => bail!("there is no watch"),
                },
                // Bound, and listened on in a moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => thread::yield_now(),
                Err(error) => return Err(error).context("connect to api.sock"),
            }
        }
        bail!("there is no API socket after {} s", PATIENCE.as_secs())
    }
}

fn watch(dir: &Path) -> Result<OwnedFd> {
    let path = CString::new(dir.as_os_str().as_encoded_bytes())?;
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, path, WatchFlags::CREATE)?;
    Ok(watch)
}
