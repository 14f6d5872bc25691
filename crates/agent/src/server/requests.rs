//! What each message of the host does.

use std::time::{Duration, Instant};

use hearth_agent_proto::{
    CONTROL, Configured, Failure, FailureKind, GuestConfig, GuestStats, ProgramState, ToGuest, ToHost, VERSION,
    Welcome, speaks,
};
use rustix::process::Signal;

use super::{Copy, Place, Server};
use crate::copy_from::CopyFrom;
use crate::copy_to::CopyTo;
use crate::exec::Exec;
use crate::{identity, program, stat};

impl Server {
    /// Takes one message.
    pub(super) fn take(&mut self, epoch: u64, channel: u32, message: ToGuest, data: &[u8]) {
        if let ToGuest::Hello { version } = message {
            self.hello(epoch, version);
            return;
        }
        // Meant for somebody who is gone, or for a guest that this one was restored from.
        if self.epoch != Some(epoch) {
            return;
        }
        match message {
            ToGuest::Hello { .. } => {}
            ToGuest::Configure(config) => self.configure(channel, config),
            ToGuest::Refresh(refresh) => self.refresh(channel, refresh),
            ToGuest::RefreshV1(refresh) => self.refresh_v1(channel, refresh),
            ToGuest::SetClock { realtime_ns } => self.set_clock(channel, realtime_ns),
            ToGuest::Ping => self.outbox.send(channel, &ToHost::Pong, &[]),
            ToGuest::Shutdown { grace_ms } => self.shutdown(channel, grace_ms),
            ToGuest::Stats => {
                let stats = self.stats();
                self.outbox.send(channel, &ToHost::Stats(stats), &[]);
            }
            ToGuest::ProgramExitSeen => {
                if let (ProgramState::Exited(_), Some(_)) = (&self.program, self.ending.end_at) {
                    self.ending.end_at = Some(Instant::now());
                }
            }
            ToGuest::Stat(request) => match stat::stat(&request) {
                Ok(found) => self.outbox.send(channel, &ToHost::Stat(found), &[]),
                Err(failure) => self.refuse(channel, failure),
            },
            ToGuest::Exec(_) | ToGuest::CopyTo(_) | ToGuest::CopyFrom(_) if self.is_full() => {
                let text = format!(
                    "{} commands and copies are open, and no more may be: end some of them",
                    super::MAX_SESSIONS
                );
                self.outbox.fail(channel, FailureKind::Exhausted, text);
            }
            ToGuest::Exec(request) => {
                let program = self.config.as_ref().map(|config| &config.program);
                match Exec::start(channel, &request, program) {
                    Ok(exec) => {
                        self.outbox.send(channel, &ToHost::ExecStarted { pid: exec.pid() }, &[]);
                        self.execs.push(exec);
                    }
                    Err(error) => self.refuse(channel, error.failure),
                }
            }
            ToGuest::CopyTo(request) => match CopyTo::start(channel, &request) {
                Ok(copy) => {
                    self.copies.insert(channel, Copy::To(copy));
                    self.outbox.send(channel, &ToHost::CopyReady, &[]);
                }
                Err(failure) => self.refuse(channel, failure),
            },
            ToGuest::CopyFrom(request) => match CopyFrom::start(channel, &request) {
                Ok(copy) => drop(self.copies.insert(channel, Copy::From(copy))),
                Err(failure) => self.refuse(channel, failure),
            },
            ToGuest::Stdin
            | ToGuest::StdinEof
            | ToGuest::Resize(_)
            | ToGuest::Signal(_)
            | ToGuest::Entry(_)
            | ToGuest::Data
            | ToGuest::EntryEnd
            | ToGuest::CopyEnd
            | ToGuest::Credit(_)
            | ToGuest::Close => self.session(channel, message, data),
        }
    }

    fn hello(&mut self, epoch: u64, version: u32) {
        if !speaks(version) {
            self.outbox.send_in(epoch, CONTROL, &ToHost::Refused { version: VERSION }, &[]);
            return;
        }
        self.end_sessions();
        self.epoch = Some(epoch);
        self.outbox.begin(epoch);
        let welcome = Welcome {
            version,
            boot_id: self.boot_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            configured: self.config.is_some(),
            program: self.program.clone(),
            boot_failure: self.boot_failure.clone(),
        };
        self.outbox.send(CONTROL, &ToHost::Welcome(welcome), &[]);
    }

