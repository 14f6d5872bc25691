//! A command that the host runs in the guest.
//!
//! In: the host's input, signals and credit; out: the command's output, then how it ended. When
//! the host is gone the command goes on and its output is discarded; one on a terminal loses that
//! terminal, which the kernel tells it by SIGHUP.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hearth_agent_proto::{
    ExecStart, ExitStatus, FailureKind, OVERHEAD, Overrun, Program, ReceiveWindow, SendWindow, ToHost, TtySize,
};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::outbox::Outbox;
use crate::spawn::{Spawn, SpawnError, spawn};

/// How much is read from a command at a time: what one write to a virtio port takes.
pub const CHUNK: usize = 32 * 1024;

const END_OF_TRANSMISSION: u8 = 4;

pub struct Exec {
    /// Where its host listens; none when that is gone.
    channel: Option<u32>,
    pid: u32,
    terminal: bool,
    stdin: Option<OwnedFd>,
    input: Vec<u8>,
    input_ends: bool,
    receive: ReceiveWindow,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    send: SendWindow,
    kill_at: Option<Instant>,
    timed_out: bool,
    status: Option<ExitStatus>,
}

/// What one attempt to read brought.
#[derive(PartialEq, Eq)]
enum Output {
    Some,
    NoneNow,
    Blocked,
}

