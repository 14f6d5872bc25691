//! One `hearth serve` process: started, listened to, ended.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::backend::slowness;
use crate::baddisk::BadDisk;

/// How long it may take to listen.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end when nothing is under way.
const END: Duration = Duration::from_secs(30);

/// Every line that a daemon, and its successors in the same story, wrote.
#[derive(Debug, Clone, Default)]
pub(crate) struct DaemonLog(Arc<Mutex<Vec<String>>>);

impl DaemonLog {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Warnings, errors, and panics.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| is_complaint(line)).collect()
    }
}

fn is_complaint(line: &str) -> bool {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(event) => matches!(event["level"].as_str(), Some("WARN" | "ERROR")),
        Err(_) => line.contains("panicked at") || line.contains("ERROR") || line.contains("WARN"),
    }
}

/// What a daemon finds that is not as it should be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around<'a> {
    /// Which boot of the host it sees.
    pub(crate) boot: Option<&'a Path>,
    /// A disk that may be bad.
    pub(crate) disk: Option<&'a BadDisk>,
}

/// A daemon that runs. Dropping it kills it, and leaves its VMMs alone.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// `http://address:port`
    pub(crate) url: String,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(
        hearth: &Path,
        dir: &Path,
        data: &Path,
        listen: &str,
        env: &[(String, String)],
        log: &DaemonLog,
        Around { boot, disk }: Around<'_>,
    ) -> Result<Self> {
        let mut command = boot.map_or_else(|| Command::new(hearth), |boot| after_another_boot(boot, hearth));
        command.arg("serve").arg("--data-dir").arg(data).args(["--listen", listen]);
        // Not below the data directory: processes there are taken for VMMs.
        command.current_dir(dir);
        command.env("HEARTH_LOG_FORMAT", "json").envs(env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let spawned = match disk {
            Some(disk) => disk.spawn(command),
            None => command.spawn(),
        };
        let mut child = spawned.with_context(|| format!("start {}", hearth.display()))?;
        let stderr = child.stderr.take().context("its stderr")?;

        let (ready, told) = mpsc::channel();
        let log = log.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { break };
                if let Some(rest) = line.strip_prefix("hearth: ready on ") {
                    let url = rest.split(',').next().unwrap_or_default().to_owned();
                    // Nobody listens when the start has been given up.
                    ready.send(url).ok();
                }
                log.push(line);
            }
        });
        match told.recv_timeout(START * slowness()) {
            Ok(url) => Ok(Self { child, url }),
            Err(_) => {
                child.kill().ok();
                let status = child.wait().context("wait for the daemon")?;
                bail!("the daemon did not get ready ({status})")
            }
        }
    }

    /// Asks it to end and waits until it has.
    pub(crate) fn terminate(mut self) -> Result<ExitStatus> {
        kill_process(self.pid()?, Signal::TERM).context("send SIGTERM to the daemon")?;
        let limit = END * slowness();
        let until = Instant::now() + limit;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().context("wait for the daemon")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("the daemon did not end within {} s of SIGTERM", limit.as_secs())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().cast_signed()).context("the daemon's pid")
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the daemon")?;
        self.child.wait().context("wait for the daemon")?;
        Ok(())
    }
}

/// A program that finds in `boot` which boot of the host this is: only its own view of `/proc` is
/// changed, and what else it mounts is mounted for all.
fn after_another_boot(boot: &Path, program: &Path) -> Command {
    let script = "mount --make-private /proc && mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "unchanged", "sh", "-c", script]).args([boot, program]);
    command
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_told_from_talk() {
        for line in [
            r#"{"timestamp":"x","level":"WARN","fields":{"message":"m"},"target":"t"}"#,
            r#"{"timestamp":"x","level":"ERROR","fields":{"message":"m"},"target":"t"}"#,
            "thread 'main' panicked at src/main.rs:1:1:",
        ] {
            assert!(is_complaint(line), "{line}");
        }
        for line in [
            r#"{"timestamp":"x","level":"INFO","fields":{"message":"an ERROR in words"},"target":"t"}"#,
            "hearth: ready on http://127.0.0.1:1, data in /d",
        ] {
            assert!(!is_complaint(line), "{line}");
        }
    }
}
