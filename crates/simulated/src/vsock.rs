//! The host's door to the guest: a Unix socket, `CONNECT <port>` in, `OK <port>` out, then bytes.
//!
//! As on Firecracker: the socket's file must not be there before, and stays behind. Connections are
//! not carried over a snapshot: once the guest runs again its ends of them are reset, and the host
//! learns of it when it next sends something. A connection made between a load and its resume is let
//! in before the guest has found that reset, and may be lost to it; here it always is. And the defect of 1.16.0 and 1.16.1: every resume
//! after which the guest finds no reset to acknowledge (that is, with no snapshot or load since the
//! last one) stops everything from host to guest, new connections too, until the next snapshot.

use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hearth_agent_client::VSOCK_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::faults::{Answer, Faults, When};
use crate::running::Listener;

/// The host's port of the first connection.
pub(crate) const FIRST_PORT: u32 = 1 << 30;

/// What is between host and guest.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    running: bool,
    /// Whether it was loaded and has not run since: callers are let in already.
    fresh: bool,
    /// Whether the guest's driver has been there: of one that has not, nobody expects anything.
    active: bool,
    /// Whether what the host sends waits for an acknowledgement that does not come.
    stuck: bool,
    /// Counts the resets.
    resets: u64,
}

/// What was with the guest before.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Past {
    /// Nothing: it boots, and takes so long until somebody listens.
    Booted { takes: Duration },
    /// It was saved.
    Loaded { next_port: u32 },
}

/// When a guest that boots can be called.
#[derive(Debug, Clone, Copy)]
struct Boot {
    /// From now on callers are told something.
    driver: Instant,
    /// From now on they are let in.
    agent: Instant,
}

/// Where callers are received.
#[derive(Debug, Clone)]
struct Lobby {
    link: watch::Sender<Link>,
    guest: Option<Listener>,
    boots: Option<Boot>,
    next_port: Arc<AtomicU32>,
    faults: Arc<Faults>,
}

/// The door of a machine that was built. Dropping it closes it; its file stays.
#[derive(Debug)]
pub(crate) struct Door {
    link: watch::Sender<Link>,
    next_port: Arc<AtomicU32>,
    accepting: JoinHandle<()>,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Binds the socket: from now on connections wait.
pub(crate) fn bind(path: &str) -> io::Result<Bound> {
    let bound = Bound::bind(path)?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

impl Door {
    /// Opens it to a paused guest: one that boots for so long, or one that was saved with its driver
    /// there, and the host's next port.
    pub(crate) fn open(bound: Bound, guest: Option<Listener>, past: Past, faults: Arc<Faults>) -> io::Result<Self> {
        let (loaded, boots) = match past {
            Past::Loaded { next_port } => (Some(next_port), None),
            Past::Booted { takes } if takes.is_zero() => (None, None),
            Past::Booted { takes } => {
                (None, Some(Boot { driver: Instant::now() + takes / 2, agent: Instant::now() + takes }))
            }
        };
        let listener = UnixListener::from_std(bound)?;
        let link = watch::Sender::new(Link { active: loaded.is_some(), fresh: loaded.is_some(), ..Link::default() });
        let next_port = Arc::new(AtomicU32::new(loaded.unwrap_or(FIRST_PORT)));
        let lobby = Lobby { link: link.clone(), guest, boots, next_port: Arc::clone(&next_port), faults };
        let accepting = tokio::spawn(accept(listener, lobby));
        Ok(Self { link, next_port, accepting })
    }

    /// The host's port of the next connection, which a snapshot keeps.
    pub(crate) fn next_port(&self) -> u32 {
        self.next_port.load(Ordering::Relaxed)
    }

    /// The guest runs; `reset` says whether there is a reset that it has not seen yet.
    pub(crate) fn resumed(&self, reset: bool) {
        self.link.send_modify(|link| {
            if reset {
                link.resets += 1;
            }
            link.stuck = link.active && !reset;
            link.active = true;
            link.fresh = false;
            link.running = true;
        });
    }

    /// The guest halts.
    pub(crate) fn paused(&self) {
        self.link.send_modify(|link| link.running = false);
    }
}

async fn accept(listener: UnixListener, lobby: Lobby) {
    loop {
        until(&lobby.link, |link| link.running || link.fresh).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let lobby = lobby.clone();
                tokio::spawn(async move {
                    // A connection's errors are its end, and nobody's concern.
                    let _ = lobby.receive(stream).await;
                });
            }
            Err(error) => {
                crate::log::complain("main", format_args!("vsock: unable to accept local connection: {error}"));
            }
        }
    }
}

