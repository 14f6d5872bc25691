//! Serves the host: one loop over the link, ended children, commands and copies.
//!
//! In: messages of the current epoch; out: answers, output and events. A `Hello` at any time
//! begins anew: what the old epoch had under way ends, whether or not its end was seen. Each turn
//! of the loop moves a bounded amount for everyone, so that a flood on one channel leaves the
//! others, and the control channel, their turn.

mod refresh;
mod requests;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hearth_agent_proto::{CONTROL, Decoder, ExitStatus, FailureKind, GuestConfig, ProgramState, ToGuest, ToHost};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use crate::copy_from::{CopyFrom, Progress};
use crate::copy_to::CopyTo;
use crate::exec::{CHUNK, Exec};
use crate::identity::{Identity, Published};
use crate::link::{Input, Link};
use crate::outbox::Outbox;
use crate::{power, program, sys};

/// How long the host has to take note of the program's end.
const ACKNOWLEDGE: Duration = Duration::from_secs(2);

/// How long a port must say that the host is gone before that is believed. The kernel tells of
/// closing and opening later than of data: after a restore the first message of the new host may
/// be here before the news that the old one has gone.
const BELIEVE: Duration = Duration::from_millis(100);

/// With so much waiting to be sent, no more requests are read.
const FULL: usize = 512 * 1024;

/// More commands and copies than this at once are refused.
const MAX_SESSIONS: usize = 256;

/// Where the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// As the first process of a guest, which is its own.
    Guest,
    /// As an ordinary process: the machine's clock, names and power are not its own.
    Elsewhere,
}

enum Copy {
    To(CopyTo),
    From(CopyFrom),
}

/// Whether the guest is about to end, and what for.
#[derive(Debug, Default)]
struct Ending {
    /// After this, all that runs is killed.
    kill_at: Option<Instant>,
    /// At this, the guest ends.
    end_at: Option<Instant>,
}

pub struct Server {
    link: Link,
    place: Place,
    boot_failure: Option<String>,
    boot_id: String,
    children: OwnedFd,
    outbox: Outbox,
    epoch: Option<u64>,
    /// When to believe that the host is gone.
    lost_at: Option<Instant>,
    config: Option<GuestConfig>,
    identity: Identity,
    published: Option<Published>,
    /// Where it is noted whose the writable disk is.
    owner: Option<PathBuf>,
    /// The identity of which the image's files still tell, after a refresh was answered.
    stale: Option<Identity>,
    /// The instance's own variables, as they were told last.
    env: Vec<String>,
    program: ProgramState,
    ending: Ending,
    execs: Vec<Exec>,
    copies: BTreeMap<u32, Copy>,
    scratch: Vec<u8>,
    bad_frames: u64,
    turn: usize,
}

impl Server {
    pub fn new(link: Link, place: Place, boot_failure: Option<String>) -> io::Result<Self> {
        let children = sys::child_signals()?;
        link.accompany(&children)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Ok(Self {
            link,
            place,
            boot_failure,
            boot_id: boot_id.trim().to_owned(),
            children,
            outbox: Outbox::default(),
            epoch: None,
            lost_at: None,
            config: None,
            identity: Identity::default(),
            published: None,
            owner: None,
            stale: None,
            env: Vec::new(),
            program: ProgramState::NotStarted,
            ending: Ending::default(),
            execs: Vec::new(),
            copies: BTreeMap::new(),
            scratch: vec![0; CHUNK],
            bad_frames: 0,
            turn: 0,
        })
    }

    /// On a writable disk that notes there whose it is.
    pub fn on_disk_of(self, owner: PathBuf) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// Serves until the guest should end.
    pub fn run(mut self) -> io::Result<()> {
        let mut decoder = Decoder::default();
        let mut input = vec![0; 16 * 1024];
        loop {
            let more = self.produce();
            self.outbox.flush(&mut self.link);
            self.catch_up();
            self.expire();
            if self.is_over() {
                return Ok(());
            }
            let readable = self.link.may_read() && self.outbox.waiting() < FULL;
            self.wait(more || readable)?;
            if !self.link.may_read() || self.outbox.waiting() >= FULL {
                continue;
            }
            match self.link.read(&mut input) {
                Input::Nothing => self.lost_at = None,
                Input::Lost if self.link.reorders() => {
                    self.lost_at.get_or_insert_with(|| Instant::now() + BELIEVE);
                }
                Input::Lost => self.lost(),
                Input::Bytes(bytes) => {
                    self.lost_at = None;
                    let mut rest = &input[..bytes];
                    while let Some(frame) = decoder.next(&mut rest) {
                        match frame.message::<ToGuest>() {
                            Ok((message, data)) => self.take(frame.epoch, frame.channel, message, data),
                            Err(_) if self.epoch == Some(frame.epoch) => {
                                let text = "this agent does not know that message".to_owned();
                                self.outbox.fail(frame.channel, FailureKind::Invalid, text);
                            }
                            Err(_) => {}
                        }
                    }
                    self.bad_frames = decoder.counters().bad;
                }
            }
        }
    }

