//! Credit: how much data may be under way on a channel before its reader has taken it.
//!
//! Each direction of a channel begins with [`WINDOW`] bytes. The sender stops at zero, the
//! reader grants anew what it has consumed; so a flood on one channel neither grows anybody's
//! memory nor stops the others.

/// The credit with which each direction of a channel begins, in bytes.
pub const WINDOW: u32 = 256 * 1024;

/// The other side sent more than it was granted, or granted more than there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other side ignores flow control")]
pub struct Overrun;

/// What every flow-controlled message costs beyond its contents, in bytes: many small ones take
/// memory too.
pub const OVERHEAD: usize = 64;

/// The sender's view of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    /// Below zero after a message that was larger than what was left.
    available: i64,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self { available: i64::from(WINDOW) }
    }
}

impl SendWindow {
    /// Whether one more message may be sent: of any size, since the window may be overdrawn once.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.available > 0
    }

    /// Notes that a message with `bytes` of contents was sent.
    pub fn spend(&mut self, bytes: usize) {
        self.available -= i64::try_from(bytes + OVERHEAD).unwrap_or(i64::from(WINDOW));
    }

    /// Takes a grant of the reader.
    pub fn grant(&mut self, bytes: u32) {
        self.available = (self.available + i64::from(bytes)).min(i64::from(WINDOW));
    }
}

/// The reader's view of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReceiveWindow {
    /// Received and not granted anew.
    outstanding: u32,
    /// Of these, consumed.
    consumed: u32,
}

impl ReceiveWindow {
    /// Notes that a message with `bytes` of contents came in.
    ///
    /// # Errors
    /// [`Overrun`] if the window was used up before.
    pub fn received(&mut self, bytes: usize) -> Result<(), Overrun> {
        let cost = u32::try_from(bytes + OVERHEAD).map_err(|_| Overrun)?;
        if self.outstanding >= WINDOW {
            return Err(Overrun);
        }
        self.outstanding = self.outstanding.saturating_add(cost);
        Ok(())
    }

    /// Notes that the reader has taken such a message: what to grant now, if it is worth telling.
    #[must_use]
    pub fn consumed(&mut self, bytes: usize) -> Option<u32> {
        self.consumed_part(bytes + OVERHEAD)
    }

    /// The same for part of a message, and for several at once: `cost` counts their overheads.
    #[must_use]
    pub fn consumed_part(&mut self, cost: usize) -> Option<u32> {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(cost).min(self.outstanding);
        if self.consumed < WINDOW / 4 {
            return None;
        }
        let grant = std::mem::take(&mut self.consumed);
        self.outstanding -= grant;
        Some(grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_keeps_up_never_stops_the_sender() {
        let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
        for bytes in (0..100_000).map(|n| (n * 7919) % 65536) {
            assert!(send.is_open());
            send.spend(bytes);
            receive.received(bytes).expect("within the window");
            if let Some(grant) = receive.consumed(bytes) {
                send.grant(grant);
            }
        }
    }

    #[test]
    fn a_reader_that_sleeps_stops_the_sender_and_catches_one_that_goes_on() {
        for size in [0, 1, 999, 65536] {
            let (mut send, mut receive) = (SendWindow::default(), ReceiveWindow::default());
            let mut sent = 0;
            for _ in 0..3 {
                while send.is_open() {
                    send.spend(size);
                    receive.received(size).expect("within the window");
                    sent += 1;
                }
                assert!(sent * (size + OVERHEAD) <= WINDOW as usize + size + OVERHEAD);
                assert_eq!(receive.received(size), Err(Overrun));
                for _ in 0..std::mem::take(&mut sent) {
                    if let Some(grant) = receive.consumed(size) {
                        send.grant(grant);
                    }
                }
            }
        }
    }
}