impl Lobby {
    async fn receive(self, mut stream: UnixStream) -> io::Result<()> {
        let Some(port) = named_port(&mut stream).await? else { return Ok(()) };
        let local_port = self.next_port.fetch_add(1, Ordering::Relaxed);
        if self.faults.meet("vsock", &port.to_string())?.happen(When::Before).await != Answer::AsItIs {
            return Ok(());
        }
        let link = &self.link;
        let too_early = link.borrow().fresh;
        until(link, |link| link.running && !link.stuck).await;
        // Without a driver in the guest there is nobody to refuse.
        let Some(guest) = self.guest else { std::future::pending().await };
        if let Some(boot) = self.boots {
            tokio::time::sleep_until(boot.driver).await;
            if Instant::now() < boot.agent {
                return Ok(());
            }
        }
        if port != VSOCK_PORT {
            return Ok(());
        }
        let resets = link.borrow().resets;
        stream.write_all(format!("OK {local_port}\n").as_bytes()).await?;
        if too_early {
            return forgotten(&mut stream).await;
        }
        let (ours, guests) = tokio::io::duplex(64 * 1024);
        let serving = guest.serve(guests);
        tokio::select! {
            ended = carry(&mut stream, ours, link) => {
                serving.abort();
                ended
            }
            () = until(link, |link| link.running && link.resets != resets) => {
                serving.abort();
                forgotten(&mut stream).await
            }
        }
    }
}

/// The guest knows nothing of it any more, and says so when it is spoken to.
async fn forgotten(stream: &mut UnixStream) -> io::Result<()> {
    stream.read(&mut [0; 1]).await.map(drop)
}

/// The port of a connection's first line; `None` when it is not such a line.
async fn named_port(stream: &mut UnixStream) -> io::Result<Option<u32>> {
    const SHORTEST: usize = "connect 0\n".len();
    let mut line = [0; 32];
    let mut len = SHORTEST;
    stream.read_exact(&mut line[..SHORTEST]).await?;
    while line[len - 1] != b'\n' && len < line.len() {
        stream.read_exact(&mut line[len..=len]).await?;
        len += 1;
    }
    let line = String::from_utf8_lossy(&line[..len]).to_lowercase();
    let mut words = line.split_whitespace();
    Ok(match (words.next(), words.next()) {
        (Some("connect"), Some(port)) => port.parse().ok(),
        _ => None,
    })
}

/// Carries bytes both ways until one side ends, and only while the guest runs.
async fn carry(stream: &mut UnixStream, guest: DuplexStream, link: &watch::Sender<Link>) -> io::Result<()> {
    let (mut from_host, mut to_host) = stream.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let inwards = async {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let len = from_host.read(&mut bytes).await?;
            until(link, |link| link.running && !link.stuck).await;
            if len == 0 {
                return Ok(());
            }
            to_guest.write_all(&bytes[..len]).await?;
        }
    };
    let outwards = async {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let len = from_guest.read(&mut bytes).await?;
            until(link, |link| link.running).await;
            if len == 0 {
                return Ok(());
            }
            to_host.write_all(&bytes[..len]).await?;
        }
    };
    tokio::select! {
        ended = inwards => ended,
        ended = outwards => ended,
    }
}

async fn until(link: &watch::Sender<Link>, mut state: impl FnMut(&Link) -> bool) {
    // The sender is borrowed: it cannot be gone.
    let _ = link.subscribe().wait_for(|link| state(link)).await;
}
