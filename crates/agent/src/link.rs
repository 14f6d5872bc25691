//! The byte stream to the host: a virtio-serial port, or connections to a listening socket.
//!
//! In: readiness; out: bytes and the news that the host is gone. Does not know what the bytes say.
//!
//! A virtio-serial port is always "hung up" and readable while the host's end is closed, which
//! would spin any level-triggered poll. So the stream sits in an epoll of its own, edge-triggered:
//! the driver wakes the port's wait queue when the host connects and when bytes come, and that is
//! when we look. There is no timer, and no wake-up to miss: after a restore the first byte from
//! the new host is an edge.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::sys;

const STREAM: u64 = 0;
const LISTENER: u64 = 1;
const COMPANION: u64 = 2;

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    Bytes(usize),
    /// Nothing until the next wake-up.
    Nothing,
    /// The host has closed its end.
    Lost,
}

/// What a wake-up brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Woken {
    /// Another connection took the place of the one before.
    pub replaced: bool,
    /// The other descriptor is readable.
    pub companion: bool,
}

pub struct Link {
    epoll: OwnedFd,
    stream: Option<OwnedFd>,
    listener: Option<OwnedFd>,
    may_read: bool,
    may_write: bool,
}

impl Link {
    /// A port that stays open while hosts come and go.
    pub fn port(port: OwnedFd) -> io::Result<Self> {
        let mut link = Self::new(None)?;
        link.watch(&port, STREAM)?;
        link.stream = Some(port);
        Ok(link)
    }

    /// A listening socket, in non-blocking mode. The newest connection is the host's.
    pub fn listener(listener: OwnedFd) -> io::Result<Self> {
        let link = Self::new(None)?;
        link.watch(&listener, LISTENER)?;
        Ok(Self { listener: Some(listener), ..link })
    }

    fn new(listener: Option<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, stream: None, listener, may_read: false, may_write: false })
    }

    fn watch(&self, fd: &OwnedFd, what: u64) -> io::Result<()> {
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(what), edges)?)
    }

    /// Has another descriptor watched too, so that there is one place to wait.
    pub fn accompany(&self, fd: &OwnedFd) -> io::Result<()> {
        let readable = epoll::EventFlags::IN;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(COMPANION), readable)?)
    }

    /// Readable when [`Link::wake`] should be called.
    pub fn waits_on(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Whether the news that the host is gone may come after what the next host has sent.
    pub fn reorders(&self) -> bool {
        self.listener.is_none()
    }

    /// Whether reading may bring something without another wake-up.
    pub fn may_read(&self) -> bool {
        self.may_read && self.stream.is_some()
    }

    /// Waits for news and takes it; `None` waits without end, and zero takes what is there.
    pub fn wake(&mut self, timeout: Option<Duration>) -> io::Result<Woken> {
        let mut woken = Woken::default();
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        let timeout = timeout.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data.u64() == STREAM {
                self.may_read = true;
                self.may_write = true;
                continue;
            }
            if event.data.u64() == COMPANION {
                woken.companion = true;
                continue;
            }
            while let Some(stream) = self.listener.as_ref().and_then(sys::accept) {
                self.watch(&stream, STREAM)?;
                self.stream = Some(stream);
                self.may_read = true;
                self.may_write = true;
                woken.replaced = true;
            }
        }
        Ok(woken)
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Input {
        let Some(stream) = &self.stream else { return Input::Nothing };
        match rustix::io::read(stream, buffer) {
            Ok(0) => self.lost(),
            Ok(bytes) => Input::Bytes(bytes),
            Err(Errno::INTR) => Input::Bytes(0),
            Err(Errno::AGAIN) => {
                self.may_read = false;
                Input::Nothing
            }
            Err(_) => self.lost(),
        }
    }

    fn lost(&mut self) -> Input {
        self.may_read = false;
        self.may_write = false;
        if self.listener.is_some() {
            self.stream = None;
        }
        Input::Lost
    }

    /// Writes what can be written now: how many bytes that was.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while self.may_write && written < bytes.len() {
            let Some(stream) = &self.stream else { break };
            match rustix::io::write(stream, &bytes[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                // A stream that is broken says so when it is read.
                Err(_) => self.may_write = false,
            }
        }
        written
    }
}
