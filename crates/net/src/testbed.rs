//! Network namespaces for the tests of this crate: a host, slots with guests, and a world outside.
//!
//! A veth named like the tap is the guest's link, so that a guest is a namespace with a real network
//! stack and no VM is needed.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hearth_model::network::{Protocol, inner};

use crate::nft::Nft;
use crate::ruleset::{self, HostRules};

/// How long a test waits for what must not come.
const SILENCE: Duration = Duration::from_millis(200);
/// And for what must.
const PATIENCE: Duration = Duration::from_secs(5);

/// A network namespace that goes with the value.
#[derive(Debug)]
pub(crate) struct Netns {
    name: String,
    fd: OwnedFd,
}

/// Whether this process may make namespaces and rules; says that the test is skipped if not.
pub(crate) fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    let ip = Command::new("ip").arg("-V").output().is_ok_and(|output| output.status.success());
    let nft = Nft::load().is_ok();
    let probe = root && ip && Netns::try_new().is_ok();
    if !(probe && nft) {
        println!("SKIPPED: namespaces with rules: root {root}, ip {ip}, libnftables {nft}, namespace made {probe}");
    }
    probe && nft
}

impl Netns {
    pub(crate) fn new() -> Self {
        let netns = Self::try_new().expect("a network namespace");
        netns.ip("link set lo up");
        netns
    }

    fn try_new() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hearth-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("ip").args(["netns", "add", &name]).output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let fd = std::fs::File::open(format!("/run/netns/{name}"))?.into();
        Ok(Self { name, fd })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs something on a thread in this namespace. Sockets made there stay of this namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let kind = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(self.fd.as_fd(), Some(kind)).expect("enter the namespace");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// `ip` with these words, in this namespace.
    pub(crate) fn ip(&self, words: &str) {
        let output = Command::new("ip").args(["-n", &self.name]).args(words.split(' ')).output().expect("ip runs");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A veth pair, one end of it in another namespace.
    pub(crate) fn link(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.name));
        self.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {other_name} up"));
    }

    pub(crate) fn nft(&self, commands: &str) -> String {
        self.try_nft(commands).unwrap_or_else(|error| panic!("{error}\n{commands}"))
    }

    pub(crate) fn try_nft(&self, commands: &str) -> Result<String, crate::nft::NftError> {
        self.enter(|| Nft::load().expect("libnftables").run(commands))
    }

    pub(crate) fn sysctls(&self, settings: &[(&str, &str)]) {
        self.enter(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
            }
        });
    }

    pub(crate) fn tcp_listener(&self, at: SocketAddrV4) -> TcpListener {
        self.enter(|| TcpListener::bind(at)).expect("bind a listener")
    }

    pub(crate) fn udp(&self, at: SocketAddrV4) -> UdpSocket {
        self.enter(|| UdpSocket::bind(at)).expect("bind a socket")
    }

    pub(crate) fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE))
    }

    /// The same where the answer may be silence.
    pub(crate) fn try_connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&SocketAddr::V4(to), Duration::from_millis(500)))
    }

    /// Packets counted by a named counter.
    pub(crate) fn counted(&self, family: &str, table: &str, counter: &str) -> u64 {
        let list = format!("list counter {family} {table} {counter}");
        let listed = self.enter(|| Nft::load().expect("libnftables").list(&list)).expect("the counter");
        let objects = listed["nftables"].as_array().expect("a list");
        objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).expect("packets")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

pub(crate) const TAG: &str = "ab12";
/// The host on its LAN, and who is there beside it.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Further addresses of the world.
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The host on the links to its slots.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);

/// A host with two slots, and the world beyond it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) host: Netns,
    pub(crate) world: Netns,
    pub(crate) a: Slot,
    pub(crate) b: Slot,
}

/// A slot with its guest.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) netns: Netns,
    pub(crate) guest: Netns,
    pub(crate) outer: Ipv4Addr,
}

pub(crate) fn rules(isolated: bool, host_ports: &[(Protocol, u16)]) -> HostRules<'_> {
    HostRules { tag: TAG, cidr: "10.100.0.0/16".parse().expect("a network"), isolated, host_ports }
}

pub(crate) fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

impl World {
    pub(crate) fn new(rules: &HostRules<'_>) -> Self {
        let (host, world) = (Netns::new(), Netns::new());
        host.link("lan0", &world, "lan0");
        host.ip("addr add 192.0.2.1/24 dev lan0");
        world.ip("addr add 192.0.2.2/24 dev lan0");
        for address in [FAR, OTHER, METADATA] {
            world.ip(&format!("addr add {address}/32 dev lo"));
        }
        host.ip("route add default via 192.0.2.2");
        // Somebody on the LAN who sends what is for the instances to their host.
        world.ip("route add 10.100.0.0/16 via 192.0.2.1");
        host.sysctls(&[("net/ipv4/ip_forward", "1")]);
        host.nft(&ruleset::host(rules, &[]));
        let a = Slot::new(&host, 0, Ipv4Addr::new(10, 100, 0, 7));
        let b = Slot::new(&host, 1, Ipv4Addr::new(10, 100, 0, 8));
        Self { host, world, a, b }
    }
}

