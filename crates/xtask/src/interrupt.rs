//! Ctrl-C and SIGTERM: end what runs on our behalf, and let us clean up.
//!
//! In: a signal. Out: SIGTERM to our children, SIGKILL to those that are still there two seconds
//! later, and a flag that [`Interrupt::check`] turns into an error before the next thing begins. So
//! a step that waits for a child fails, and what cleans up after a failure cleans up here too.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getpid, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Children that do not end by themselves get this long.
const GRACE: Duration = Duration::from_secs(2);

/// Whether we were asked to end.
#[derive(Debug, Clone)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches the signals from now on.
    pub fn watch() -> Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("catch signals")?;
        let flag = Arc::clone(&asked);
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for _ in &mut signals {
                    if flag.swap(true, Ordering::SeqCst) {
                        continue;
                    }
                    eprintln!("\ninterrupted: cleaning up");
                    let children = children();
                    tell(&children, Signal::TERM);
                    thread::sleep(GRACE);
                    let stubborn: Vec<Pid> =
                        self::children().into_iter().filter(|pid| children.contains(pid)).collect();
                    tell(&stubborn, Signal::KILL);
                }
            })
            .context("start the thread that waits for signals")?;
        Ok(Self { asked })
    }

    /// An error if we were asked to end.
    pub fn check(&self) -> Result<()> {
        if self.asked.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }
}

fn tell(children: &[Pid], signal: Signal) {
    for child in children {
        // Gone already: all the better.
        kill_process(*child, signal).ok();
    }
}

/// Processes whose parent we are.
fn children() -> Vec<Pid> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ours = getpid().as_raw_nonzero().get();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| parent(*pid) == Some(ours))
        .filter_map(Pid::from_raw)
        .collect()
}

/// As `/proc/<pid>/stat` has it: `pid (name) state parent …`, where the name may hold anything.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_found_by_its_parent() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("started");
        let pid = Pid::from_child(&child);
        assert!(children().contains(&pid));
        tell(&[pid], Signal::KILL);
        child.wait().expect("ended");
        assert!(!children().contains(&pid));
    }
}
