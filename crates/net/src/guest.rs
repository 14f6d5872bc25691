//! A guest without a VM, for tests: a network namespace with the inner address, whose device is the
//! tap of a slot, frame by frame. So what stands behind a slot is Linux' own network stack.
//!
//! Beside it what such tests need around it: places to put a host, an internet and guests, and what
//! one can see of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use hearth_model::network::inner;
use ipnet::Ipv4Net;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType};

use crate::netlink::Rtnl;
use crate::netns;
use crate::nft::Nft;

/// The guest's device.
const DEVICE: &str = "eth0";
/// `ETH_P_ALL`, in network order.
const EVERYTHING: u32 = 0x0003_u16.to_be() as u32;
const FRAME: usize = 1 << 16;

/// A network namespace.
#[derive(Debug, Clone)]
pub struct Place(Arc<OwnedFd>);

impl Place {
    /// Moves the calling thread, and the threads that it starts from now on, into a place where
    /// nobody else is: for a test, the host.
    ///
    /// # Errors
    /// The process may not.
    pub fn move_here() -> io::Result<Self> {
        netns::leave_for_a_new_one()?;
        // It speaks unasked, which is in the way of seeing nothing.
        for which in ["all", "default"] {
            netns::set_parameter(&format!("net/ipv6/conf/{which}/disable_ipv6"), "1")?;
        }
        let rtnl = Rtnl::open()?;
        set_up(&rtnl, "lo")?;
        Ok(Self(Arc::new(netns::current()?)))
    }

    /// A new one without a name, which goes with its last user.
    ///
    /// # Errors
    /// The process may not.
    pub fn new() -> io::Result<Self> {
        netns::in_thread("place", Self::move_here)?
    }

    /// The one that a slot has.
    #[must_use]
    pub fn of(netns: Arc<OwnedFd>) -> Self {
        Self(netns)
    }

    /// Runs something there. Sockets that are opened stay there.
    ///
    /// # Panics
    /// The thread cannot enter, or what it runs panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                netns::enter(self.0.as_fd()).expect("enter a network namespace");
                work()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Links two places by a pair of devices with these names and addresses.
    ///
    /// # Errors
    /// A call failed.
    pub fn link(&self, end: (&str, Ipv4Net), other: &Self, other_end: (&str, Ipv4Net)) -> io::Result<()> {
        self.run(|| Rtnl::open()?.add_veth(end.0, other_end.0, other.0.as_fd()))?;
        for (place, (name, address)) in [(self, end), (other, other_end)] {
            place.run(|| {
                let rtnl = Rtnl::open()?;
                rtnl.add_address(set_up(&rtnl, name)?, address.addr(), address.prefix_len())
            })?;
        }
        Ok(())
    }

    /// Takes a device away.
    ///
    /// # Errors
    /// A call failed.
    pub fn remove_link(&self, name: &str) -> io::Result<()> {
        self.run(|| Rtnl::open()?.remove_link(name))
    }

    /// The links, addresses and routes that are there.
    ///
    /// # Errors
    /// The kernel could not be asked.
    pub fn listing(&self) -> io::Result<Vec<String>> {
        self.run(|| {
            let rtnl = Rtnl::open()?;
            let links: BTreeMap<u32, String> = rtnl.links()?.into_iter().map(|link| (link.index, link.name)).collect();
            let mut listing: Vec<String> = links.values().map(|name| format!("link {name}")).collect();
            listing.extend(
                rtnl.addresses()?.iter().map(|(address, on)| format!("address {address} on {:?}", links.get(on))),
            );
            listing.extend(rtnl.routes()?.iter().map(|route| format!("route {route:?}")));
            Ok(listing)
        })
    }

    /// All rules that are there, as `nft list ruleset` prints them.
    ///
    /// # Errors
    /// There is no library, or it could not ask the kernel.
    pub fn rules(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        self.run(|| Ok(Nft::load()?.run("list ruleset")?))
    }

    /// Changes rules, by commands as `nft` takes them.
    ///
    /// # Errors
    /// There is no library, or the kernel refused.
    pub fn set_rules(&self, commands: &str) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.run(|| Ok(Nft::load()?.run(commands).map(drop)?))
    }

    /// What passes the devices of this place from now on.
    ///
    /// # Errors
    /// The process may not.
    pub fn capture(&self) -> io::Result<Capture> {
        self.run(|| {
            let protocol = Protocol::from_raw(EVERYTHING.try_into().expect("not zero"));
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            Ok(Capture(rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(protocol))?))
        })
    }
}

