//! Listeners on loopback, and guests there too.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const SOON: Duration = Duration::from_secs(5);

async fn guest() -> (TcpListener, SocketAddrV4) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let at = match listener.local_addr().expect("bound") {
        SocketAddr::V4(at) => at,
        SocketAddr::V6(_) => unreachable!("bound to an IPv4 address"),
    };
    (listener, at)
}

/// Published on some port that is free; another test may be quicker with one.
async fn somewhere(protocol: Protocol, guest: SocketAddrV4) -> (Published, u16) {
    for _ in 0..20 {
        let port = TcpListener::bind("0.0.0.0:0").await.expect("bind").local_addr().expect("bound").port();
        match publish(protocol, port, guest).await {
            Ok(published) => return (published, port),
            Err(PublishError::Taken { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no port is free");
}

/// ::1 too where there is one.
async fn loopback(port: u16) -> Vec<SocketAddr> {
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok();
    let mut addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
    addresses.extend(v6.then(|| SocketAddr::from((Ipv6Addr::LOCALHOST, port))));
    addresses
}

#[tokio::test]
async fn connections_are_relayed_and_half_closed_as_their_ends_do() {
    let (listener, guest) = guest().await;
    let (_published, port) = somewhere(Protocol::Tcp, guest).await;
    for at in loopback(port).await {
        let mut client = TcpStream::connect(at).await.expect("connect");
        let (mut server, _) = timeout(SOON, listener.accept()).await.expect("in time").expect("accept");
        client.write_all(b"all I say").await.expect("write");
        client.shutdown().await.expect("shut down");
        let mut said = Vec::new();
        server.read_to_end(&mut said).await.expect("the end of what was said");
        assert_eq!(said, b"all I say");
        // The other direction is open still.
        server.write_all(b"an answer").await.expect("write");
        drop(server);
        let mut answered = Vec::new();
        client.read_to_end(&mut answered).await.expect("the end of the answer");
        assert_eq!(answered, b"an answer");
    }
}

#[tokio::test]
async fn a_guest_that_refuses_or_resets_is_a_reset() {
    let (listener, guest) = guest().await;
    let (_published, port) = somewhere(Protocol::Tcp, guest).await;
    let at = (Ipv4Addr::LOCALHOST, port);
    let mut client = TcpStream::connect(at).await.expect("connect");
    let (server, _) = listener.accept().await.expect("accept");
    client.write_all(b"hello").await.expect("write");
    server.set_zero_linger().expect("set");
    drop(server);
    let reset = |read: io::Result<usize>| read.expect_err("no end that was said").kind();
    let read = timeout(SOON, client.read(&mut [0; 8])).await.expect("in time");
    assert_eq!(reset(read), io::ErrorKind::ConnectionReset);
    drop(listener);
    let mut client = TcpStream::connect(at).await.expect("connect");
    let read = timeout(SOON, client.read(&mut [0; 8])).await.expect("in time");
    assert_eq!(reset(read), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn each_client_s_datagrams_find_back() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let SocketAddr::V4(guest) = server.local_addr().expect("bound") else { unreachable!("IPv4") };
    let (_published, port) = somewhere(Protocol::Udp, guest).await;
    let mut clients = Vec::new();
    for at in loopback(port).await {
        for _ in 0..3 {
            let client = UdpSocket::bind((at.ip(), 0)).await.expect("bind");
            client.connect(at).await.expect("connect");
            clients.push(client);
        }
    }
    let (mut buffer, mut asked) = ([0; 64], Vec::new());
    for (number, client) in clients.iter().enumerate() {
        client.send(format!("from {number}").as_bytes()).await.expect("send");
        let (length, from) = timeout(SOON, server.recv_from(&mut buffer)).await.expect("in time").expect("received");
        asked.push((buffer[..length].to_vec(), from));
    }
    for (said, from) in asked.iter().rev() {
        server.send_to(said, from).await.expect("answer");
    }
    for (number, client) in clients.iter().enumerate() {
        let length = timeout(SOON, client.recv(&mut buffer)).await.expect("in time").expect("received");
        assert_eq!(buffer[..length], *format!("from {number}").as_bytes());
        // The same client is the same to the guest.
        client.send(b"again").await.expect("send");
        let (_, from) = timeout(SOON, server.recv_from(&mut buffer)).await.expect("in time").expect("received");
        assert_eq!(from, asked[number].1);
    }
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_who_has_it() {
    let (_listener, guest) = guest().await;
    let me = format!("(process {})", std::process::id());
    // Wherever it is: the rules would take the port from whoever listens on another address.
    for taken in ["127.0.0.1:0", "0.0.0.0:0", "127.0.0.9:0", "[::1]:0", "[::]:0"] {
        let Ok(holder) = TcpListener::bind(taken).await else { continue };
        let port = holder.local_addr().expect("bound").port();
        let error = publish(Protocol::Tcp, port, guest).await.expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let said = error.to_string();
        assert!(said.contains(&format!("port {port}/tcp")) && said.contains(&me), "{taken}: {said}");
        let Ok(holder) = UdpSocket::bind(taken).await else { continue };
        let port = holder.local_addr().expect("bound").port();
        let said = publish(Protocol::Udp, port, guest).await.expect_err("it is taken").to_string();
        assert!(said.contains(&format!("port {port}/udp")) && said.contains(&me), "{taken}: {said}");
    }
    // Of two that are published, the second is told.
    let (_published, port) = somewhere(Protocol::Tcp, guest).await;
    let error = publish(Protocol::Tcp, port, guest).await.expect_err("it is taken");
    assert!(matches!(error, PublishError::Taken { .. }), "{error}");
}

#[tokio::test]
async fn all_ends_with_the_value() {
    let (listener, guest) = guest().await;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (published, port) = somewhere(protocol, guest).await;
        published.close().await;
        publish(protocol, port, guest).await.expect("the port is free at once").close().await;
    }
    let (published, port) = somewhere(Protocol::Tcp, guest).await;
    let at = (Ipv4Addr::LOCALHOST, port);
    let mut client = TcpStream::connect(at).await.expect("connect");
    let (mut server, _) = listener.accept().await.expect("accept");
    client.write_all(b"x").await.expect("write");
    server.read_exact(&mut [0]).await.expect("relayed");
    drop(published);
    // At both ends: nothing is left in between.
    assert_eq!(timeout(SOON, client.read(&mut [0; 8])).await.expect("in time").unwrap_or(0), 0);
    assert_eq!(timeout(SOON, server.read(&mut [0; 8])).await.expect("in time").unwrap_or(0), 0);
    assert!(TcpStream::connect(at).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn more_clients_than_there_is_room_for_do_not_take_the_others_place() {
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
    let SocketAddr::V4(guest) = server.local_addr().expect("bound") else { unreachable!("IPv4") };
    let (_published, port) = somewhere(Protocol::Udp, guest).await;
    let (mut clients, mut buffer) = (Vec::new(), [0; 8]);
    for number in 0..CLIENTS + 1 {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("bind");
        client.send_to(b"x", (Ipv4Addr::LOCALHOST, port)).await.expect("send");
        let arrives =
            timeout(Duration::from_millis(if number < CLIENTS { 5000 } else { 200 }), server.recv_from(&mut buffer));
        assert_eq!(arrives.await.is_ok(), number < CLIENTS, "client {number}");
        clients.push(client);
    }
    clients[0].send_to(b"y", (Ipv4Addr::LOCALHOST, port)).await.expect("send");
    timeout(SOON, server.recv_from(&mut buffer)).await.expect("in time").expect("received");
}
