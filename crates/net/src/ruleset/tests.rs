//! The texts as data, and what they do in a kernel: each allowed and each refused case, with real
//! sockets. A refusal is seen at both ends: the one is told, and nothing arrives at the other.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use hearth_model::network::{Egress, Protocol, inner};

use super::*;
use crate::testbed::{
    FAR, GATEWAY, HOST, METADATA, Netns, OTHER, Slot, TAG, WORLD, World, at, datagram_is_refused, datagram_reaches,
    is_refused, nothing_arrives, possible, reaches, rules,
};

fn only(destinations: &[&str]) -> Egress {
    Egress::Only(destinations.iter().map(|text| text.parse().expect("a destination")).collect())
}

#[test]
fn the_texts_are_as_written_down() {
    let port =
        |protocol, host, last, guest| PublishedPort { protocol, host, outer: Ipv4Addr::new(10, 100, 0, last), guest };
    let ports = [port(Protocol::Tcp, 8080, 7, 80), port(Protocol::Udp, 53, 8, 5353)];
    assert_eq!(host(&rules(true, &[(Protocol::Tcp, 3128)]), &ports), include_str!("golden/host-isolated.nft"));
    assert_eq!(host(&rules(false, &[]), &[]), include_str!("golden/host-open.nft"));
    assert_eq!(slot(), include_str!("golden/slot.nft"));
    let egress = [
        egress(&Egress::Open),
        egress(&Egress::None),
        egress(&only(&["198.51.100.0/24", "0.0.0.0/0", "169.254.169.254", "*.example.com"])),
        admit(&[(FAR, Duration::from_secs(90)), (OTHER, Duration::ZERO)]),
        unpublish(TAG, &ports[1]),
        remove_host(TAG),
    ];
    assert_eq!(egress.join("--\n"), include_str!("golden/changes.nft"));
}

#[test]
fn a_guest_reaches_the_world_and_the_host_reaches_the_guest() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let far = w.world.tcp_listener(at(FAR, 80));
    assert_eq!(reaches(&w.a.guest, at(FAR, 80), &far), IpAddr::V4(HOST), "the world sees the host");
    let far = w.world.udp(at(FAR, 53));
    assert_eq!(datagram_reaches(&w.a.guest, at(FAR, 53), &far), IpAddr::V4(HOST));
    let served = w.a.listener(80);
    assert_eq!(reaches(&w.host, at(w.a.outer, 80), &served), IpAddr::V4(GATEWAY));
    let served = w.a.guest.udp(at(inner::ADDRESS, 9));
    datagram_reaches(&w.host, at(w.a.outer, 9), &served);
    assert!(echo(&w.host, w.a.outer), "an echo from the host");
    assert!(echo(&w.a.guest, WORLD), "an echo from the world");
}

#[test]
fn an_instance_reaches_itself_by_its_outer_address() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let served = w.a.listener(80);
    for mode in [Egress::Open, Egress::None] {
        w.a.netns.nft(&egress(&mode));
        // Twice: a redirect after the first would lead the second astray.
        reaches(&w.a.guest, at(w.a.outer, 80), &served);
        reaches(&w.a.guest, at(w.a.outer, 80), &served);
    }
}

#[test]
fn instances_reach_each_other_only_if_they_are_not_isolated() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let (served, datagrams) = (w.b.listener(80), w.b.guest.udp(at(inner::ADDRESS, 9)));
    is_refused(&w.a.guest, at(w.b.outer, 80), &served);
    datagram_is_refused(&w.a.guest, at(w.b.outer, 9), &datagrams);
    assert!(!echo(&w.a.guest, w.b.outer), "no echo either");
    assert!(w.host.counted("inet", "hearth_ab12", "refused") >= 3);
    w.host.nft(&host(&rules(false, &[]), &[]));
    assert_eq!(reaches(&w.a.guest, at(w.b.outer, 80), &served), IpAddr::V4(w.a.outer), "each by its own address");
    datagram_reaches(&w.a.guest, at(w.b.outer, 9), &datagrams);
    // An address of the range that nobody has does not lead out into the world.
    let stray = Ipv4Addr::new(10, 100, 0, 99);
    w.world.ip(&format!("addr add {stray}/32 dev lo"));
    let stray_listener = w.world.tcp_listener(at(stray, 80));
    is_refused(&w.a.guest, at(stray, 80), &stray_listener);
    is_refused(&w.host, at(stray, 80), &stray_listener);
}

