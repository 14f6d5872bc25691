//! Firecracker's API: requests over one connection that is kept, answered one after another.
//!
//! Source: Firecracker's `docs/` and its OpenAPI description, 1.16.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::answer::watched;
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::{API_SOCKET, RunState};

/// Its answers are short; the longest is a machine's configuration.
pub(super) const LONGEST_ANSWER: usize = 1 << 20;

/// A connection to the API, made when it is needed and kept while it lasts.
#[derive(Debug)]
pub(crate) struct Api {
    dir: PathBuf,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Api {
    /// Not connected yet.
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), connection: None }
    }

    /// Over a connection that is there already.
    pub(crate) async fn over(dir: &Path, stream: UnixStream) -> io::Result<Self> {
        Ok(Self { dir: dir.to_owned(), connection: Some(greet(stream).await?) })
    }

    pub(crate) async fn put(
        &mut self,
        process: &Process,
        command: &'static str,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), ControlError> {
        self.request(process, command, Method::PUT, path, Some(body)).await.map(drop)
    }

    pub(crate) async fn patch(
        &mut self,
        process: &Process,
        command: &'static str,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), ControlError> {
        self.request(process, command, Method::PATCH, path, Some(body)).await.map(drop)
    }

    pub(crate) async fn get(
        &mut self,
        process: &Process,
        command: &'static str,
        path: &str,
    ) -> Result<Value, ControlError> {
        let text = self.request(process, command, Method::GET, path, None::<&()>).await?;
        serde_json::from_slice(&text)
            .map_err(|_| ControlError::Garbled { command, line: String::from_utf8_lossy(&text).into_owned() })
    }

    async fn request(
        &mut self,
        process: &Process,
        command: &'static str,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Bytes, ControlError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| ControlError::Garbled { command, line: error.to_string() })?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", "application/json")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| ControlError::Garbled { command, line: error.to_string() })?;

        let socket = self.dir.join(API_SOCKET);
        let (dir, connection) = (&self.dir, &mut self.connection);
        let (status, text) = watched(process, command, &socket, async {
            // Taken: a connection on which a request was cut off is not used again.
            let mut open = match connection.take() {
                Some(open) if !open.is_closed() => open,
                _ => greet(socket::connect(dir, API_SOCKET).await?).await?,
            };
            let answer = exchange(&mut open, request).await?;
            *connection = Some(open);
            Ok(answer)
        })
        .await?;
        if status.is_success() {
            return Ok(text);
        }
        Err(ControlError::Refused { command, answer: fault_message(&text) })
    }
}

/// Speaks HTTP on a connection.
pub(super) async fn greet<S>(stream: S) -> io::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with either end of the connection; what went wrong, the request says.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends a request and takes the answer, if it is one and not too long.
pub(super) async fn exchange(
    open: &mut SendRequest<Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> io::Result<(StatusCode, Bytes)> {
    // After an answer the connection takes a moment until it takes another request.
    open.ready().await.map_err(io::Error::other)?;
    let answer = open.send_request(request).await.map_err(io::Error::other)?;
    let status = answer.status();
    let text = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await.map_err(io::Error::other)?;
    Ok((status, text.to_bytes()))
}

/// `{"fault_message": "…"}`, or whatever else was said.
pub(super) fn fault_message(text: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(text).ok();
    match parsed.as_ref().and_then(|answer| answer["fault_message"].as_str()) {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(text).into_owned(),
    }
}

/// Lets the vCPUs run; of a running guest nothing changes.
pub(crate) async fn resume(api: &mut Api, process: &Process) -> Result<(), ControlError> {
    api.patch(process, "PATCH /vm", "/vm", &json!({ "state": "Resumed" })).await
}

/// Whether the vCPUs run.
pub(crate) async fn run_state(api: &mut Api, process: &Process) -> Result<RunState, ControlError> {
    let info = api.get(process, "GET /", "/").await?;
    run_state_of(&info).ok_or_else(|| ControlError::Garbled { command: "GET /", line: info.to_string() })
}

/// What the VMM says of itself.
pub(super) fn run_state_of(info: &Value) -> Option<RunState> {
    match info["state"].as_str()? {
        "Running" => Some(RunState::Running),
        "Paused" => Some(RunState::Paused),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What comes of bytes that somebody answers with before it hangs up.
    fn answered(bytes: &[u8]) -> io::Result<(StatusCode, Bytes)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            let mut open = greet(ours).await.expect("connected");
            let request = Request::builder().uri("/").body(Full::new(Bytes::new())).expect("a request");
            let serve = async {
                let mut heard = [0; 1024];
                assert!(theirs.read(&mut heard).await.expect("readable") > 0, "it asks");
                // Who has heard enough hangs up: then the rest is not taken.
                drop(theirs.write_all(bytes).await);
                drop(theirs);
            };
            tokio::join!(exchange(&mut open, request), serve).0
        })
    }

    fn told(bytes: &[u8]) {
        if let Ok((_, text)) = answered(bytes) {
            assert!(text.len() <= LONGEST_ANSWER);
            assert!(fault_message(&text).len() <= 3 * text.len(), "a bad byte is told with three");
        }
    }

    const ANSWER: &[u8] = b"HTTP/1.1 400 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
        Content-Type: application/json\r\nContent-Length: 35\r\n\r\n{\"fault_message\":\"no such drive 7\"}";

    #[test]
    fn an_answer_without_end_is_cut_off() {
        let head = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n", 8 * LONGEST_ANSWER);
        let long = [head.as_bytes(), &vec![b'x'; 8 * LONGEST_ANSWER]].concat();
        assert!(answered(&long).is_err());
        let (status, text) = answered(ANSWER).expect("a good one");
        assert_eq!((status.as_u16(), fault_message(&text).as_str()), (400, "no such drive 7"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            told(&bytes);
            drop(fault_message(&bytes));
        }

        #[test]
        fn an_answer_that_was_changed_is_one_or_an_error(
            changes in proptest::collection::vec((0..ANSWER.len(), any::<u8>()), 1..6),
            cut in 0..ANSWER.len(),
        ) {
            let mut bytes = ANSWER.to_vec();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            told(&bytes);
            told(&bytes[..cut]);
        }
    }

    #[test]
    fn the_fault_is_told_in_firecracker_s_words() {
        assert_eq!(fault_message(br#"{"fault_message":"no such drive"}"#), "no such drive");
        assert_eq!(fault_message(b"<html>"), "<html>");
    }
}
