//! Opening a WebSocket: the upgrade as an ordinary request, so that a refusal is an ordinary error.

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Client, ClientError};

type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// The writing half.
#[derive(Debug)]
pub(super) struct Sender {
    what: String,
    half: SplitSink<Socket, Message>,
}

/// The reading half.
#[derive(Debug)]
pub(super) struct Receiver {
    what: String,
    half: SplitStream<Socket>,
}

pub(super) async fn open(client: &Client, path: &str) -> Result<(Sender, Receiver), ClientError> {
    let mut request = client.request(hyper::Method::GET, path, None)?;
    let what = format!("GET {}", request.uri());
    let key = generate_key();
    let strange = |problem: &str| ClientError::Strange { what: what.clone(), source: problem.into() };
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_str(&key).map_err(|_| strange("a key that is no header"))?);

    let response = client.send(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(strange("it did not switch to a WebSocket"));
    }
    let upgraded = hyper::upgrade::on(response)
        .await
        .map_err(|source| ClientError::Lost { what: what.clone(), source: source.into() })?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (sink, stream) = socket.split();
    Ok((Sender { what: what.clone(), half: sink }, Receiver { what, half: stream }))
}

impl Sender {
    pub(super) async fn json(&mut self, frame: &impl Serialize) -> Result<(), ClientError> {
        let text = serde_json::to_string(frame).map_err(ClientError::Unwritable)?;
        self.send(Message::text(text)).await
    }

    pub(super) async fn binary(&mut self, data: impl Into<bytes::Bytes>) -> Result<(), ClientError> {
        self.send(Message::binary(data)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.half.send(message).await.map_err(|source| lost(&self.what, source))
    }
}

impl Receiver {
    /// The next text or binary frame; `None` when the server closed in good order.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, ClientError> {
        loop {
            match self.half.next().await {
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed)) => return Ok(None),
                Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return Ok(Some(message)),
                // Pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(source)) => return Err(lost(&self.what, source)),
            }
        }
    }

    pub(super) fn strange(&self, problem: impl Into<String>) -> ClientError {
        ClientError::Strange { what: self.what.clone(), source: problem.into().into() }
    }

    pub(super) fn ended(&self, before: &str) -> ClientError {
        ClientError::Lost { what: self.what.clone(), source: format!("it was closed before {before}").into() }
    }
}

fn lost(what: &str, source: Error) -> ClientError {
    ClientError::Lost { what: what.into(), source: source.into() }
}