#[test]
fn a_guest_reaches_no_port_of_the_host_but_those_allowed() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[(Protocol::Tcp, 3128), (Protocol::Udp, 123)]));
    let everywhere = Ipv4Addr::UNSPECIFIED;
    let (closed, open) = (w.host.tcp_listener(at(everywhere, 22)), w.host.tcp_listener(at(everywhere, 3128)));
    let (closed_udp, open_udp) = (w.host.udp(at(everywhere, 161)), w.host.udp(at(everywhere, 123)));
    w.host.ip("addr add 172.17.0.1/16 dev lo");
    for address in [GATEWAY, HOST, Ipv4Addr::new(172, 17, 0, 1)] {
        is_refused(&w.a.guest, at(address, 22), &closed);
        datagram_is_refused(&w.a.guest, at(address, 161), &closed_udp);
        assert_eq!(reaches(&w.a.guest, at(address, 3128), &open), IpAddr::V4(w.a.outer));
        assert!(echo(&w.a.guest, address), "{address} answers an echo");
    }
    datagram_reaches(&w.a.guest, at(GATEWAY, 123), &open_udp);
    // Ports of the host that somebody else's rules lead on to a container, say.
    let container = w.world.tcp_listener(at(FAR, 5432));
    w.host.nft(
        "table ip theirs {
            chain prerouting {
                type nat hook prerouting priority dstnat; policy accept;
                ip daddr 192.0.2.1 tcp dport { 3128, 5432 } dnat to 198.51.100.7:5432
            }
        }",
    );
    is_refused(&w.a.guest, at(HOST, 5432), &container);
    reaches(&w.a.guest, at(HOST, 3128), &container);
    reaches(&w.a.guest, at(FAR, 5432), &container);
    // The rest of the world reaches the host as ever.
    reaches(&w.world, at(HOST, 22), &closed);
}

#[test]
fn link_local_addresses_are_reached_only_when_asked_for_in_so_many_words() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    // As on a cloud's host: the metadata service is one hop away.
    let metadata = w.world.tcp_listener(at(METADATA, 80));
    reaches(&w.host, at(METADATA, 80), &metadata);
    for mode in [Egress::Open, Egress::None, only(&["0.0.0.0/0", "rebind.example.com"])] {
        w.a.netns.nft(&egress(&mode));
        w.a.netns.nft(&admit(&[(METADATA, Duration::from_secs(60))]));
        is_refused(&w.a.guest, at(METADATA, 80), &metadata);
    }
    w.a.netns.nft(&egress(&only(&["169.254.169.254"])));
    reaches(&w.a.guest, at(METADATA, 80), &metadata);
}

#[test]
fn egress_is_open_or_none_or_only_these() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let (far, other) = (w.world.tcp_listener(at(FAR, 80)), w.world.tcp_listener(at(OTHER, 80)));
    let far_udp = w.world.udp(at(FAR, 53));
    let served = w.a.listener(80);

    w.a.netns.nft(&egress(&Egress::None));
    is_refused(&w.a.guest, at(FAR, 80), &far);
    datagram_is_refused(&w.a.guest, at(FAR, 53), &far_udp);
    assert!(!echo(&w.a.guest, WORLD));
    reaches(&w.host, at(w.a.outer, 80), &served);
    assert!(echo(&w.a.guest, inner::GATEWAY), "its gateway is not beyond the host");

    w.a.netns.nft(&egress(&only(&["198.51.100.0/24", "198.51.0.0/16"])));
    reaches(&w.a.guest, at(FAR, 80), &far);
    datagram_reaches(&w.a.guest, at(FAR, 53), &far_udp);
    is_refused(&w.a.guest, at(OTHER, 80), &other);
    reaches(&w.host, at(w.a.outer, 80), &served);

    w.a.netns.nft(&egress(&Egress::Open));
    reaches(&w.a.guest, at(OTHER, 80), &other);
    // What one slot may, another need not.
    w.b.netns.nft(&egress(&Egress::None));
    is_refused(&w.b.guest, at(OTHER, 80), &other);
}

#[test]
fn an_address_of_a_name_is_reached_for_its_time_and_not_longer() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let far = w.world.tcp_listener(at(FAR, 80));
    w.a.netns.nft(&egress(&only(&["example.com"])));
    is_refused(&w.a.guest, at(FAR, 80), &far);
    w.a.netns.nft(&admit(&[(FAR, Duration::from_secs(1))]));
    // Asked again before it ends: the time counts from then.
    w.a.netns.nft(&admit(&[(FAR, Duration::from_secs(6))]));
    thread::sleep(Duration::from_millis(1500));
    let mut kept = w.a.guest.connect(at(FAR, 80)).expect("still within its time");
    let (mut served, _) = far.accept().expect("it arrives");
    let gone = Instant::now() + Duration::from_secs(15);
    while w.a.netns.nft("list set inet hearth names").contains(&FAR.to_string()) {
        assert!(Instant::now() < gone, "the element stays");
        thread::sleep(Duration::from_millis(100));
    }
    is_refused(&w.a.guest, at(FAR, 80), &far);
    // A connection that was made within the time goes on.
    kept.write_all(b"more").expect("write");
    let mut four = [0; 4];
    served.read_exact(&mut four).expect("it arrives");
}

