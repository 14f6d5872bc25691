//! What passes a slot and what does not, seen from guests with a real network stack, from the host,
//! and from a place that stands for the internet.

mod support;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hearth_model::Network as Wanted;
use hearth_model::network::{Egress, inner};
use hearth_net::guest::Place;
use support::{Host, Instance, PATIENCE, get, on_a_host, serve};

const WAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// How long nothing must come for it to count as nothing.
const SILENCE: Duration = Duration::from_millis(300);
/// What is refused is refused at once: long before a connection attempt is repeated.
const AT_ONCE: Duration = Duration::from_millis(900);
/// An ICMP error that comes while the client is still in the call that connects counts for nothing in
/// Linux, and the one that answers the repetition, a second later, does.
const AT_SECOND: Duration = Duration::from_millis(2500);

/// Somebody whom the host can reach and who knows of no instances.
fn internet(host: &Host) -> Place {
    let internet = Place::new().expect("a namespace");
    let net = |address: Ipv4Addr| format!("{address}/24").parse().expect("a network");
    host.place.link(("wan0", net(WAN)), &internet, ("eth0", net(SERVER))).expect("linked");
    internet
}

fn at(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

/// A connection fails, and soon.
fn refused(from: &Place, to: SocketAddrV4) -> io::ErrorKind {
    let began = Instant::now();
    let error = get(from, to).expect_err("it must be refused");
    let limit = if error.kind() == io::ErrorKind::ConnectionRefused { AT_ONCE } else { AT_SECOND };
    assert!(began.elapsed() < limit, "{to}: {error}, but only after {:?}", began.elapsed());
    error.kind()
}

#[test]
fn a_guest_is_reached_at_its_address_and_reaches_out_as_the_host() {
    on_a_host(1, |host| {
        host.open(&[]);
        let internet = internet(host);
        serve(&internet, 80, "internet");
        let web = host.instance("web", Wanted::default());
        web.serve(80);
        assert_eq!(get(&host.place, web.at(80)).expect("reached"), "web to 10.100.0.1");
        assert_eq!(get(web.guest.place(), at(SERVER, 80)).expect("reached"), format!("internet to {WAN}"));
        // Its own address leads to itself, as everybody else's knowledge of it does.
        assert!(get(web.guest.place(), web.at(80)).expect("reached").starts_with("web to "));
        let usage = host.network().usage(&web.wish.id).expect("it has a slot");
        assert!(
            usage.rx_bytes > 100 && usage.tx_bytes > 100 && usage.rx_packets > 5 && usage.tx_packets > 5,
            "{usage:?}"
        );
        host.release(&web.wish.id);
        assert_eq!(refused(&host.place, web.at(80)), io::ErrorKind::HostUnreachable);
    });
}

#[test]
fn instances_do_not_reach_each_other_unless_they_may() {
    for isolated in [true, false] {
        on_a_host(2, |host| {
            host.config.isolated = isolated;
            host.open(&[]);
            let (a, b) = (host.instance("a", Wanted::default()), host.instance("b", Wanted::default()));
            a.serve(80);
            b.serve(80);
            for (from, to) in [(&a, &b), (&b, &a)] {
                if isolated {
                    assert_eq!(refused(from.guest.place(), to.at(80)), io::ErrorKind::ConnectionRefused);
                } else {
                    let answer = get(from.guest.place(), to.at(80)).expect("reached");
                    assert_eq!(answer, format!("{} to {}", to.wish.name, from.wish.address));
                }
            }
            host.release(&a.wish.id);
            host.release(&b.wish.id);
        });
    }
}

#[test]
fn nothing_passes_a_closed_gate_either_way() {
    on_a_host(1, |host| {
        host.open(&[]);
        let internet = internet(host);
        host.fill();
        let web = host.closed("web", Wanted::default());
        web.serve(80);
        let slot = Place::of(web.netns.clone());
        for round in ["never opened", "opened and shut again"] {
            let captures = [&host.place, &slot, &internet].map(|place| place.capture().expect("seen"));
            let refused_before = web.guest.refused();
            web.guest.place().run(|| {
                // It looks for its gateway, asks for a name, sends datagrams and connects.
                let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
                socket.send_to(b"hello", at(SERVER, 9)).expect("sent");
                socket.send_to(b"who?", at(inner::DNS, 53)).expect("sent");
                TcpStream::connect_timeout(&SocketAddr::V4(at(SERVER, 80)), SILENCE).expect_err("no way out");
            });
            // Past its stack, which may still wait for the gateway's address.
            for _ in 0..3 {
                assert!(!web.guest.send(&datagram(&inner::MAC, inner::ADDRESS)).expect("written"), "{round}");
            }
            assert!(web.guest.refused() > refused_before, "{round}: the guest tried");
            for (capture, place) in captures.iter().zip(["host", "slot", "internet"]) {
                assert_eq!(capture.frames().expect("seen"), Vec::<Vec<u8>>::new(), "{round}: at the {place}");
            }
            // Nor in: whoever asks is told at once, and the guest sees nothing of it.
            let inside = web.guest.place().capture().expect("seen");
            assert_eq!(refused(&host.place, web.at(80)), io::ErrorKind::HostUnreachable, "{round}");
            let from_outside = |frame: &Vec<u8>| frame[6..12] != inner::MAC;
            let seen: Vec<_> = inside.frames().expect("seen").into_iter().filter(from_outside).collect();
            assert_eq!(seen, Vec::<Vec<u8>>::new(), "{round}");

            host.unlock(&web.wish.id);
            assert_eq!(get(&host.place, web.at(80)).expect("reached"), "web to 10.100.0.1");
            for capture in &captures[..2] {
                assert!(!capture.frames().expect("seen").is_empty(), "the same eyes see what passes");
            }
            host.shut(&web.wish.id);
        }
        host.release(&web.wish.id);
    });
}

#[test]
fn a_connection_that_the_source_had_is_reset_in_the_fork() {
    on_a_host(2, |host| {
        host.open(&[]);
        let internet = internet(host);
        let mut source = host.instance("source", Wanted::default());
        let listener = internet.run(|| TcpListener::bind((SERVER, 80))).expect("bound");
        let own = source.guest.place().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80))).expect("bound");
        // One that it opened, and one that somebody opened to it.
        let mut out = source.guest.place().run(|| TcpStream::connect(at(SERVER, 80))).expect("connected");
        let (mut server, _) = listener.accept().expect("accepted");
        let mut client = host.place.run(|| TcpStream::connect(source.at(80))).expect("connected");
        let (mut inward, _) = own.accept().expect("accepted");
        for (from, to) in [(&mut out, &mut server), (&mut client, &mut inward)] {
            from.write_all(b"hello").expect("sent");
            to.read_exact(&mut [0; 5]).expect("received");
        }

        // The guest is saved, and wakes up in another slot, believing that it is its source.
        host.shut(&source.wish.id);
        let fork = host.wish("fork", Wanted::default());
        let taken = host.take(&fork);
        source.guest.attach(&taken.netns).expect("attached");
        host.unlock(&fork.id);
        for stream in [&mut out, &mut inward] {
            let began = Instant::now();
            stream.write_all(b"still there?").expect("buffered");
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            let error = stream.read(&mut [0; 5]).expect_err("there is no such connection");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(began.elapsed() < AT_ONCE, "only after {:?}", began.elapsed());
        }
        // What talked to the source heard nothing of the fork.
        for stream in [&mut server, &mut client] {
            stream.set_read_timeout(Some(SILENCE)).expect("set");
            let error = stream.read(&mut [0; 5]).expect_err("nothing comes");
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
        // The fork itself connects as ever.
        let mut again = source.guest.place().run(|| TcpStream::connect(at(SERVER, 80))).expect("connected");
        again.write_all(b"hello").expect("sent");
        listener.accept().expect("accepted").0.read_exact(&mut [0; 5]).expect("received");
        host.release(&source.wish.id);
        host.release(&fork.id);
    });
}

