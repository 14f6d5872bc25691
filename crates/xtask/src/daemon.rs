//! A `hearth serve` of our own, for `demo` and `bench`.
//!
//! In: the binary and a data directory. Out: a daemon that is ready, on a port that was free, and
//! the command line to talk to it. When it is dropped, it ends, and every process that sits in its
//! data directory with it: instances outlive their daemon, but not ours.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long a daemon may take to be ready, and a killed process to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon says when it is ready, before its address.
const READY: &str = "ready on ";

/// Addresses for another daemon's instances: two of ours may run at once, beside the host's own.
fn range() -> String {
    static STARTED: AtomicU8 = AtomicU8::new(0);
    format!("10.109.{}.0/20", STARTED.fetch_add(1, Ordering::Relaxed) % 16 * 16)
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    hearth: PathBuf,
    data: PathBuf,
    url: String,
}

impl Daemon {
    /// Starts `hearth serve` on `data`, with `settings` as environment variables, and waits until
    /// it is ready. What it logs goes to `daemon.log` in `data`.
    pub fn start(hearth: &Path, data: &Path, settings: &[(&str, OsString)]) -> Result<Self> {
        fs::create_dir_all(data).with_context(|| format!("make {}", data.display()))?;
        let data = data.canonicalize().with_context(|| format!("look for {}", data.display()))?;
        let log = data.join("daemon.log");
        let log = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let mut child = plain(hearth)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .env("HEARTH_NETWORK_CIDR", range())
            .envs(settings.iter().map(|(key, value)| (key, value)))
            // So that whoever looks for what sits in the directory finds it, too.
            .current_dir(&data)
            // Ctrl-C is ours to handle.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {} serve", hearth.display()))?;
        let said = child.stderr.take().context("take the daemon's standard error")?;
        let mut daemon = Self { child, hearth: hearth.to_owned(), data, url: String::new() };
        daemon.url = wait_until_ready(BufReader::new(said), log)?;
        Ok(daemon)
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Processor time that it has taken so far, in the kernel's ticks of 10 ms; that of VMMs is
    /// their own.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        // After the name, which may hold anything: the 14th and 15th field of proc(5).
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11).take(2);
        let ticks = fields.map(str::parse::<u32>).sum::<Result<u32, _>>().with_context(|| format!("parse {path}"))?;
        Ok(Duration::from_secs(1) * ticks / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `hearth`, told where this daemon listens.
    pub fn hearth(&self) -> Command {
        let mut command = plain(&self.hearth);
        command.env("HEARTH_URL", &self.url);
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        // It drains operations that run, which may be stuck: killing their VMMs ends them.
        if !gone(&mut self.child, Duration::from_secs(5)) {
            end_all(&self.data).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
        if let Err(error) = end_all(&self.data) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn gone(child: &mut Child, within: Duration) -> bool {
    let until = Instant::now() + within;
    while Instant::now() < until {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return true;
        }
        thread::sleep(Duration::from_millis(10));
    }
    false
}

/// `hearth` with none of the user's own settings.
fn plain(hearth: &Path) -> Command {
    let mut command = Command::new(hearth);
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("HEARTH_") || key.starts_with("HYPEMAN_")) {
            command.env_remove(key);
        }
    }
    command
}

/// Copies what the daemon says to its log for as long as it says anything; its address, once it is
/// ready.
fn wait_until_ready(mut said: impl BufRead + Send + 'static, mut log: File) -> Result<String> {
    let (sender, ready) = mpsc::channel();
    thread::spawn(move || {
        let mut last = VecDeque::new();
        let mut line = String::new();
        while said.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
            log.write_all(line.as_bytes()).ok();
            if let Some(url) = address(&line) {
                sender.send(Ok(url.to_owned())).ok();
            }
            if last.len() == 10 {
                last.pop_front();
            }
            last.push_back(std::mem::take(&mut line));
        }
        sender.send(Err(last.into_iter().collect::<String>())).ok();
    });
    match ready.recv_timeout(PATIENCE) {
        Ok(Ok(url)) => Ok(url),
        Ok(Err(last)) => Err(anyhow!("hearth serve ended before it was ready; it said:\n{last}")),
        Err(_) => Err(anyhow!("hearth serve was not ready after {} s", PATIENCE.as_secs())),
    }
}

/// `http://…` of the line that says that it is ready.
fn address(line: &str) -> Option<&str> {
    let rest = line.split_once(READY)?.1;
    rest.split([',', ' ', '\n']).next().filter(|url| url.starts_with("http://"))
}

/// Kills every process whose working directory is `dir` or below, and waits until all are gone;
/// how many there were.
pub fn end_all(dir: &Path) -> Result<usize> {
    let mut ended = 0;
    for entry in fs::read_dir("/proc").context("look at the processes")? {
        let Ok(entry) = entry else { continue };
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) else { continue };
        // First the handle, then the look: nobody else can have the number when the signal is sent.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if !fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)) {
            continue;
        }
        pidfd_send_signal(&process, Signal::KILL).with_context(|| format!("kill process {}", pid.as_raw_nonzero()))?;
        let patience = Timespec::try_from(PATIENCE).context("say how long to wait")?;
        if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).unwrap_or(0) == 0 {
            bail!("process {} does not end", pid.as_raw_nonzero());
        }
        ended += 1;
    }
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_in_the_ready_line() {
        assert_eq!(
            address("hearth: ready on http://127.0.0.1:4973, data in /var/lib/hearth\n"),
            Some("http://127.0.0.1:4973")
        );
        assert_eq!(address("INFO getting ready\n"), None);
    }

    #[test]
    fn what_sits_in_a_directory_is_ended_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let sleep = |cwd: &Path| Command::new("sleep").arg("60").current_dir(cwd).spawn().expect("started");
        let below = dir.path().join("below");
        fs::create_dir(&below).expect("made");
        let (mut inside, mut outside) = (sleep(&below), sleep(Path::new("/")));
        let path = dir.path().canonicalize().expect("there");
        assert_eq!(end_all(&path).expect("ended"), 1);
        assert!(inside.wait().is_ok_and(|status| !status.success()));
        assert!(outside.try_wait().expect("known").is_none());
        outside.kill().expect("killed");
        outside.wait().expect("ended");
    }

    #[test]
    fn a_daemon_that_cannot_start_is_quoted() {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("hearth");
        fs::write(&program, "#!/bin/sh\necho no such thing >&2\nexit 1\n").expect("written");
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
        let error = Daemon::start(&program, &dir.path().join("data"), &[]).expect_err("it ended");
        assert!(format!("{error:#}").contains("no such thing"), "{error:#}");
    }
}
