//! What waits to be sent to the host.
//!
//! In: messages; out: bytes on the link, as fast as it takes them. Those who produce data ask
//! [`Outbox::room`] first, so that it stays small; single answers are always taken.

use hearth_agent_proto::{Encoder, Failure, FailureKind, ToHost};

use crate::link::Link;

/// With so much waiting, nobody produces more data.
const ROOM: usize = 64 * 1024;

#[derive(Default)]
pub struct Outbox {
    epoch: u64,
    encoder: Encoder,
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Forgets what waits, and begins an epoch.
    pub fn begin(&mut self, epoch: u64) {
        self.clear();
        self.epoch = epoch;
    }

    /// Forgets what waits. A frame of which a part was sent is cut off; its reader finds the next.
    pub fn clear(&mut self) {
        self.sent = self.bytes.len();
        self.recycle();
    }

    pub fn send(&mut self, channel: u32, message: &ToHost, data: &[u8]) {
        self.send_in(self.epoch, channel, message, data);
    }

    /// The answer to one who speaks another version, whose epoch does not begin.
    pub fn send_in(&mut self, epoch: u64, channel: u32, message: &ToHost, data: &[u8]) {
        if let Err(error) = self.encoder.encode(&mut self.bytes, epoch, channel, message, data) {
            self.fail(channel, FailureKind::Failed, format!("answer cannot be sent: {error}"));
        }
    }

    pub fn fail(&mut self, channel: u32, kind: FailureKind, text: String) {
        self.send(channel, &ToHost::Error(Failure { kind, text }), &[]);
    }

    /// Whether data may be produced.
    pub fn room(&self) -> bool {
        self.waiting() < ROOM
    }

    /// How many bytes wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn flush(&mut self, link: &mut Link) {
        if self.waiting() == 0 {
            return;
        }
        self.sent += link.write(&self.bytes[self.sent..]);
        self.recycle();
    }

    /// Uses the memory of what was sent again, unless it has grown too large.
    fn recycle(&mut self) {
        if self.sent == self.bytes.len() {
            self.sent = 0;
            if self.bytes.capacity() > 2 * ROOM {
                self.bytes = Vec::new();
            } else {
                self.bytes.clear();
            }
        } else if self.sent >= ROOM {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}