/// A datagram to the internet, in a frame to the gateway.
fn datagram(mac: &[u8; 6], from: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0x52, 0x55, 10, 0, 2, 2];
    frame.extend_from_slice(mac);
    frame.extend_from_slice(&[0x08, 0x00]);
    let mut header = vec![0x45, 0, 0, 33, 0, 0, 0x40, 0, 64, 17, 0, 0];
    header.extend_from_slice(&from.octets());
    header.extend_from_slice(&SERVER.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded");
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend_from_slice(&header);
    // Ports 7777 to 9999, a length, no checksum, five bytes.
    frame.extend_from_slice(&[0x1e, 0x61, 0x27, 0x0f, 0, 13, 0, 0]);
    frame.extend_from_slice(b"spoof");
    frame
}

/// An ARP request for the gateway.
fn arp(mac: &[u8; 6], from: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(mac);
    frame.extend_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(mac);
    frame.extend_from_slice(&from.octets());
    frame.extend_from_slice(&[0; 6]);
    frame.extend_from_slice(&inner::GATEWAY.octets());
    frame
}

#[test]
fn a_guest_that_takes_another_address_sends_nothing() {
    on_a_host(1, |host| {
        host.open(&[]);
        let internet = internet(host);
        let receiver = internet.run(|| UdpSocket::bind((SERVER, 9999))).expect("bound");
        receiver.set_read_timeout(Some(PATIENCE)).expect("set");
        let web = host.instance("web", Wanted::default());
        let other_mac = [0x52, 0x54, 0, 0x12, 0x34, 0x57];
        let other = Ipv4Addr::new(10, 0, 2, 16);

        let arrives = |receiver: &UdpSocket| receiver.recv_from(&mut [0; 64]).map(|(_, from)| from.ip());
        web.guest.send(&datagram(&inner::MAC, inner::ADDRESS)).expect("sent");
        assert_eq!(arrives(&receiver).expect("an honest one arrives"), WAN);

        let outside = host.place.capture().expect("seen");
        let answers = web.guest.place().capture().expect("seen");
        let mut ipv6 = datagram(&inner::MAC, inner::ADDRESS);
        ipv6[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
        let mut tagged = datagram(&inner::MAC, inner::ADDRESS);
        tagged.splice(12..12, [0x81, 0x00, 0, 7]);
        let lies = [
            ("another address", datagram(&inner::MAC, other)),
            ("the gateway's address", datagram(&inner::MAC, inner::GATEWAY)),
            ("an outer address", datagram(&inner::MAC, web.wish.address)),
            ("an address of loopback", datagram(&inner::MAC, Ipv4Addr::LOCALHOST)),
            ("another device's address", datagram(&other_mac, inner::ADDRESS)),
            ("IPv6", ipv6),
            ("a VLAN", tagged),
            ("ARP for another address", arp(&inner::MAC, other)),
            ("ARP of another device", arp(&other_mac, inner::ADDRESS)),
        ];
        for (lie, frame) in lies {
            assert!(web.guest.send(&frame).expect("sent"), "{lie}");
        }
        // Its own stack with a second address, too.
        web.guest.add_address(other).expect("added");
        web.guest.place().run(|| {
            let socket = UdpSocket::bind((other, 0)).expect("bound");
            socket.send_to(b"spoof", at(SERVER, 9999)).expect("sent");
        });
        thread::sleep(SILENCE);
        assert_eq!(outside.frames().expect("seen"), Vec::<Vec<u8>>::new());
        let arp_answers: Vec<_> = answers
            .frames()
            .expect("seen")
            .into_iter()
            .filter(|f| f[6..12] != inner::MAC && f[12..14] == [8, 6])
            .collect();
        assert_eq!(arp_answers.len(), 0, "nobody answers a liar: {arp_answers:?}");
        receiver.set_read_timeout(Some(Duration::from_millis(1))).expect("set");
        arrives(&receiver).expect_err("nothing arrives");

        // And an honest frame passes as before.
        receiver.set_read_timeout(Some(PATIENCE)).expect("set");
        web.guest.send(&datagram(&inner::MAC, inner::ADDRESS)).expect("sent");
        arrives(&receiver).expect("it arrives");
        let rules = Place::of(web.netns.clone()).rules().expect("listed");
        for counter in ["spoofed_mac", "spoofed_ip", "spoofed_arp"] {
            let counted = rules.split(&format!("counter {counter} {{")).nth(1).and_then(|rest| rest.lines().nth(1));
            assert!(counted.is_some_and(|line| !line.contains("packets 0 ")), "{counter}: {counted:?}");
        }
        host.release(&web.wish.id);
    });
}

#[test]
fn a_published_port_leads_to_the_guest_while_its_gate_is_open() {
    on_a_host(1, |host| {
        host.open(&[]);
        let internet = internet(host);
        let wanted = || Wanted { ports: vec!["8080:80".parse().expect("a port")], ..Wanted::default() };
        let web = host.closed("web", wanted());
        web.serve(80);
        assert_ne!(refused(&internet, at(WAN, 8080)), io::ErrorKind::TimedOut);
        host.unlock(&web.wish.id);
        assert!(get(&internet, at(WAN, 8080)).expect("reached").starts_with("web to "));
        for address in [WAN, Ipv4Addr::LOCALHOST] {
            assert!(get(&host.place, at(address, 8080)).expect("reached").starts_with("web to "), "{address}");
        }

        // Its port is its own, and another that wants it leaves nothing.
        let other = host.wish("other", wanted());
        let error = host.try_take(&other).expect_err("the port is taken");
        assert_eq!(error.to_string(), "publish port 8080/tcp: instance web has it");
        assert!(get(&internet, at(WAN, 8080)).expect("reached").starts_with("web to "));
        host.release(&web.wish.id);
        assert_eq!(refused(&internet, at(WAN, 8080)), io::ErrorKind::ConnectionRefused);
        // So is one of somebody who is no instance.
        let held = host.place.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))).expect("free again");
        let error = host.try_take(&other).expect_err("the port is taken");
        assert!(error.to_string().starts_with("publish port 8080/tcp: "), "{error}");
        assert_eq!(hearth_model::Kind::kind(&error), hearth_model::ErrorKind::AlreadyExists);
        drop(held);
        host.take(&other);
        host.release(&other.id);
    });
}

