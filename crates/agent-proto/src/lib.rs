//! What host and guest agent say to each other, over any byte stream.
//!
//! In: bytes as they come, in any pieces, with any junk between; out: messages, and bytes to
//! send. There is no I/O here, no async and no clock: the agent drives it from a poll loop, the
//! host from tokio.
//!
//! ```text
//!   stream   00 <cobs( epoch u64 | channel u32 | message | data | crc32 )> 00 …
//!   host  ─► Hello{version} in a fresh random epoch         any time, also without an end seen
//!   guest ─► Welcome{…} in that epoch, or Refused{version}  then Hello{version} once more, if the
//!                                                           host speaks the guest's version too
//!   then     frames of any other epoch are ignored by both; each request has its own channel
//! ```
//!
//! A stream may lose or repeat the end of a frame whenever the guest is restored from memory.
//! The zero bytes let the reader find the next frame, the checksum drops what was cut, and the
//! epoch drops what was meant for somebody else.
//!
//! What does not change between versions: the framing, the frame's header, `Hello`, `Refused`.

mod cobs;
pub mod exec;
pub mod files;
pub mod flow;
pub mod frame;
pub mod guest;
pub mod message;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;

pub use exec::{ExecStart, ExitStatus, ProgramExit, TtySize};
pub use files::{CopyDone, CopyEntry, CopyFromStart, CopyToStart, FileKind, PathStat, StatRequest};
pub use flow::{OVERHEAD, Overrun, ReceiveWindow, SendWindow, WINDOW};
pub use frame::{Counters, Decoder, Encoder, Frame, MAX_BODY, MAX_DATA, Malformed, TooLarge};
pub use guest::{
    Configured, Entropy, GuestConfig, GuestStats, NetworkConfig, Program, ProgramState, Refresh, RefreshPart,
    RefreshV1, Refreshed, Welcome,
};
pub use message::{CONTROL, Failure, FailureKind, ToGuest, ToHost};

/// The newest version of the protocol that this crate speaks. 2: the refresh is one message, which
/// ends before its answer.
pub const VERSION: u32 = 2;

/// The oldest version that this crate speaks.
pub const OLDEST: u32 = 1;

/// Whether this crate speaks that version.
#[must_use]
pub const fn speaks(version: u32) -> bool {
    OLDEST <= version && version <= VERSION
}

/// The name of the virtio-serial port on which the agent listens.
pub const PORT_NAME: &str = "hearth.agent";

/// The vsock port on which the agent listens where there is no such virtio-serial port.
pub const VSOCK_PORT: u32 = 52;
