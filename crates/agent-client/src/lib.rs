//! The host's end of the guest channel: one connection to one guest's agent.
//!
//! In: any byte stream to the guest, requests; out: answers, output, files, events. A connection
//! begins with a handshake and lasts until the stream ends: after a restore the caller connects
//! anew. Nothing here retries, polls, or knows what a VMM is.
//!
//! ```text
//!   Agent (clone) ─┐                         ┌─► answers, by channel
//!   ExecSession  ──┼─► writer task ─► stream ─► reader task ─┼─► sessions, by channel
//!   CopyTo, …    ──┘                         └─► events, loss
//! ```
//!
//! The guest is not trusted: what it sends is bounded by the windows of the protocol, and a
//! session that ignores them ends.

mod agent;
mod connection;
mod copy;
mod error;
mod exec;
#[cfg(feature = "fake")]
pub mod fake;

pub use agent::{Agent, Event, EventReceiver};
pub use copy::{CopyFrom, CopyItem, CopyTo};
pub use error::AgentError;
pub use exec::{ExecEvent, ExecInput, ExecOutput, ExecSession};
pub use hearth_agent_proto::{
    Configured, CopyDone, CopyEntry, CopyToStart, Entropy, ExecStart as ExecRequest, ExitStatus, FileKind, GuestConfig,
    GuestStats, MAX_DATA, NetworkConfig, PORT_NAME, PathStat, Program, ProgramExit, ProgramState, Refresh, RefreshPart,
    Refreshed, TtySize, VSOCK_PORT, Welcome,
};
