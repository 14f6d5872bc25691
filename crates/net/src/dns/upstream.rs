//! Asking the host's name servers, one after the other.
//!
//! Each question goes out from a socket of its own (the kernel gives it a random port), with a random
//! id, connected: so only what comes from the very server that was asked arrives, and only what
//! repeats id and question is believed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::consider::{PAYLOAD, Question, answers};

/// Then the next one is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// As many as a resolver of the C library asks.
const MOST: usize = 3;
/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(5);
const PORT: u16 = 53;

#[derive(Debug)]
pub(super) struct Upstreams {
    source: Source,
    /// The one that answered last is asked first: a dead one costs its time once, not every time.
    best: AtomicUsize,
}

#[derive(Debug)]
enum Source {
    Fixed(Vec<SocketAddr>),
    File { path: PathBuf, read: Mutex<Option<(Instant, Vec<SocketAddr>)>> },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    #[error("no name server answers")]
    Silent(#[source] Option<io::Error>),
    #[error("get random bytes for a question")]
    Random(#[source] io::Error),
    #[error("write the question {name}")]
    Write { name: String, problem: String },
}

impl Upstreams {
    pub(super) fn fixed(servers: Vec<SocketAddr>) -> Self {
        Self { source: Source::Fixed(servers), best: AtomicUsize::new(0) }
    }

    /// The `nameserver` lines of a resolv.conf.
    pub(super) fn of_file(path: PathBuf) -> Self {
        Self { source: Source::File { path, read: Mutex::new(None) }, best: AtomicUsize::new(0) }
    }

    /// What the first says that knows; if all refuse or fail, what the last of them says.
    pub(super) async fn ask(&self, question: &Question) -> Result<Message, AskError> {
        let servers = self.servers();
        let best = self.best.load(Ordering::Relaxed);
        let (mut failure, mut unhelpful) = (None, None);
        for turn in 0..servers.len() {
            let index = (best + turn) % servers.len();
            match ask_one(servers[index], question).await? {
                Ok(message) if is_helpful(&message) => {
                    self.best.store(index, Ordering::Relaxed);
                    return Ok(message);
                }
                Ok(message) => unhelpful = Some(message),
                Err(error) => {
                    tracing::debug!(server = %servers[index], %error, "a name server does not answer");
                    failure = Some(error);
                }
            }
        }
        unhelpful.ok_or(AskError::Silent(failure))
    }

    fn servers(&self) -> Vec<SocketAddr> {
        match &self.source {
            Source::Fixed(servers) => servers.iter().take(MOST).copied().collect(),
            Source::File { path, read } => {
                let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
                match &*read {
                    Some((when, servers)) if when.elapsed() < LOOK => servers.clone(),
                    _ => {
                        let servers = of_file(path);
                        *read = Some((Instant::now(), servers.clone()));
                        servers
                    }
                }
            }
        }
    }
}

/// A file that is missing or names none means the host itself, as resolv.conf(5) says.
fn of_file(path: &Path) -> Vec<SocketAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| {
        tracing::debug!(path = %path.display(), %error, "read the host's name servers");
        String::new()
    });
    let mut servers = nameservers(&text);
    servers.truncate(MOST);
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, PORT).into());
    }
    servers
}

fn nameservers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    // One with a zone, as in fe80::1%eth0, needs the number of its link: no server worth the trouble.
    addresses.filter_map(|text| text.parse::<IpAddr>().ok()).map(|address| (address, PORT).into()).collect()
}

fn is_helpful(message: &Message) -> bool {
    matches!(message.response_code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// The inner error is the server's, which another may not have.
async fn ask_one(server: SocketAddr, question: &Question) -> Result<io::Result<Message>, AskError> {
    let random = getrandom::u32().map_err(|error| AskError::Random(error.into()))?;
    let [high, low, ..] = random.to_be_bytes();
    let id = u16::from_be_bytes([high, low]);
    let packet = packet(id, question)?;
    let by_udp = match timeout(PATIENCE, by_udp(server, id, &packet, question)).await {
        Ok(Ok(message)) if message.truncation => None,
        Ok(answer) => Some(answer),
        Err(_) => Some(Err(io::ErrorKind::TimedOut.into())),
    };
    Ok(match by_udp {
        Some(answer) => answer,
        None => match timeout(PATIENCE, by_tcp(server, id, &packet, question)).await {
            Ok(answer) => answer,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    })
}

fn packet(id: u16, question: &Question) -> Result<Vec<u8>, AskError> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.checking_disabled();
    message.add_query(question.query().clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_dnssec_ok(question.dnssec_ok());
    message.set_edns(edns);
    message
        .to_vec()
        .map_err(|error| AskError::Write { name: question.query().name().to_string(), problem: error.to_string() })
}

async fn by_udp(server: SocketAddr, id: u16, packet: &[u8], question: &Question) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is not from whom we asked, or not about what: the answer may still come.
        if let Some(message) = believe(&buffer[..length], id, question) {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, id: u16, packet: &[u8], question: &Question) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(packet.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], packet].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    believe(&answer, id, question).ok_or_else(|| io::Error::other("an answer to something else"))
}

pub(super) fn believe(packet: &[u8], id: u16, question: &Question) -> Option<Message> {
    Message::from_vec(packet).ok().filter(|message| answers(message, id, question.query()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_the_c_library_reads_them() {
        let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\n\
                    nameserver fe80::1%eth0\nnameserver\nnameservers 192.0.2.8\noptions edns0\n";
        let servers: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert_eq!(of_file(Path::new("/nonexistent")), ["127.0.0.1:53".parse().expect("an address")]);
    }
}
