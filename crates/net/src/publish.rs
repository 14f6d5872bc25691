//! Published ports on the host's own loopback: listeners that relay to the guest.
//!
//! The kernel leads what comes to the host's other addresses to the guest (see `ruleset`), but it
//! does not lead packets for 127.0.0.1 out of the host. So the daemon listens there, and on ::1, and
//! passes on what it gets. That it can listen is also how it is found out that nobody else does.
//!
//! In: a port and where it leads. Out: a [`Published`]; when it is dropped, listeners and relayed
//! connections end. Both ends of a connection see the other's half-close; a guest that refuses is a
//! reset to the client, which had been accepted by then.

mod holder;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use hearth_model::network::Protocol;
use hearth_model::{ErrorKind, Kind};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Relayed connections of one port and loopback address; the next one waits.
const CONNECTIONS: usize = 1024;
/// Clients of one UDP port; of the next one nothing is passed on until another has gone.
const CLIENTS: usize = 1024;
/// A guest that does not even refuse.
const PATIENCE: Duration = Duration::from_secs(5);
/// A UDP client that says nothing and hears nothing is gone.
const IDLE: Duration = Duration::from_secs(60);
/// The longest datagram.
const DATAGRAM: usize = 65_535;

/// A port that is listened on. Ends with the value.
#[derive(Debug)]
pub(crate) struct Published {
    tasks: JoinSet<()>,
}

/// A port could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Somebody has it.
    #[error("publish port {port}/{}: {}", protocol.as_str(), held(holder.as_deref()))]
    Taken { protocol: Protocol, port: u16, holder: Option<String> },
    /// Another reason.
    #[error("listen on {at} to publish port {}/{}", at.port(), protocol.as_str())]
    Listen {
        protocol: Protocol,
        at: SocketAddr,
        #[source]
        source: io::Error,
    },
}

fn held(holder: Option<&str>) -> String {
    holder.map_or_else(|| "another process has it".into(), |holder| format!("{holder} has it"))
}

impl Kind for PublishError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Taken { .. } => ErrorKind::AlreadyExists,
            Self::Listen { source, .. } => hearth_model::error::io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => Some("publish another port of the host, or stop who has this one".into()),
            Self::Listen { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("ports below 1024 need root or CAP_NET_BIND_SERVICE".into())
            }
            Self::Listen { .. } => None,
        }
    }
}

/// Listens on a port of the host's loopback and relays to the guest. Needs a tokio runtime.
///
/// # Errors
/// Somebody listens on that port already, on whatever address: the kernel's rules would take the
/// port of those that are not loopback's from them.
pub(crate) async fn publish(protocol: Protocol, port: u16, guest: SocketAddrV4) -> Result<Published, PublishError> {
    let failed = async |at: SocketAddr, source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = tokio::task::spawn_blocking(move || holder::of(protocol, port)).await.ok().flatten();
            PublishError::Taken { protocol, port, holder }
        }
        _ => PublishError::Listen { protocol, at, source },
    };
    let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    for at in everywhere.map(|address| SocketAddr::new(address, port)) {
        match is_free(protocol, at).await {
            Err(source) if !is_no_ipv6(at, &source) => return Err(failed(at, source).await),
            Ok(()) | Err(_) => {}
        }
    }
    let mut tasks = JoinSet::new();
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    for at in loopback.map(|address| SocketAddr::new(address, port)) {
        let listening = match protocol {
            Protocol::Tcp => TcpListener::bind(at).await.map(|listener| {
                tasks.spawn(relay_connections(listener, guest));
            }),
            Protocol::Udp => UdpSocket::bind(at).await.map(|socket| {
                tasks.spawn(relay_datagrams(Arc::new(socket), guest));
            }),
        };
        match listening {
            Err(source) if !is_no_ipv6(at, &source) => {
                tasks.shutdown().await;
                return Err(failed(at, source).await);
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(Published { tasks })
}

/// Nobody listens on that port at any of the host's addresses.
async fn is_free(protocol: Protocol, at: SocketAddr) -> io::Result<()> {
    match protocol {
        Protocol::Tcp => {
            let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Connections that were there a moment ago do not matter.
            socket.set_reuseaddr(true)?;
            socket.bind(at)
        }
        Protocol::Udp => UdpSocket::bind(at).await.map(drop),
    }
}

/// A host without IPv6 has no such addresses.
fn is_no_ipv6(at: SocketAddr, error: &io::Error) -> bool {
    at.is_ipv6()
        && (error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()))
}

impl Published {
    /// Returns when the port is free again, which after a mere drop it is a moment later.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn relay_connections(listener: TcpListener, guest: SocketAddrV4) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Ends with this task.
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                // Out of descriptors, most likely.
                tracing::warn!(%error, %guest, "accept a connection to a published port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Err(error) = relay(client, guest).await {
                tracing::debug!(%error, %guest, "relay a connection to a published port");
            }
            drop(place);
        });
    }
}

/// Until both sides have said all, or one of them is gone.
async fn relay(mut client: TcpStream, guest: SocketAddrV4) -> io::Result<()> {
    let connected = timeout(PATIENCE, TcpStream::connect(SocketAddr::V4(guest))).await;
    let relayed = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(mut server) => {
            let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
            let relayed = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            if relayed.is_err() {
                reset(&server);
            }
            relayed.map(drop)
        }
        Err(error) => Err(error),
    };
    if relayed.is_err() {
        reset(&client);
    }
    relayed
}

/// What is closed after this is reset: an end that came of an error must not look like one that was
/// said.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(%error, "reset a relayed connection");
    }
}

/// One socket towards the guest per client, so that the answers find back.
async fn relay_datagrams(socket: Arc<UdpSocket>, guest: SocketAddrV4) {
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers: JoinSet<SocketAddr> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, client) = tokio::select! {
            Some(gone) = answers.join_next() => {
                if let Ok(client) = gone {
                    clients.remove(&client);
                }
                continue;
            }
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, %guest, "receive for a published port");
                    continue;
                }
            },
        };
        let towards = match clients.get(&client) {
            Some(towards) => Arc::clone(towards),
            None if clients.len() >= CLIENTS => continue,
            None => match towards(guest).await {
                Ok(towards) => {
                    let towards = Arc::new(towards);
                    clients.insert(client, Arc::clone(&towards));
                    answers.spawn(relay_answers(Arc::clone(&socket), Arc::clone(&towards), client));
                    towards
                }
                Err(error) => {
                    tracing::debug!(%error, %guest, "open a socket for a published port");
                    continue;
                }
            },
        };
        // What fails may be the refusal of the one before; if not, datagrams are lost sometimes.
        if towards.send(&buffer[..length]).await.is_err() {
            let _ = towards.send(&buffer[..length]).await;
        }
    }
}

async fn towards(guest: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(SocketAddr::V4(guest)).await?;
    Ok(socket)
}

/// Until the guest has said nothing for a while: that of a client which only talks is made anew then.
async fn relay_answers(socket: Arc<UdpSocket>, towards: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let deadline = Instant::now() + IDLE;
        match tokio::time::timeout_at(deadline, towards.recv(&mut buffer)).await {
            Ok(Ok(length)) => {
                let _ = socket.send_to(&buffer[..length], client).await;
            }
            // Nobody listens in the guest, now.
            Ok(Err(_)) => {}
            Err(_) => return client,
        }
    }
}

#[cfg(test)]
mod tests;
