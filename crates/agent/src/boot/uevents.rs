//! The kernel's news of devices, so that waiting for one needs no timer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::time::Timespec;

pub struct Uevents(OwnedFd);

impl Uevents {
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, 1))?;
        Ok(Self(socket))
    }

    /// Asks `look` again with each piece of news, until it finds something or the time is over.
    pub fn wait_for<T>(&self, give_up: Instant, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        loop {
            // First drain, then look: what happens after the look brings news again.
            let mut message = [0; 4096];
            while rustix::io::read(&self.0, &mut message).is_ok() {}
            if let Some(found) = look() {
                return Some(found);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let timeout = Timespec::try_from(left).ok()?;
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout));
        }
    }
}