impl Exec {
    /// Starts it. Missing parts of the request are filled in from the guest's program.
    pub fn start(channel: u32, request: &ExecStart, program: Option<&Program>) -> Result<Self, SpawnError> {
        let inherited = program.map(|p| p.env.as_slice()).unwrap_or_default();
        let or_program = |own, of: fn(&Program) -> &String| match (program, own) {
            (Some(program), "") => of(program).clone(),
            (_, own) => own.to_owned(),
        };
        let (cwd, user) = (or_program(&request.cwd, |p| &p.workdir), or_program(&request.user, |p| &p.user));
        let what = Spawn {
            argv: &request.argv,
            env: inherited.iter().chain(&request.env).map(String::as_str).collect(),
            cwd: &cwd,
            user: &user,
            terminal: request.tty.is_some(),
        };
        let no_descriptors = |errno: Errno| SpawnError {
            code: 125,
            failure: hearth_agent_proto::Failure {
                kind: FailureKind::Exhausted,
                text: format!("cannot connect the command: {}", std::io::Error::from(errno)),
            },
        };
        let streams = match request.tty {
            Some(size) => Streams::terminal(size),
            None => Streams::pipes(),
        }
        .map_err(no_descriptors)?;
        let [stdin, stdout, stderr] = &streams.theirs;
        let pid = spawn(&what, [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
        let kill_at =
            (request.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(u64::from(request.timeout_ms)));
        Ok(Self {
            channel: Some(channel),
            pid,
            terminal: request.tty.is_some(),
            stdin: Some(streams.stdin),
            input: Vec::new(),
            input_ends: false,
            receive: ReceiveWindow::default(),
            stdout: Some(streams.stdout),
            stderr: streams.stderr,
            send: SendWindow::default(),
            kill_at,
            timed_out: false,
            status: None,
        })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn channel(&self) -> Option<u32> {
        self.channel
    }

    /// Whether there is nothing left of it.
    pub fn is_over(&self) -> bool {
        self.channel.is_none() && self.status.is_some() && self.stdout.is_none() && self.stderr.is_none()
    }

    /// What it waits for.
    pub fn waits_on(&self, room: bool) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let may_read = self.channel.is_none() || (room && self.send.is_open());
        let outputs = [&self.stdout, &self.stderr].into_iter().flatten().filter(move |_| may_read);
        let input = self.stdin.iter().filter(|_| !self.input.is_empty());
        outputs.map(|fd| (fd.as_fd(), PollFlags::IN)).chain(input.map(|fd| (fd.as_fd(), PollFlags::OUT)))
    }

    /// When it wants to be told of the time.
    pub fn deadline(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Kills it if its time is over.
    pub fn expire(&mut self, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.timed_out = true;
            self.signal(Signal::KILL.as_raw());
        }
    }

    pub fn grant(&mut self, bytes: u32) {
        self.send.grant(bytes);
    }

    pub fn input(&mut self, data: &[u8], outbox: &mut Outbox) -> Result<(), Overrun> {
        self.receive.received(data.len())?;
        if self.stdin.is_some() && !self.input_ends {
            self.input.extend_from_slice(data);
            self.consumed(OVERHEAD, outbox);
            self.write_input(outbox);
        } else {
            self.consumed(OVERHEAD + data.len(), outbox);
        }
        Ok(())
    }

    pub fn input_ends(&mut self, outbox: &mut Outbox) {
        if self.terminal && !self.input_ends {
            self.input.push(END_OF_TRANSMISSION);
        }
        self.input_ends = true;
        self.write_input(outbox);
    }

    pub fn resize(&self, size: TtySize) {
        if let (true, Some(terminal)) = (self.terminal, &self.stdout) {
            let _ = tcsetwinsize(terminal, window(size));
        }
    }

    /// Sends a signal to its process group, unless it has ended.
    pub fn signal(&self, signal: i32) {
        let group = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let (None, Some(group), Some(signal)) = (self.status, group, Signal::from_named_raw(signal)) {
            let _ = kill_process_group(group, signal);
        }
    }

    /// The host is gone, or no longer interested.
    pub fn detach(&mut self) {
        self.channel = None;
        self.stdin = None;
        self.input = Vec::new();
        if self.terminal {
            self.stdout = None;
        }
    }

    /// Notes that it has ended.
    pub fn ended(&mut self, status: ExitStatus) {
        self.kill_at = None;
        self.status = Some(if self.timed_out { ExitStatus::TimedOut } else { status });
    }

    /// Moves what can be moved now. After its end: all that it has written, and how it ended.
    pub fn serve(&mut self, scratch: &mut [u8], outbox: &mut Outbox) {
        self.write_input(outbox);
        let first = self.read(true, scratch, outbox);
        let second = self.read(false, scratch, outbox);
        let Some(status) = self.status else { return };
        if self.channel.is_none() {
            return;
        }
        for (is_stdout, mut last) in [(true, first), (false, second)] {
            while last == Output::Some {
                last = self.read(is_stdout, scratch, outbox);
            }
            if last == Output::Blocked {
                return;
            }
        }
        // Somebody else may still hold its output open: that is read, and discarded, until its end.
        if let Some(channel) = self.channel {
            outbox.send(channel, &ToHost::Exited(status), &[]);
        }
        self.detach();
    }

    pub fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// Whether it has ended and something of it waits to be sent.
    pub fn is_ending(&self) -> bool {
        self.status.is_some() && self.channel.is_some()
    }

    fn read(&mut self, is_stdout: bool, scratch: &mut [u8], outbox: &mut Outbox) -> Output {
        let stream = if is_stdout { &mut self.stdout } else { &mut self.stderr };
        let Some(fd) = stream else { return Output::NoneNow };
        if self.channel.is_some() && !(outbox.room() && self.send.is_open()) {
            return Output::Blocked;
        }
        match rustix::io::read(&*fd, &mut *scratch) {
            Ok(0) => *stream = None,
            Ok(bytes) => {
                if let Some(channel) = self.channel {
                    self.send.spend(bytes);
                    let message = if is_stdout { ToHost::Stdout } else { ToHost::Stderr };
                    outbox.send(channel, &message, &scratch[..bytes]);
                }
                return Output::Some;
            }
            Err(Errno::AGAIN) => {}
            Err(Errno::INTR) => return Output::Some,
            // A terminal whose last user has gone says EIO.
            Err(_) => *stream = None,
        }
        Output::NoneNow
    }

    fn write_input(&mut self, outbox: &mut Outbox) {
        let Some(stdin) = &self.stdin else { return };
        let mut taken = 0;
        let mut broken = false;
        while taken < self.input.len() {
            match rustix::io::write(stdin, &self.input[taken..]) {
                Ok(bytes) => taken += bytes,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    broken = true;
                    taken = self.input.len();
                }
            }
        }
        self.input.drain(..taken);
        if broken || (self.input_ends && !self.terminal && self.input.is_empty()) {
            self.stdin = None;
        }
        self.consumed(taken, outbox);
    }

    fn consumed(&mut self, bytes: usize, outbox: &mut Outbox) {
        if let (Some(grant), Some(channel)) = (self.receive.consumed_part(bytes), self.channel) {
            outbox.send(channel, &ToHost::Credit(grant), &[]);
        }
    }
}

/// Our ends of a command's standard streams, non-blocking, and its own.
struct Streams {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    theirs: [OwnedFd; 3],
}

impl Streams {
    fn pipes() -> Result<Self, Errno> {
        use rustix::pipe::{PipeFlags, pipe_with};
        let pipe = || pipe_with(PipeFlags::CLOEXEC);
        let ((their_stdin, stdin), (stdout, their_stdout), (stderr, their_stderr)) = (pipe()?, pipe()?, pipe()?);
        for ours in [&stdin, &stdout, &stderr] {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        Ok(Self { stdin, stdout, stderr: Some(stderr), theirs: [their_stdin, their_stdout, their_stderr] })
    }

    fn terminal(size: TtySize) -> Result<Self, Errno> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let ours = openpt(flags)?;
        unlockpt(&ours)?;
        tcsetwinsize(&ours, window(size))?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let theirs = ioctl_tiocgptpeer(&ours, flags)?;
        let copy = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 3);
        let theirs = [copy(&theirs)?, copy(&theirs)?, theirs];
        Ok(Self { stdin: copy(&ours)?, stdout: ours, stderr: None, theirs })
    }
}

fn window(size: TtySize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 }
}