impl Slot {
    pub(crate) fn new(host: &Netns, number: u8, outer: Ipv4Addr) -> Self {
        let guest = Netns::new();
        let netns = Self::place(host, number, outer);
        netns.link("hearth0", &guest, "eth0");
        guest.ip(&format!("link set eth0 address {}", inner::MAC_TEXT));
        guest.ip("addr add 10.0.2.15/24 dev eth0");
        guest.ip("route add default via 10.0.2.2");
        Self::prepare(&netns);
        Self { netns, guest, outer }
    }

    /// Everything but the guest's link.
    pub(crate) fn place(host: &Netns, number: u8, outer: Ipv4Addr) -> Netns {
        let netns = Netns::new();
        let link = format!("hv{TAG}{number}");
        host.link(&link, &netns, "up0");
        host.ip(&format!("addr add 10.100.0.1/32 dev {link}"));
        host.ip(&format!("route add {outer}/32 dev {link} src 10.100.0.1"));
        netns.ip(&format!("addr add {outer}/32 dev up0"));
        netns.ip("route add default via 10.100.0.1 dev up0 onlink");
        netns
    }

    pub(crate) fn prepare(netns: &Netns) {
        netns.ip("addr add 10.0.2.2/24 dev hearth0");
        netns.ip("addr add 10.0.2.3/32 dev hearth0");
        netns.nft(&ruleset::slot());
        let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
        let settings: Vec<_> =
            ruleset::SLOT_SYSCTLS.into_iter().filter(|(name, _)| ipv6 || !name.contains("ipv6")).collect();
        netns.sysctls(&settings);
    }

    pub(crate) fn listener(&self, port: u16) -> TcpListener {
        self.guest.tcp_listener(at(inner::ADDRESS, port))
    }
}

/// A connection gets through: it arrives from where it should, and bytes go both ways.
pub(crate) fn reaches(from: &Netns, to: SocketAddrV4, listener: &TcpListener) -> IpAddr {
    let mut client = from.connect(to).unwrap_or_else(|error| panic!("connect to {to}: {error}"));
    let (mut served, peer) = listener.accept().expect("it arrives");
    client.write_all(b"ping").expect("write");
    let mut four = [0; 4];
    served.read_exact(&mut four).expect("read");
    served.write_all(b"pong").expect("answer");
    client.read_exact(&mut four).expect("read the answer");
    assert_eq!(&four, b"pong");
    peer.ip()
}

/// A connection is refused at once, and nothing of it arrives at the listener.
pub(crate) fn is_refused(from: &Netns, to: SocketAddrV4, listener: &TcpListener) {
    let began = std::time::Instant::now();
    let error = from.connect(to).expect_err("it must be refused");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}: {error}");
    assert!(began.elapsed() < PATIENCE / 2, "refused, but only after {:?}", began.elapsed());
    nothing_arrives(listener);
}

/// Nobody connects.
pub(crate) fn nothing_arrives(listener: &TcpListener) {
    listener.set_nonblocking(true).expect("set");
    std::thread::sleep(SILENCE);
    let arrived = listener.accept();
    listener.set_nonblocking(false).expect("set");
    assert!(arrived.is_err(), "a connection arrived that must not: {arrived:?}");
}

/// A datagram gets through, and so does the answer.
pub(crate) fn datagram_reaches(from: &Netns, to: SocketAddrV4, receiver: &UdpSocket) -> IpAddr {
    let sender = from.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    sender.connect(to).expect("a route");
    for socket in [&sender, receiver] {
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
    }
    sender.send(b"ping").expect("send");
    let mut buffer = [0; 16];
    let (_, peer) = receiver.recv_from(&mut buffer).expect("it arrives");
    receiver.send_to(b"pong", peer).expect("answer");
    assert_eq!(sender.recv(&mut buffer).expect("the answer"), 4);
    peer.ip()
}

/// A datagram does not arrive, and the sender is told at once.
pub(crate) fn datagram_is_refused(from: &Netns, to: SocketAddrV4, receiver: &UdpSocket) {
    let sender = from.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    sender.connect(to).expect("a route");
    sender.set_read_timeout(Some(PATIENCE)).expect("set");
    sender.send(b"ping").expect("send");
    let mut buffer = [0; 16];
    let error = sender.recv(&mut buffer).expect_err("no answer");
    let told = matches!(error.kind(), io::ErrorKind::HostUnreachable | io::ErrorKind::ConnectionRefused);
    assert!(told, "{to}: {error}");
    receiver.set_read_timeout(Some(SILENCE)).expect("set");
    assert!(receiver.recv_from(&mut buffer).is_err(), "a datagram arrived that must not");
}
