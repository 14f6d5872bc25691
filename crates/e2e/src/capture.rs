//! What passes this host's network devices, seen as a packet capture would.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// `ETH_P_IP` in network order. Source: `packet(7)`.
const IPV4: Protocol = Protocol::from_raw(rustix::net::RawProtocol::new(0x0800_u16.to_be() as u32).expect("not zero"));
/// How often the thread looks whether it is still wanted.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Watches every device of this network namespace until it is dropped.
#[derive(Debug)]
pub struct Capture {
    first: Arc<Mutex<BTreeMap<Ipv4Addr, Timestamp>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Begins. It needs root.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub fn begin() -> Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, Some(IPV4)).context("open a packet socket")?;
        let (first, ended) = (Arc::<Mutex<BTreeMap<_, _>>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::spawn({
            let (first, ended) = (Arc::clone(&first), Arc::clone(&ended));
            move || watch(&socket, &first, &ended)
        });
        Ok(Self { first, ended, thread: Some(thread) })
    }

    /// When the first packet from that address was seen.
    #[must_use]
    pub fn first_from(&self, address: Ipv4Addr) -> Option<Timestamp> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get(&address).copied()
    }

    /// Every address that a packet came from.
    #[must_use]
    pub fn senders(&self) -> Vec<Ipv4Addr> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn watch(socket: &OwnedFd, first: &Mutex<BTreeMap<Ipv4Addr, Timestamp>>, ended: &AtomicBool) {
    let mut packet = [0; 64];
    while !ended.load(Ordering::Relaxed) {
        poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&LOOK)).ok();
        while let Ok((read, _)) = recv(socket, &mut packet[..], RecvFlags::TRUNC) {
            let now = Timestamp::now();
            // The source's place in an IPv4 header.
            if read >= 20 {
                let source = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
                first.lock().unwrap_or_else(PoisonError::into_inner).entry(source).or_insert(now);
            }
        }
    }
}