#[test]
fn a_slot_itself_is_asked_for_names_and_an_echo_and_nothing_else() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let slot = &w.a.netns;
    let (dns, dns_udp) = (slot.tcp_listener(at(inner::DNS, 53)), slot.udp(at(inner::DNS, 53)));
    assert_eq!(reaches(&w.a.guest, at(inner::DNS, 53), &dns), IpAddr::V4(inner::ADDRESS));
    datagram_reaches(&w.a.guest, at(inner::DNS, 53), &dns_udp);
    assert!(echo(&w.a.guest, inner::GATEWAY));
    let other = slot.tcp_listener(at(Ipv4Addr::UNSPECIFIED, 22));
    let other_udp = slot.udp(at(Ipv4Addr::UNSPECIFIED, 161));
    for address in [inner::DNS, inner::GATEWAY, w.a.outer] {
        is_refused(&w.a.guest, at(address, 22), &other);
        nothing_arrives(&other);
    }
    for _ in 0..10 {
        datagram_is_refused(&w.a.guest, at(inner::GATEWAY, 161), &other_udp);
    }
    // From outside all is the guest's.
    is_refused(&w.host, at(w.a.outer, 22), &other);
    is_refused(&w.host, at(w.a.outer, 53), &dns);
}

#[test]
fn a_guest_with_another_address_sends_nothing() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let far = w.world.udp(at(FAR, 9));
    let spoofed = |counter| w.a.netns.counted("netdev", "hearth", counter);
    let silent = |from: Ipv4Addr| {
        let sender = w.a.guest.udp(at(from, 0));
        for _ in 0..3 {
            sender.send_to(b"x", at(FAR, 9)).expect("send");
        }
        far.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        let arrived = far.recv_from(&mut [0; 8]);
        assert!(arrived.is_err(), "{arrived:?} from {from}");
    };
    datagram_reaches(&w.a.guest, at(FAR, 9), &far);
    assert_eq!((spoofed("spoofed_ip"), spoofed("spoofed_mac"), spoofed("spoofed_arp")), (0, 0, 0));
    let stranger = Ipv4Addr::new(10, 0, 2, 16);
    w.a.guest.ip(&format!("addr add {stranger}/24 dev eth0"));
    silent(stranger);
    assert!(spoofed("spoofed_ip") >= 3, "the address is counted");
    // A guest that says that it is its gateway.
    w.a.guest.ip("neigh flush all");
    w.a.guest.ip("addr flush dev eth0");
    w.a.guest.ip(&format!("addr add {}/24 dev eth0", inner::GATEWAY));
    w.a.guest.ip("route add default via 10.0.2.3");
    silent(inner::GATEWAY);
    assert!(spoofed("spoofed_arp") >= 1, "its ARP is counted");
    w.a.guest.ip("link set eth0 address 52:54:00:12:34:57");
    w.a.guest.ip(&format!("addr add {}/24 dev eth0", inner::ADDRESS));
    silent(inner::ADDRESS);
    assert!(spoofed("spoofed_mac") >= 1, "its MAC is counted");
    w.a.guest.ip(&format!("link set eth0 address {}", inner::MAC_TEXT));
    w.a.guest.ip("addr flush dev eth0");
    w.a.guest.ip(&format!("addr add {}/24 dev eth0", inner::ADDRESS));
    w.a.guest.ip("route add default via 10.0.2.2");
    datagram_reaches(&w.a.guest, at(FAR, 9), &far);
}

#[test]
fn connections_of_the_source_are_reset_in_a_fork_from_both_ends() {
    if !possible() {
        return;
    }
    for guest_speaks in [true, false] {
        let w = World::new(&rules(true, &[]));
        let far = w.world.tcp_listener(at(FAR, 80));
        let served = w.a.listener(80);
        let mut out = w.a.guest.connect(at(FAR, 80)).expect("connect");
        let _out_far = far.accept().expect("it arrives");
        let mut into = w.host.connect(at(w.a.outer, 80)).expect("connect");
        let _into_guest = served.accept().expect("it arrives");
        // The guest in another slot, with the very address of the first: what a restore does.
        w.host.ip(&format!("link del hv{TAG}0"));
        let fork = Slot::place(&w.host, 2, w.a.outer);
        w.a.netns.ip(&format!("link set hearth0 netns {}", fork.name()));
        fork.ip("link set hearth0 up");
        Slot::prepare(&fork);
        w.a.guest.ip("route replace default via 10.0.2.2");
        let stream = if guest_speaks { &mut out } else { &mut into };
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        stream.write_all(b"are you there").expect("written to a buffer");
        let error = stream.read(&mut [0; 8]).expect_err("no such connection");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "guest speaks: {guest_speaks}: {error}");
        assert!(fork.counted("inet", "hearth", "stale") >= 1);
        // A new one is made at once.
        reaches(&w.a.guest, at(FAR, 80), &far);
    }
}

