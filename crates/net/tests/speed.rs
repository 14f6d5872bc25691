//! Limits of speed hold, both ways.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use hearth_model::Network as Wanted;
use hearth_model::network::Bandwidth;
use hearth_net::guest::Place;
use support::{Host, PATIENCE, on_a_host};

const FOR: Duration = Duration::from_secs(4);
/// Until the bucket that was full at the start is empty.
const START: Duration = Duration::from_secs(1);

/// How many bytes per second get through a connection.
fn measure(sender: &Place, receiver: &Place, listen: SocketAddr, connect: SocketAddr, sender_listens: bool) -> f64 {
    let (at, to) = if sender_listens { (sender, receiver) } else { (receiver, sender) };
    let listener = at.run(|| TcpListener::bind(listen)).expect("bound");
    let connected = to.run(|| TcpStream::connect_timeout(&connect, PATIENCE)).expect("connected");
    let accepted = listener.accept().expect("accepted").0;
    let (mut send, mut receive) = if sender_listens { (accepted, connected) } else { (connected, accepted) };
    let end = Instant::now() + START + FOR;
    let sending = thread::spawn(move || {
        let block = vec![7; 1 << 14];
        while Instant::now() < end && send.write_all(&block).is_ok() {}
    });
    let mut buffer = vec![0; 1 << 16];
    let (mut received, mut since) = (0, None);
    let began = Instant::now();
    let measured = loop {
        let length = receive.read(&mut buffer).expect("received");
        let now = Instant::now();
        match since {
            None if now - began >= START => since = Some(now),
            None => {}
            Some(since) => {
                received += length;
                if now - since >= FOR - Duration::from_millis(200) || length == 0 {
                    break now - since;
                }
            }
        }
    };
    drop(receive);
    sending.join().expect("no panic");
    f64::from(u32::try_from(received).expect("a few megabytes")) / measured.as_secs_f64()
}

/// A limit is of what is on the wire: of 1514 bytes of a full frame, 1448 are the connection's.
const PAYLOAD: f64 = 1448.0 / 1514.0;

fn holds(host: &Host, upload: &str, download: &str) {
    let speed = |text: &str| text.parse::<Bandwidth>().expect("a speed");
    let wanted = Wanted { upload: Some(speed(upload)), download: Some(speed(download)), ..Wanted::default() };
    let one = host.instance("one", wanted);
    let guest = one.guest.place();
    let any = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let down = measure(&host.place, guest, any(80), SocketAddr::V4(one.at(80)), false);
    let up = measure(guest, &host.place, any(81), SocketAddr::V4(one.at(81)), true);
    for (way, limit, measured) in [("down", download, down), ("up", upload, up)] {
        let ratio = measured / PAYLOAD / f64::from(u32::try_from(speed(limit).bytes_per_s()).expect("small"));
        println!("{way} {limit}: {:.1} % of the limit", ratio * 100.0);
        assert!((0.9..=1.1).contains(&ratio), "{way} {limit}: {:.1} % of the limit", ratio * 100.0);
    }
    host.release(&one.wish.id);
}

#[test]
fn limits_hold_within_a_tenth_both_ways() {
    on_a_host(1, |host| {
        host.open(&[]);
        holds(host, "8Mbps", "24Mbps");
        holds(host, "48Mbps", "40Mbps");
    });
}

#[test]
fn the_kernel_takes_the_slowest_and_the_fastest() {
    on_a_host(0, |host| {
        host.open(&[]);
        for speed in ["8Kbps", "30Gbps", "400Gbps"] {
            let limit = Some(speed.parse::<Bandwidth>().expect("a speed"));
            let one = host.instance("one", Wanted { upload: limit, download: limit, ..Wanted::default() });
            one.serve(80);
            let answer = support::get(&host.place, one.at(80)).expect("reached");
            assert_eq!(answer, "one to 10.100.0.1", "at {speed}");
            host.release(&one.wish.id);
        }
    });
}
