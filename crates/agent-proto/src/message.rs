//! The messages themselves. New ones go to the end: a message's number is its place in the list.

use serde::{Deserialize, Serialize};

use crate::exec::{ExecStart, ExitStatus, ProgramExit, TtySize};
use crate::files::{CopyDone, CopyEntry, CopyFromStart, CopyToStart, PathStat, StatRequest};
use crate::guest::{Configured, GuestConfig, GuestStats, Refresh, RefreshPart, RefreshV1, Refreshed, Welcome};

/// The channel of what belongs to no request.
pub const CONTROL: u32 = 0;

/// From host to guest. Each request opens a channel of its own, whose number is not used again in
/// the epoch; its answer comes on that channel. "+ data": the frame's data belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Begins the frame's epoch, and ends every other. On [`CONTROL`].
    Hello {
        /// The host's version.
        version: u32,
    },
    /// → [`ToHost::Configured`].
    Configure(GuestConfig),
    /// → [`ToHost::RefreshedV1`].
    RefreshV1(RefreshV1),
    /// → [`ToHost::Pong`].
    Ping,
    /// → [`ToHost::ShuttingDown`]; then SIGTERM to the program, and after the grace SIGKILL to all.
    Shutdown {
        /// Milliseconds that the program has to end itself.
        grace_ms: u32,
    },
    /// → [`ToHost::Stats`].
    Stats,
    /// The host has seen [`ToHost::ProgramExited`]; the guest may end. On [`CONTROL`].
    ProgramExitSeen,
    /// → [`ToHost::ExecStarted`], output, [`ToHost::Exited`].
    Exec(ExecStart),
    /// + data: for the command's input. Flow-controlled.
    Stdin,
    /// The command's input ends.
    StdinEof,
    /// Its terminal has another size.
    Resize(TtySize),
    /// For the command's process group.
    Signal(u8),
    /// → [`ToHost::Stat`].
    Stat(StatRequest),
    /// → [`ToHost::CopyReady`]; entries and data follow, [`ToHost::CopyDone`] comes last.
    CopyTo(CopyToStart),
    /// → entries and data, [`ToHost::CopyDone`].
    CopyFrom(CopyFromStart),
    /// The next file of a copy. Flow-controlled.
    Entry(CopyEntry),
    /// + data: of that file. Flow-controlled.
    Data,
    /// That file is complete. Flow-controlled.
    EntryEnd,
    /// There are no more files.
    CopyEnd,
    /// The host has consumed that much of the channel.
    Credit(u32),
    /// The host is no longer interested: a command loses its input and its terminal, and goes on;
    /// a copy ends.
    Close,
    /// → [`ToHost::Refreshing`] before each part that runs programs, then [`ToHost::Refreshed`].
    /// Since version 2.
    Refresh(Refresh),
    /// → [`ToHost::ClockSet`]. Since version 2.
    SetClock {
        /// The host's `CLOCK_REALTIME`, in nanoseconds since 1970.
        realtime_ns: u64,
    },
}

/// From guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// The epoch is open. On [`CONTROL`].
    Welcome(Welcome),
    /// The guest does not speak the host's version. On [`CONTROL`].
    Refused {
        /// The one that it speaks.
        version: u32,
    },
    /// The program runs. On [`CONTROL`], unasked.
    ProgramStarted {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The program has ended, or could not start. On [`CONTROL`], unasked.
    ProgramExited(ProgramExit),
    /// The request failed; its channel is closed.
    Error(Failure),
    /// The configuration's answer.
    Configured(Configured),
    /// The refresh is complete.
    RefreshedV1 {
        /// As asked.
        generation: u64,
    },
    /// The guest lives.
    Pong,
    /// The shutdown has begun.
    ShuttingDown,
    /// Resources.
    Stats(GuestStats),
    /// The command runs.
    ExecStarted {
        /// Its process id in the guest.
        pid: u32,
    },
    /// + data: of the command, or of its terminal. Flow-controlled.
    Stdout,
    /// + data: of the command. Flow-controlled.
    Stderr,
    /// The command has ended, and all its output was sent; the channel is closed.
    Exited(ExitStatus),
    /// What is there.
    Stat(PathStat),
    /// Entries may come.
    CopyReady,
    /// The next file of a copy. Flow-controlled.
    Entry(CopyEntry),
    /// + data: of that file. Flow-controlled.
    Data,
    /// That file is complete. Flow-controlled.
    EntryEnd,
    /// The copy is complete; the channel is closed.
    CopyDone(CopyDone),
    /// The guest has consumed that much of the channel.
    Credit(u32),
    /// The refresh has come to this. Since version 2.
    Refreshing(RefreshPart),
    /// The refresh is complete. Since version 2.
    Refreshed(Refreshed),
    /// The clock stands as asked. Since version 2.
    ClockSet,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What sort of reason.
    pub kind: FailureKind,
    /// What failed on what, and why.
    pub text: String,
}

/// What sort of reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The path or command is not there.
    NotFound,
    /// It is there, and may not be used so.
    Permission,
    /// The request cannot mean anything.
    Invalid,
    /// The guest's disk, memory or table is full.
    Exhausted,
    /// Anything else.
    Failed,
}