    /// A message for a command or copy. One whose session has just ended is not an error.
    fn session(&mut self, channel: u32, message: ToGuest, data: &[u8]) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.channel() == Some(channel)) {
            match message {
                ToGuest::Stdin if exec.input(data, &mut self.outbox).is_err() => {
                    exec.detach();
                    let text = "the command's input ignores flow control".to_owned();
                    self.outbox.fail(channel, FailureKind::Invalid, text);
                }
                ToGuest::StdinEof => exec.input_ends(&mut self.outbox),
                ToGuest::Resize(size) => exec.resize(size),
                ToGuest::Signal(signal) => exec.signal(i32::from(signal)),
                ToGuest::Credit(bytes) => exec.grant(bytes),
                ToGuest::Close => exec.detach(),
                _ => {}
            }
            return;
        }
        let step = match (self.copies.get_mut(&channel), message) {
            (Some(_), ToGuest::Close) => {
                self.copies.remove(&channel);
                return;
            }
            (Some(Copy::From(copy)), ToGuest::Credit(bytes)) => {
                copy.grant(bytes);
                Ok(())
            }
            (Some(Copy::To(copy)), ToGuest::Entry(entry)) => copy.entry(entry, &mut self.outbox),
            (Some(Copy::To(copy)), ToGuest::Data) => copy.data(data, &mut self.outbox),
            (Some(Copy::To(copy)), ToGuest::EntryEnd) => copy.entry_end(&mut self.outbox),
            (Some(Copy::To(copy)), ToGuest::CopyEnd) => match copy.end() {
                Ok(done) => {
                    self.outbox.send(channel, &ToHost::CopyDone(done), &[]);
                    self.copies.remove(&channel);
                    Ok(())
                }
                Err(failure) => Err(failure),
            },
            _ => Ok(()),
        };
        if let Err(failure) = step {
            self.copies.remove(&channel);
            self.refuse(channel, failure);
        }
    }

    fn configure(&mut self, channel: u32, config: GuestConfig) {
        if self.config.is_some() {
            self.outbox.send(channel, &ToHost::Configured(Configured::Already), &[]);
            return;
        }
        if let Err(text) = self.become_first(&config) {
            self.outbox.fail(channel, FailureKind::Failed, text);
            return;
        }
        self.outbox.send(channel, &ToHost::Configured(Configured::Now), &[]);
        let started = program::start(&config.program, self.place);
        self.config = Some(config);
        match started {
            Ok(pid) => {
                self.program = ProgramState::Running { pid };
                self.tell(&ToHost::ProgramStarted { pid });
            }
            Err(exit) => self.program_ended(exit),
        }
    }

    fn set_clock(&mut self, channel: u32, realtime_ns: u64) {
        let set = if self.place == Place::Guest { identity::set_clock(realtime_ns) } else { Ok(()) };
        match set {
            Ok(()) => self.outbox.send(channel, &ToHost::ClockSet, &[]),
            Err(text) => self.outbox.fail(channel, FailureKind::Failed, text),
        }
    }

    fn shutdown(&mut self, channel: u32, grace_ms: u32) {
        self.outbox.send(channel, &ToHost::ShuttingDown, &[]);
        let now = Instant::now();
        match self.program {
            ProgramState::Running { .. } => {
                self.signal_program(Signal::TERM);
                self.ending.kill_at = Some(now + Duration::from_millis(u64::from(grace_ms)));
            }
            ProgramState::NotStarted | ProgramState::Exited(_) => self.ending.end_at = Some(now),
        }
    }

    fn stats(&self) -> GuestStats {
        let info = rustix::system::sysinfo();
        let unit = u64::from(info.mem_unit.max(1));
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.split_ascii_whitespace().next()?.parse().ok())
        };
        let kib = |value: Option<u64>| value.unwrap_or(0) * 1024;
        let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        GuestStats {
            memory_total: info.totalram * unit,
            memory_available: kib(field(&read("/proc/meminfo"), "MemAvailable:")),
            agent_resident: kib(field(&read("/proc/self/status"), "VmRSS:")),
            uptime_ms: u64::try_from(uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000).unwrap_or(0),
            // The kernel counts in 1/65536.
            load1_milli: u32::try_from(info.loads[0] * 1000 / 65536).unwrap_or(u32::MAX),
            tasks: u32::from(info.procs),
            bad_frames: self.bad_frames,
        }
    }

    fn refuse(&mut self, channel: u32, failure: Failure) {
        self.outbox.send(channel, &ToHost::Error(failure), &[]);
    }
}