    /// Waits for whatever comes next, and takes it; not at all if there is more to do anyway.
    fn wait(&mut self, at_once: bool) -> io::Result<()> {
        let timeout = if at_once { Some(Duration::ZERO) } else { self.next_deadline() };
        let room = self.outbox.room();
        let mut owners = Vec::new();
        let mut fds = Vec::new();
        for (index, exec) in self.execs.iter().enumerate() {
            for (fd, flags) in exec.waits_on(room) {
                owners.push(index);
                fds.push(PollFd::from_borrowed_fd(fd, flags));
            }
        }
        if fds.is_empty() {
            // The usual case after a restore: one system call from sleep to the host's message.
            return self.wake(timeout);
        }
        fds.push(PollFd::from_borrowed_fd(self.link.waits_on(), PollFlags::IN));
        let timeout = timeout.map(rustix::time::Timespec::try_from).transpose().map_err(io::Error::other)?;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        let count = owners.len();
        if ready[count] {
            self.wake(Some(Duration::ZERO))?;
        }
        // Nobody is always first to take the room that is left.
        self.turn = self.turn.wrapping_add(1);
        for step in 0..count {
            let at = (step + self.turn) % count;
            if ready[at] {
                self.execs[owners[at]].serve(&mut self.scratch, &mut self.outbox);
            }
        }
        self.execs.retain(|exec| !exec.is_over());
        Ok(())
    }

    fn wake(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let woken = self.link.wake(timeout)?;
        if woken.replaced {
            // What waited was for the connection before.
            self.lost();
        }
        if woken.companion {
            self.reap();
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Duration> {
        let own = [self.ending.kill_at, self.ending.end_at, self.lost_at];
        let next = self.execs.iter().map(Exec::deadline).chain(own).flatten().min()?;
        // Rounded up, or the last millisecond would spin.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Moves copies and the rests of ended commands on. Whether there is more to do at once.
    fn produce(&mut self) -> bool {
        for exec in self.execs.iter_mut().filter(|exec| exec.is_ending()) {
            exec.serve(&mut self.scratch, &mut self.outbox);
        }
        self.execs.retain(|exec| !exec.is_over());
        let mut more = false;
        let mut over = Vec::new();
        for (channel, copy) in &mut self.copies {
            let Copy::From(copy) = copy else { continue };
            match copy.produce(&mut self.scratch, &mut self.outbox) {
                Ok(Progress::More) => more = true,
                Ok(Progress::Blocked) => {}
                Ok(Progress::Done(done)) => {
                    self.outbox.send(*channel, &ToHost::CopyDone(done), &[]);
                    over.push(*channel);
                }
                Err(failure) => {
                    self.outbox.send(*channel, &ToHost::Error(failure), &[]);
                    over.push(*channel);
                }
            }
        }
        self.copies.retain(|channel, _| !over.contains(channel));
        more
    }

    /// The host is gone: its commands go on without it, its copies end.
    fn lost(&mut self) {
        self.epoch = None;
        self.outbox.clear();
        self.end_sessions();
    }

    fn end_sessions(&mut self) {
        self.copies.clear();
        for exec in &mut self.execs {
            exec.detach();
        }
        self.execs.retain(|exec| !exec.is_over());
    }

    /// Takes note of every child that has ended, also of those that others left to us.
    fn reap(&mut self) {
        let mut drain = [0; 512];
        while rustix::io::read(&self.children, &mut drain).is_ok_and(|bytes| bytes > 0) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => ExitStatus::Code(u8::try_from(code).unwrap_or(u8::MAX)),
                (None, Some(signal)) => ExitStatus::Signal(u8::try_from(signal).unwrap_or(u8::MAX)),
                (None, None) => continue,
            };
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
            if self.program == (ProgramState::Running { pid }) {
                let exit = program::exit(status, program::out_of_memory());
                self.program_ended(exit);
            } else if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid() == pid && !exec.has_ended()) {
                exec.ended(status);
            }
        }
    }

    fn program_ended(&mut self, exit: hearth_agent_proto::ProgramExit) {
        self.tell(&ToHost::ProgramExited(exit.clone()));
        self.program = ProgramState::Exited(exit);
        self.ending.kill_at = None;
        self.ending.end_at = Some(Instant::now() + ACKNOWLEDGE);
    }

    /// An event for the host, if there is one.
    fn tell(&mut self, event: &ToHost) {
        if self.epoch.is_some() {
            self.outbox.send(CONTROL, event, &[]);
        }
    }

    /// Acts on what is due.
    fn expire(&mut self) {
        if self.next_deadline().is_none() {
            return;
        }
        let now = Instant::now();
        for exec in &mut self.execs {
            exec.expire(now);
        }
        if self.lost_at.is_some_and(|at| at <= now) {
            self.lost_at = None;
            self.lost();
        }
        if self.ending.kill_at.is_some_and(|at| at <= now) {
            self.ending.kill_at = None;
            // If even that does not end it, the guest ends without it.
            self.ending.end_at = Some(now + ACKNOWLEDGE);
            match self.place {
                Place::Guest => power::kill_all(),
                Place::Elsewhere => self.signal_program(Signal::KILL),
            }
        }
    }

    fn is_over(&self) -> bool {
        let Some(at) = self.ending.end_at else { return false };
        let now = Instant::now();
        // The last words should be on their way.
        let sent = self.outbox.waiting() == 0;
        (at <= now && sent) || at + ACKNOWLEDGE <= now
    }

    fn signal_program(&self, signal: Signal) {
        if let ProgramState::Running { pid } = self.program
            && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    fn is_full(&self) -> bool {
        self.execs.len() + self.copies.len() >= MAX_SESSIONS
    }
}
