//! Connecting to the guest's agent through the vsock device's Unix socket.
//!
//! The host asks for a port by a line; Firecracker answers with a line when the guest has accepted.
//! Source: Firecracker's `docs/vsock.md`.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::answer::watched;
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::VSOCK_SOCKET;

/// The guest's address; each is alone behind its own socket.
pub(crate) const GUEST_CID: u32 = 3;
/// Where the agent listens. The same as `hearth_agent_proto::VSOCK_PORT`, which this crate does not
/// know of.
const AGENT_PORT: u32 = 52;
/// Between two tries while a guest boots: nothing tells the host when its agent listens. A guest
/// that was loaded listens already.
const AGAIN: Duration = Duration::from_millis(5);

/// Connects to the agent; waits for one that does not listen yet, as long as the caller likes.
pub(crate) async fn dial(dir: &Path, process: &Process) -> Result<UnixStream, ControlError> {
    const COMMAND: &str = "dial the guest";
    let called = async {
        loop {
            match ask(dir).await {
                Ok(Some(stream)) => return Ok(stream),
                Ok(None) => tokio::time::sleep(AGAIN).await,
                Err(error) => return Err(error),
            }
        }
    };
    let called = tokio::select! {
        biased;
        called = called => called,
        exit = process.exited() => return Err(ControlError::Gone { command: COMMAND, exit: Box::new(exit) }),
    };
    match called {
        Ok(stream) => Ok(stream),
        Err(source) => watched(process, COMMAND, &dir.join(VSOCK_SOCKET), async { Err(source) }).await,
    }
}

/// `None`: the guest does not listen on that port (yet).
async fn ask(dir: &Path) -> io::Result<Option<UnixStream>> {
    let mut stream = socket::connect(dir, VSOCK_SOCKET).await?;
    match handshake(&mut stream).await {
        Ok(()) => Ok(Some(stream)),
        Err(error) => match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(None),
            _ => Err(error),
        },
    }
}

pub(super) async fn handshake(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    // Byte by byte: what follows the line is the agent's.
    let mut line = Vec::with_capacity(16);
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte if line.len() < 32 => line.push(byte),
            _ => return Err(garbled(&line)),
        }
    }
    if line.starts_with(b"OK ") { Ok(()) } else { Err(garbled(&line)) }
}

fn garbled(line: &[u8]) -> io::Error {
    let line = String::from_utf8_lossy(line);
    io::Error::new(io::ErrorKind::InvalidData, format!("an answer that is not \"OK\": {line:?}"))
}
