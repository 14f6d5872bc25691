//! A program of the image that is run to its end, within a time: nothing else is served meanwhile.
//!
//! In: what to run and until when; out: how it ended, and the beginning of what it said. Who does
//! not end in time is killed with all that it has started in its session.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use hearth_agent_proto::ExitStatus;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, waitpid};
use rustix::time::Timespec;

use crate::spawn::{Spawn, spawn};

/// So much of what it says is kept.
const KEPT: usize = 16 * 1024;

/// So many characters of its last line are quoted.
const QUOTED: usize = 200;

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    pub status: ExitStatus,
    /// What it said on both streams, or the beginning of it.
    pub output: Vec<u8>,
}

impl Ended {
    /// An error says how it ended, and what it said last.
    pub fn success(&self) -> Result<(), String> {
        let how = match self.status {
            ExitStatus::Code(0) => return Ok(()),
            ExitStatus::TimedOut => "it did not end in time, and was killed".to_owned(),
            status => crate::program::exit(status, false).message,
        };
        let output = String::from_utf8_lossy(&self.output);
        match output.trim_end().lines().next_back() {
            Some(line) => Err(format!("{how}; it said: {}", line.chars().take(QUOTED).collect::<String>())),
            None => Err(how),
        }
    }
}

/// Runs it.
pub fn run(what: &Spawn<'_>, deadline: Instant) -> Result<Ended, String> {
    let failed = |errno: Errno| std::io::Error::from(errno).to_string();
    let null = std::fs::File::open("/dev/null").map_err(|error| format!("open /dev/null: {error}"))?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    rustix::io::ioctl_fionbio(&read, true).map_err(failed)?;
    let pid = spawn(what, [null.as_fd(), write.as_fd(), write.as_fd()]).map_err(|error| error.failure.text)?;
    drop(write);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("it has no process id")?;
    let end = pidfd_open(pid, PidfdFlags::empty()).map_err(failed)?;
    let mut output = Some(read);
    let mut said = Vec::new();
    let mut timed_out = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let ready = {
            let mut fds = vec![PollFd::new(&end, PollFlags::IN)];
            fds.extend(output.as_ref().map(|output| PollFd::new(output, PollFlags::IN)));
            let timeout = Timespec::try_from(left).map_err(|error| error.to_string())?;
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed(errno)),
            }
            !fds[0].revents().is_empty()
        };
        // Who holds its output open although it has ended is not waited for.
        output = output.and_then(|output| drain(output, &mut said));
        if ready {
            break;
        }
        if left.is_zero() && !timed_out {
            timed_out = true;
            let _ = kill_process_group(pid, Signal::KILL);
            // Nothing outlives that for long; what it was at is the kernel's to end.
            let _ = poll(&mut [PollFd::new(&end, PollFlags::IN)], None);
        }
    }
    let status = match waitpid(Some(pid), WaitOptions::empty()).map_err(failed)? {
        _ if timed_out => ExitStatus::TimedOut,
        Some((_, status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, signal) => ExitStatus::Signal(signal.and_then(|signal| u8::try_from(signal).ok()).unwrap_or(0)),
        },
        None => return Err("it ended, and nobody knows how".to_owned()),
    };
    Ok(Ended { status, output: said })
}

/// Reads what is there now; gives the stream back unless it has ended. Who says more than that has
/// to wait until it was looked at the time.
fn drain(output: OwnedFd, said: &mut Vec<u8>) -> Option<OwnedFd> {
    let mut piece = [0; 4096];
    for _ in 0..16 {
        match rustix::io::read(&output, &mut piece) {
            Ok(0) => return None,
            Ok(bytes) => said.extend_from_slice(&piece[..bytes.min(KEPT - said.len().min(KEPT))]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(_) => return None,
        }
    }
    Some(output)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sh(script: &str, within: Duration) -> Result<Ended, String> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        run(&Spawn { argv: &argv, env: vec!["A=1"], cwd: "/", user: "", terminal: false }, Instant::now() + within)
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_program_ends_by_itself_and_what_it_said_is_known() {
        let ended = sh("echo $A; echo two >&2", LONG).expect("run");
        assert_eq!((ended.status, ended.output.as_slice()), (ExitStatus::Code(0), &b"1\ntwo\n"[..]));
        assert_eq!(ended.success(), Ok(()));
        let failed = sh("echo why; exit 3", LONG).expect("run").success();
        assert_eq!(failed, Err("exited with code 3; it said: why".to_owned()));
        // The rest of it, which is still in the pipe at its end, is nobody's.
        assert_eq!(sh("head -c 900000 /dev/zero", LONG).expect("run").output.len(), KEPT);
        let none = run(
            &Spawn { argv: &["/none".to_owned()], env: vec![], cwd: "/", user: "", terminal: false },
            Instant::now(),
        );
        assert_eq!(none, Err("command not found: /none".to_owned()));
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_all_that_it_started() {
        let begun = Instant::now();
        let ended = sh("echo begun; sleep 100 & sleep 100", Duration::from_millis(200)).expect("run");
        assert_eq!((ended.status, ended.output.as_slice()), (ExitStatus::TimedOut, &b"begun\n"[..]));
        assert!(begun.elapsed() < LONG);
        let flood = sh("while :; do echo and more; done", Duration::from_millis(200)).expect("run");
        assert_eq!((flood.status, flood.output.len()), (ExitStatus::TimedOut, KEPT));
    }

    #[test]
    fn what_it_leaves_running_is_not_waited_for() {
        let begun = Instant::now();
        let ended = sh("sleep 100 & echo $!", LONG).expect("run");
        assert!(begun.elapsed() < LONG);
        let left = String::from_utf8(ended.output).expect("text").trim().parse().ok().and_then(Pid::from_raw);
        rustix::process::kill_process(left.expect("a process"), Signal::KILL).expect("it runs on");
    }
}