#[test]
fn a_published_port_leads_in_and_nothing_else_does() {
    if !possible() {
        return;
    }
    let w = World::new(&rules(true, &[]));
    let served = w.a.listener(80);
    let datagrams = w.a.guest.udp(at(inner::ADDRESS, 53));
    let tcp = PublishedPort { protocol: Protocol::Tcp, host: 8080, outer: w.a.outer, guest: 80 };
    let udp = PublishedPort { protocol: Protocol::Udp, host: 5353, outer: w.a.outer, guest: 53 };
    is_refused(&w.world, at(HOST, 8080), &served);
    w.host.nft(&publish(TAG, &[tcp, udp]));
    assert_eq!(reaches(&w.world, at(HOST, 8080), &served), IpAddr::V4(WORLD), "the guest sees who asks");
    datagram_reaches(&w.world, at(HOST, 5353), &datagrams);
    reaches(&w.host, at(HOST, 8080), &served);
    reaches(&w.host, at(GATEWAY, 8080), &served);
    // The way around: to the outer address from elsewhere than the host.
    is_refused(&w.world, at(w.a.outer, 80), &served);
    datagram_is_refused(&w.world, at(w.a.outer, 53), &datagrams);
    // And through the published port from an instance.
    for address in [HOST, GATEWAY] {
        is_refused(&w.b.guest, at(address, 8080), &served);
    }
    // Whoever is not isolated has that way, and the instance itself too.
    w.host.nft(&host(&rules(false, &[]), &[tcp, udp]));
    reaches(&w.b.guest, at(HOST, 8080), &served);
    reaches(&w.a.guest, at(HOST, 8080), &served);
    w.host.nft(&unpublish(TAG, &tcp));
    is_refused(&w.world, at(HOST, 8080), &served);
    datagram_reaches(&w.world, at(HOST, 5353), &datagrams);
}

#[test]
fn a_port_is_one_instance_s() {
    if !possible() {
        return;
    }
    let host = Netns::new();
    host.nft(&super::host(&rules(true, &[]), &[]));
    let port =
        |host, last| PublishedPort { protocol: Protocol::Tcp, host, outer: Ipv4Addr::new(10, 100, 0, last), guest: 80 };
    let listed = || host.nft("list map inet hearth_ab12 tcp_ports");
    host.nft(&publish(TAG, &[port(8080, 7)]));
    host.nft(&publish(TAG, &[port(8080, 7)]));
    let error = host.try_nft(&publish(TAG, &[port(8081, 8), port(8080, 8)])).expect_err("it is taken");
    assert!(error.is_taken(), "{error}");
    assert!(!listed().contains("8081"), "all or none");
    let error = host.try_nft(&unpublish(TAG, &port(8080, 8))).expect_err("it is another's");
    assert!(error.is_taken() && listed().contains("10.100.0.7"), "{error}");
    host.nft(&unpublish(TAG, &port(8080, 7)));
    host.nft(&unpublish(TAG, &port(8080, 7)));
    assert!(!listed().contains("8080"));
    host.nft(&remove_host(TAG));
    host.nft(&remove_host(TAG));
    assert_eq!(host.nft("list ruleset"), "");
    let error = host.try_nft("list table inet hearth_ab12").expect_err("gone");
    assert!(error.is_missing(), "{error}");
}

/// An ICMP echo is answered.
fn echo(from: &Netns, to: Ipv4Addr) -> bool {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recv, sendto, socket, sockopt};
    let socket = from.enter(|| socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))).expect("a socket");
    let id = std::process::id().to_be_bytes();
    let mut message = [8, 0, 0, 0, id[2], id[3], 0, 1];
    let sum = message.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum::<u32>();
    let sum = u16::try_from(!((sum & 0xffff) + (sum >> 16)) & 0xffff).expect("16 bits");
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(1))).expect("set");
    sendto(&socket, &message, SendFlags::empty(), &at(to, 0)).expect("send");
    let mut buffer = [0; 128];
    while let Ok((length, _)) = recv(&socket, &mut buffer, RecvFlags::empty()) {
        let answer = &buffer[20..length];
        if answer.len() >= 8 && answer[0] == 0 && answer[4..8] == message[4..8] {
            return true;
        }
        if answer.first() == Some(&3) {
            return false;
        }
    }
    false
}