#[test]
fn a_guest_without_egress_is_refused_at_once_and_still_answers() {
    on_a_host(1, |host| {
        host.open(&[]);
        let internet = internet(host);
        serve(&internet, 80, "internet");
        let web: Instance = host.instance("web", Wanted { egress: Egress::None, ..Wanted::default() });
        web.serve(80);
        assert_eq!(refused(web.guest.place(), at(SERVER, 80)), io::ErrorKind::ConnectionRefused);
        assert_eq!(get(&host.place, web.at(80)).expect("reached"), "web to 10.100.0.1");
        host.release(&web.wish.id);
    });
}

#[test]
fn a_guest_does_not_reach_the_host_s_own_ports_but_those_it_may() {
    on_a_host(1, |host| {
        host.config.host_ports = vec![(hearth_model::network::Protocol::Tcp, 7070)];
        host.open(&[]);
        let _stays = internet(host);
        serve(&host.place, 7070, "host");
        serve(&host.place, 7071, "secret");
        let web = host.instance("web", Wanted::default());
        for address in [Ipv4Addr::new(10, 100, 0, 1), WAN] {
            assert!(get(web.guest.place(), at(address, 7070)).expect("it may").starts_with("host to "));
            assert_eq!(refused(web.guest.place(), at(address, 7071)), io::ErrorKind::ConnectionRefused);
        }
        host.release(&web.wish.id);
    });
}