/// What is seen of the devices of a place.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// The frames since the last call.
    ///
    /// # Errors
    /// Some were lost.
    pub fn frames(&self) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; FRAME];
        loop {
            match rustix::net::recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => frames.push(buffer[..length].to_vec()),
                Err(rustix::io::Errno::AGAIN) => return Ok(frames),
                // A device went down: there is nothing of it to see.
                Err(rustix::io::Errno::NETDOWN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A guest.
#[derive(Debug)]
pub struct Guest {
    place: Place,
    device: Arc<File>,
    pump: Option<Pump>,
}

#[derive(Debug)]
struct Pump {
    thread: JoinHandle<io::Result<()>>,
    /// Closed to end it.
    stop: io::PipeWriter,
    tap: Arc<File>,
    refused: Arc<AtomicU64>,
}

impl Guest {
    /// One with the inner address, not attached to any slot.
    ///
    /// # Errors
    /// The process may not.
    pub fn new() -> io::Result<Self> {
        let place = Place::new()?;
        let device = place.run(|| {
            let device = netns::open_tap(DEVICE)?;
            rustix::fs::fcntl_setfl(&device, OFlags::RDWR | OFlags::NONBLOCK)?;
            let rtnl = Rtnl::open()?;
            let index = rtnl.link(DEVICE)?.ok_or(io::ErrorKind::NotFound)?.index;
            rtnl.set_mac(index, inner::MAC)?;
            rtnl.add_address(index, inner::ADDRESS, inner::PREFIX)?;
            rtnl.set_up(index, true)?;
            rtnl.add_default_route(inner::GATEWAY, index)?;
            io::Result::Ok(device)
        })?;
        Ok(Self { place, device: Arc::new(device), pump: None })
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Takes another address beside its own.
    ///
    /// # Errors
    /// A call failed.
    pub fn add_address(&self, address: Ipv4Addr) -> io::Result<()> {
        self.place.run(|| {
            let rtnl = Rtnl::open()?;
            let index = rtnl.link(DEVICE)?.ok_or(io::ErrorKind::NotFound)?.index;
            rtnl.add_address(index, address, 32)
        })
    }

    /// Takes another device address.
    ///
    /// # Errors
    /// A call failed.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        self.place.run(|| {
            let rtnl = Rtnl::open()?;
            let index = rtnl.link(DEVICE)?.ok_or(io::ErrorKind::NotFound)?.index;
            rtnl.set_mac(index, mac)
        })
    }

    /// Is from now on what the slot's tap leads to, as a VMM opens it. Whatever the guest knows, it
    /// keeps: as one that was saved, and woke up in this slot.
    ///
    /// # Errors
    /// The tap cannot be opened.
    pub fn attach(&mut self, slot: &Arc<OwnedFd>) -> io::Result<()> {
        self.detach();
        let tap = Place::of(Arc::clone(slot)).run(|| netns::open_tap(inner::TAP))?;
        rustix::fs::fcntl_setfl(&tap, OFlags::RDWR | OFlags::NONBLOCK)?;
        let (stopped, stop) = io::pipe()?;
        let refused = Arc::new(AtomicU64::new(0));
        let tap = Arc::new(tap);
        let (device, there, count) = (Arc::clone(&self.device), Arc::clone(&tap), Arc::clone(&refused));
        let thread =
            thread::Builder::new().name("guest".into()).spawn(move || pump(&device, &there, &stopped, &count))?;
        self.pump = Some(Pump { thread, stop, tap, refused });
        Ok(())
    }

    /// Closes the slot's tap.
    ///
    /// # Panics
    /// What moved the frames ended before.
    pub fn detach(&mut self) {
        if let Some(Pump { thread, stop, .. }) = self.pump.take() {
            drop(stop);
            thread.join().expect("no panic").expect("both ends stayed");
        }
    }

    /// How many frames of the guest the slot's tap did not take.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.pump.as_ref().map_or(0, |pump| pump.refused.load(Ordering::Relaxed))
    }

    /// Sends a frame as it is, past the guest's own stack; says whether the slot's tap took it.
    ///
    /// # Panics
    /// It is attached to no slot.
    ///
    /// # Errors
    /// The tap cannot be written to.
    pub fn send(&self, frame: &[u8]) -> io::Result<bool> {
        let mut tap = self.pump.as_ref().expect("attached").tap.as_ref();
        match tap.write(frame) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.detach();
    }
}

fn set_up(rtnl: &Rtnl, name: &str) -> io::Result<u32> {
    let index = rtnl.link(name)?.ok_or(io::ErrorKind::NotFound)?.index;
    rtnl.set_up(index, true)?;
    Ok(index)
}

/// Moves frames both ways until the pipe is closed.
fn pump(guest: &File, slot: &File, stopped: &io::PipeReader, refused: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; FRAME];
    loop {
        let mut fds = [
            PollFd::new(guest, PollFlags::IN),
            PollFd::new(slot, PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[2].revents().contains(PollFlags::HUP) {
            return Ok(());
        }
        for (mut from, mut to, count) in [(guest, slot, true), (slot, guest, false)] {
            // Some at a time, so that neither way waits for the other.
            for _ in 0..64 {
                let length = match from.read(&mut buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The device is down.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                    Err(error) => return Err(error),
                };
                match to.write(&buffer[..length]) {
                    Ok(_) => {}
                    // The gate is closed: a VMM loses the frame as well.
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                        refused.fetch_add(u64::from(count), Ordering::Relaxed);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}
