//! A host of its own for each test, in a network namespace, with instances on it.

#![allow(dead_code, reason = "each test file uses a part")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hearth_model::{InstanceId, Network as Wanted};
use hearth_net::guest::{Guest, Place};
use hearth_net::{NetConfig, NetError, NetSeat, Network, Slots, Taken, Wish};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long is waited for what must come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A host, and a daemon's network on it.
pub struct Host {
    pub place: Place,
    pub runtime: Runtime,
    pub config: NetConfig,
    network: Option<Network>,
    _data: TempDir,
}

/// An instance with a guest.
pub struct Instance {
    pub wish: Wish,
    pub seat: NetSeat,
    pub netns: Arc<OwnedFd>,
    pub guest: Guest,
}

/// Runs a test on a host of its own, with a pool of this depth; or says that it cannot.
pub fn on_a_host(pool: usize, test: impl FnOnce(&mut Host)) {
    if let Err(why) = Network::possible() {
        let why = hearth_model::error::chain(&why);
        assert!(std::env::var_os("HEARTH_TEST_MUST_RUN").is_none(), "cannot run here: {why}");
        println!("SKIPPED: networks of instances: {why}");
        return;
    }
    let place = Place::move_here().expect("a namespace");
    // Its threads stay where the one was that started them.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("started");
    let data = tempfile::tempdir().expect("a directory");
    let config = NetConfig { pool, ..NetConfig::new(data.path().to_owned()) };
    let mut host = Host { place, runtime, config, network: None, _data: data };
    test(&mut host);
    host.end();
}

impl Host {
    /// Opens the network, as a daemon does that starts.
    pub fn open(&mut self, owned: &[NetSeat]) {
        // Another's that just died may not be gone entirely.
        let deadline = Instant::now() + PATIENCE;
        let network = loop {
            match self.runtime.block_on(Network::open(self.config.clone(), owned)) {
                Err(NetError::TagTaken { .. }) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                other => break other.expect("opened"),
            }
        };
        self.network = Some(network);
    }

    /// The daemon dies: nothing is released.
    pub fn die(&mut self) {
        self.network = None;
    }

    /// The daemon ends.
    pub fn close(&mut self) {
        if let Some(network) = self.network.take() {
            self.runtime.block_on(network.close());
        }
    }

    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("opened")
    }

    pub fn slots(&self) -> &Slots {
        match self.network() {
            Network::Slots(slots) => slots,
            Network::Fake(_) => panic!("these are real"),
        }
    }

    pub fn wish(&self, name: &str, network: Wanted) -> Wish {
        let mut entropy = [0; 16];
        entropy[..name.len()].copy_from_slice(name.as_bytes());
        let address = self.network().lease().expect("an address");
        Wish { id: InstanceId::from_entropy(entropy), name: name.parse().expect("a name"), address, network }
    }

    pub fn try_take(&self, wish: &Wish) -> Result<Taken, NetError> {
        self.runtime.block_on(self.network().take(wish))
    }

    pub fn take(&self, wish: &Wish) -> Taken {
        self.try_take(wish).unwrap_or_else(|error| panic!("{}", hearth_model::error::chain(&error)))
    }

    pub fn unlock(&self, id: &InstanceId) {
        self.runtime.block_on(self.network().unlock(id)).expect("opened");
    }

    pub fn shut(&self, id: &InstanceId) {
        self.runtime.block_on(self.network().shut(id)).expect("shut");
    }

    pub fn release(&self, id: &InstanceId) {
        self.runtime.block_on(self.network().release(id)).expect("released");
    }

    /// An instance whose guest is attached to its slot, with the gate closed.
    pub fn closed(&self, name: &str, network: Wanted) -> Instance {
        let wish = self.wish(name, network);
        let Taken { seat, netns, .. } = self.take(&wish);
        let mut guest = Guest::new().expect("a guest");
        guest.attach(&netns).expect("attached");
        Instance { wish, seat, netns, guest }
    }

    /// The same with the gate open.
    pub fn instance(&self, name: &str, network: Wanted) -> Instance {
        let instance = self.closed(name, network);
        self.unlock(&instance.wish.id);
        instance
    }

    /// Waits until the pool is full.
    pub fn fill(&self) {
        let depth = self.config.pool;
        wait_for("a full pool", || self.slots().waiting() == depth);
    }

    /// Everything that can be seen of the host: links, addresses, routes, rules, named namespaces.
    pub fn listing(&self, namespaces: &str) -> Vec<String> {
        let mut listing = self.place.listing().expect("listed");
        listing.push(without_counts(&self.place.rules().expect("listed")));
        listing.extend(named(namespaces));
        listing
    }

    fn end(&mut self) {
        self.close();
        let left = self.place.listing().expect("listed");
        let ours: Vec<_> = left.iter().filter(|line| line.contains("hv")).collect();
        assert!(ours.is_empty(), "a test leaves instances behind: {ours:?}");
    }
}

impl Drop for Host {
    /// A test that failed leaves no more behind than one that did not.
    fn drop(&mut self) {
        if thread::panicking() {
            self.die();
            self.open(&[]);
            self.close();
        }
    }
}

impl Instance {
    /// The guest answers HTTP at this port, in a thread, as long as somebody asks.
    pub fn serve(&self, port: u16) {
        serve(self.guest.place(), port, &self.wish.name.to_string());
    }

    pub fn at(&self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.wish.address, port)
    }
}

/// Somebody answers HTTP there, and says a name.
pub fn serve(place: &Place, port: u16, name: &str) {
    let listener = place.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).expect("bound");
    let body = name.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &body).ok();
        }
    });
}

fn answer(mut stream: TcpStream, body: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let peer = stream.peer_addr()?;
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        asked.push(byte[0]);
    }
    let body = format!("{body} to {}", peer.ip());
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

/// Asks over HTTP; returns the body.
pub fn get(from: &Place, to: SocketAddrV4) -> io::Result<String> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        body.ok_or_else(|| io::Error::other(format!("no answer of HTTP: {answer:?}")))
    })
}

/// Waits for what must come.
pub fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_there() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The named namespaces that begin so.
pub fn named(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with(prefix));
    names.sort();
    names
}

/// Rules as text, but for what they have counted.
fn without_counts(rules: &str) -> String {
    let lines = rules.lines().filter(|line| !line.trim_start().starts_with("packets "));
    lines.collect::<Vec<_>>().join("\n")
}