/// A question for the address of a name.
fn question(name: &str) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("short"));
        packet.extend_from_slice(label.as_bytes());
    }
    packet.extend_from_slice(&[0, 0, 1, 0, 1]);
    packet
}

/// What the guest's name server answers: a code, and the last address, if there is any.
fn ask(from: &Place, name: &str) -> (u8, Option<Ipv4Addr>) {
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        socket.send_to(&question(name), at(inner::DNS, 53)).expect("sent");
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).expect("an answer");
        let address = answer[..length].last_chunk::<4>().map(|octets| Ipv4Addr::from(*octets));
        (answer[3] & 0xf, address.filter(|_| answer[7] > 0))
    })
}

/// The code that says that a question is not answered to whoever asks.
const REFUSED: u8 = 5;

/// A name server for whom every name stands for one address.
fn answer_all(at: &Place, with: Ipv4Addr) {
    let socket = at.run(|| UdpSocket::bind((SERVER, 53))).expect("bound");
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let end = 12 + packet[12..length].iter().position(|byte| *byte == 0).expect("a name") + 5;
            let mut answer = packet[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
            answer.extend_from_slice(&with.octets());
            if socket.send_to(&answer, from).is_err() {
                return;
            }
        }
    });
}

#[test]
fn names_lead_to_instances_and_only_where_egress_allows() {
    on_a_host(2, |host| {
        host.config.isolated = false;
        host.config.dns = vec![SocketAddr::V4(at(SERVER, 53))];
        host.open(&[]);
        let internet = internet(host);
        serve(&internet, 80, "internet");
        answer_all(&internet, SERVER);
        let web = host.instance("web", Wanted::default());
        web.serve(80);
        let listed = Egress::Only(vec!["*.example.com".parse().expect("a pattern")]);
        let picky = host.instance("picky", Wanted { egress: listed, ..Wanted::default() });
        let silent = host.instance("silent", Wanted { egress: Egress::None, ..Wanted::default() });

        // Instances by name, from one that may reach all.
        assert_eq!(ask(web.guest.place(), "picky"), (0, Some(picky.wish.address)));
        assert_eq!(ask(web.guest.place(), "web.hearth.internal"), (0, Some(web.wish.address)));
        assert_eq!(ask(web.guest.place(), "www.example.org"), (0, Some(SERVER)));
        assert_eq!(ask(silent.guest.place(), "www.example.com").0, REFUSED);

        // An address of a name on the list is reached once it was asked for, and not before.
        assert_eq!(refused(picky.guest.place(), at(SERVER, 80)), io::ErrorKind::ConnectionRefused);
        assert_eq!(ask(picky.guest.place(), "www.example.org").0, REFUSED);
        assert_eq!(refused(picky.guest.place(), at(SERVER, 80)), io::ErrorKind::ConnectionRefused);
        assert_eq!(ask(picky.guest.place(), "www.example.com"), (0, Some(SERVER)));
        assert!(get(picky.guest.place(), at(SERVER, 80)).expect("reached").starts_with("internet to "));

        // Another daemon goes on with it.
        let seats = [&web, &picky, &silent].map(|one| one.seat.clone());
        host.die();
        host.open(&seats);
        for one in [&web, &picky, &silent] {
            host.runtime.block_on(host.network().adopt(&one.wish, &one.seat)).expect("adopted");
        }
        assert_eq!(ask(web.guest.place(), "picky"), (0, Some(picky.wish.address)));
        assert_eq!(ask(picky.guest.place(), "www.example.org").0, REFUSED);
        assert_eq!(ask(picky.guest.place(), "www.example.com"), (0, Some(SERVER)));
        for one in [&picky, &silent] {
            host.release(&one.wish.id);
        }
        assert_ne!(ask(web.guest.place(), "picky").1, Some(picky.wish.address), "it is gone");
        host.release(&web.wish.id);
    });
}

