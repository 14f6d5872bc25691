//! Names for guests: a forwarder in each slot, on sockets that were bound there.
//!
//! ```text
//! guest ─► 10.0.2.3:53 ─► consider ─┬─► silence (too short, or an answer)
//!          (udp, tcp)               ├─► a reply (an instance's name; AAAA; refused; not understood)
//!                                   └─► the host's name servers ─► relay
//!                                        addresses of a name on the list: admit, then reply
//! ```
//!
//! In: sockets of a slot's namespace, a [`Policy`], the [`Directory`] of instances. Out: answers.
//! The name servers are asked from the namespace of the runtime's threads, which is the host's.
//!
//! What the policy does not allow is refused, not hidden. A guest has no IPv6, so a question for such
//! an address gets an empty answer at once. Every question is answered, if only by SERVFAIL. A guest
//! that floods hurts itself: so many questions at a time per slot, and the next gets SERVFAIL.
//!
//! Not here: a cache (the host's resolver has one), DNSSEC checks, names of the host's search list.

mod consider;
mod directory;
mod policy;
mod relay;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use consider::{Considered, Question, consider};
use upstream::Upstreams;

pub(crate) use directory::Directory;
pub(crate) use policy::Policy;

/// Questions of one slot that are worked on at a time.
const QUESTIONS_PER_SLOT: usize = 64;
/// Of all slots together: each holds a socket.
const QUESTIONS: usize = 2048;
/// Open TCP connections of one slot.
const CONNECTIONS_PER_SLOT: usize = 8;
/// How long such a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);
/// The longest question that is read; real ones have some 50 bytes.
const MAX_QUESTION: usize = 1232;

/// Answers for all slots of a daemon. A clone is the same.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder {
    upstreams: Arc<Upstreams>,
    directory: Directory,
    questions: Arc<Semaphore>,
}

/// One slot's sockets, bound to port 53 of the guest's name server in the slot's namespace.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// A slot that is being answered, until this is dropped.
#[derive(Debug)]
pub(crate) struct Served {
    _tasks: JoinSet<()>,
}

impl Forwarder {
    /// `upstreams`: whom to ask; if none, those of the host's `/etc/resolv.conf`, whatever it says at
    /// the time.
    pub(crate) fn new(upstreams: Vec<SocketAddr>, directory: Directory) -> Self {
        let upstreams = if upstreams.is_empty() {
            Upstreams::of_file("/etc/resolv.conf".into())
        } else {
            Upstreams::fixed(upstreams)
        };
        Self { upstreams: Arc::new(upstreams), directory, questions: Arc::new(Semaphore::new(QUESTIONS)) }
    }

    /// Answers a slot. Needs a tokio runtime.
    ///
    /// # Errors
    /// The runtime does not take the sockets.
    pub(crate) fn serve(&self, sockets: Sockets, policy: Policy) -> io::Result<Served> {
        sockets.udp.set_nonblocking(true)?;
        sockets.tcp.set_nonblocking(true)?;
        let udp = Arc::new(UdpSocket::from_std(sockets.udp)?);
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let questions = Arc::new(Semaphore::new(QUESTIONS_PER_SLOT));
        let slot = Slot { forwarder: self.clone(), policy, questions };
        let mut tasks = JoinSet::new();
        tasks.spawn(slot.clone().serve_udp(udp));
        tasks.spawn(slot.serve_tcp(tcp));
        Ok(Served { _tasks: tasks })
    }
}

#[derive(Debug, Clone)]
struct Slot {
    forwarder: Forwarder,
    policy: Policy,
    questions: Arc<Semaphore>,
}

impl Slot {
    async fn serve_udp(self, socket: Arc<UdpSocket>) {
        let mut buffer = [0; MAX_QUESTION];
        // Ends with this task, so that nobody answers for a slot that is gone.
        let mut answering = JoinSet::new();
        loop {
            let (length, guest) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receive a guest's question");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while answering.try_join_next().is_some() {}
            match consider(&buffer[..length], &self.policy, &self.forwarder.directory) {
                Considered::Silence => {}
                Considered::Reply(reply) => send(&socket, &reply, guest).await,
                Considered::Ask(question) => match self.permits() {
                    None => send(&socket, &question.servfail(), guest).await,
                    Some(permits) => {
                        let (slot, socket) = (self.clone(), Arc::clone(&socket));
                        answering.spawn(async move {
                            let reply = slot.answer(&question).await;
                            send(&socket, &reply.for_udp(&question), guest).await;
                            drop(permits);
                        });
                    }
                },
            }
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_PER_SLOT));
        let mut talking = JoinSet::new();
        loop {
            // The next one waits in the backlog.
            let permit = Arc::clone(&connections).acquire_owned().await.expect("never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "accept a guest's question");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            while talking.try_join_next().is_some() {}
            let slot = self.clone();
            talking.spawn(async move {
                if let Err(error) = slot.talk(stream).await {
                    tracing::debug!(%error, "answer a guest over TCP");
                }
                drop(permit);
            });
        }
    }

    /// One question after the other, until the guest says nothing more.
    async fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = [0; MAX_QUESTION];
        loop {
            let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
            let length = match length {
                Ok(length) => usize::from(length),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(packet) = buffer.get_mut(..length) else { return Ok(()) };
            timeout(IDLE, stream.read_exact(packet)).await??;
            let reply = match consider(packet, &self.policy, &self.forwarder.directory) {
                Considered::Silence => return Ok(()),
                Considered::Reply(reply) => reply,
                Considered::Ask(question) => match self.permits() {
                    None => question.servfail(),
                    Some(_permits) => self.answer(&question).await.for_tcp(&question),
                },
            };
            let length = u16::try_from(reply.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes()[..], &reply].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// What the guest gets; addresses are admitted before.
    async fn answer(&self, question: &Question) -> relay::Reply {
        let answer = match question.instance() {
            Some(address) => relay::Reply::instance(question, address),
            None => match self.forwarder.upstreams.ask(question).await {
                Ok(message) => relay::Reply::relayed(question, message),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "ask for a guest");
                    return relay::Reply::servfail(question);
                }
            },
        };
        // An instance's address is ours; what others say about the instances' range is not believed.
        let ours = question.instance().is_some();
        let believed = |address| ours || !self.forwarder.directory.is_instance_range(address);
        let addresses: Vec<_> = answer.addresses(question).filter(|(address, _)| believed(*address)).collect();
        match self.policy.admit(&addresses).await {
            Ok(()) => answer,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "let a guest reach an address that it may");
                relay::Reply::servfail(question)
            }
        }
    }

    fn permits(&self) -> Option<impl Send + use<>> {
        let slot = Arc::clone(&self.questions).try_acquire_owned().ok()?;
        let all = Arc::clone(&self.forwarder.questions).try_acquire_owned().ok()?;
        Some((slot, all))
    }
}

/// A guest that does not take its answer loses it.
async fn send(socket: &UdpSocket, reply: &[u8], guest: SocketAddr) {
    if let Err(error) = socket.send_to(reply, guest).await {
        tracing::debug!(%error, "answer a guest");
    }
}

#[cfg(test)]
mod tests;
