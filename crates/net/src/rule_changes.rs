//! Word of every change of rules in the host's namespace, whoever makes it.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
const DATAGRAM: usize = 1 << 16;

/// Tells of changes in the namespace in which it was made.
#[allow(missing_debug_implementations, reason = "the socket has none")]
pub(crate) struct RuleChanges {
    socket: TokioSocket,
    buffer: Vec<u8>,
}

impl RuleChanges {
    /// Needs a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(GROUP)?;
        Ok(Self { socket, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Waits until something has changed since the last call.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        self.buffer.clear();
        some(self.socket.recv(&mut self.buffer).await)?;
        // All that is known of by now is one change.
        loop {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => some(received.map(drop))?,
            }
        }
    }
}

/// More changes than the socket holds are some changes, too.
fn some(received: io::Result<()>) -> io::Result<()> {
    received.or_else(|error| if error.raw_os_error() == Some(libc::ENOBUFS) { Ok(()) } else { Err(error) })
}