#[test]
fn a_host_that_refuses_to_forward_lets_instances_through_and_is_left_as_it_was() {
    const DROPS: &str = "table ip filter {
        chain FORWARD {
            type filter hook forward priority filter; policy drop;
        }
    }";
    on_a_host(1, |host| {
        let internet = internet(host);
        serve(&internet, 80, "internet");
        host.place.set_rules(DROPS).expect("set");
        let before = host.place.rules().expect("listed");
        host.open(&[]);
        let web = host.instance("web", Wanted::default());
        assert!(get(web.guest.place(), at(SERVER, 80)).expect("reached").starts_with("internet to "));
        // Its owner writes it anew.
        host.place.set_rules(&format!("delete table ip filter\n{DROPS}")).expect("set");
        support::wait_for("the rules to be put in again", || {
            host.place.rules().expect("listed").matches("comment \"hearth_").count() == 2
        });
        assert!(get(web.guest.place(), at(SERVER, 80)).expect("reached").starts_with("internet to "));
        host.release(&web.wish.id);
        // Whoever still holds it holds nothing that adds rules again.
        let network = host.network().clone();
        host.close();
        assert_eq!(host.place.rules().expect("listed"), before);
        thread::sleep(SILENCE);
        assert_eq!(host.place.rules().expect("listed"), before);
        drop(network);
    });
}
