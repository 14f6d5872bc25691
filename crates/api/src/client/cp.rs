//! Copies into and out of a guest, frame by frame; what they mean on this side's disk is the
//! caller's business.

use bytes::{Bytes, BytesMut};
use hearth_model::ErrorKind;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_tungstenite::tungstenite::Message;

use super::requests::instance;
use super::websocket::{self, Receiver, Sender};
use super::{ApiError, Client, ClientError};
use crate::cp::{CpFrame, CpHeader, CpRequest};
use crate::error::ErrorBody;

/// How much goes into one frame.
const CHUNK: usize = 64 << 10;

/// A tree on its way out of a guest.
#[derive(Debug)]
pub struct CpDownload {
    receiver: Receiver,
    /// Kept open: dropping it would close the connection.
    _sender: Sender,
    path: String,
    done: bool,
}

/// What comes next of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CpEvent {
    /// An entry begins. Its path is the server's word: it must be checked before it is used.
    Entry(CpHeader),
    /// Bytes of the entry.
    Data(Bytes),
    /// The entry is complete.
    EntryEnd,
}

impl Client {
    /// Copies one file, directory or link into a guest, and says how many bytes were written.
    ///
    /// # Errors
    /// As of any request; what the guest objects to is a [`ClientError::Api`].
    pub async fn cp_to(
        &self,
        id: &str,
        request: &CpRequest,
        mut data: impl AsyncRead + Unpin,
    ) -> Result<u64, CpToError> {
        let (mut sender, mut receiver) = websocket::open(self, &instance(id, "/cp")).await?;
        sender.json(request).await?;
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.reserve(CHUNK);
            let read = data.read_buf(&mut buffer).await.map_err(CpToError::Source)?;
            if read == 0 {
                break;
            }
            if let Err(error) = sender.binary(buffer.split().freeze()).await {
                // The server says why before it closes.
                return Err(told(&mut receiver, &request.guest_path).await.err().unwrap_or(error).into());
            }
        }
        sender.json(&CpFrame::End { last: true }).await?;
        Ok(told(&mut receiver, &request.guest_path).await?)
    }

    /// Copies what is at a path out of a guest.
    ///
    /// # Errors
    /// As of any request.
    pub async fn cp_from(&self, id: &str, request: &CpRequest) -> Result<CpDownload, ClientError> {
        let (mut sender, receiver) = websocket::open(self, &instance(id, "/cp")).await?;
        sender.json(request).await?;
        Ok(CpDownload { receiver, _sender: sender, path: request.guest_path.clone(), done: false })
    }
}

/// Why a copy into a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum CpToError {
    /// What was to be copied could not be read.
    #[error("read what is to be copied")]
    Source(#[source] std::io::Error),
    /// The server or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl CpDownload {
    /// What comes next; `None` after the last entry.
    ///
    /// # Errors
    /// [`ClientError::Api`] for what the guest objects to, [`ClientError::Lost`] if the connection
    /// ends before the last entry does.
    pub async fn next(&mut self) -> Result<Option<CpEvent>, ClientError> {
        if self.done {
            return Ok(None);
        }
        match self.receiver.next().await? {
            Some(Message::Binary(data)) => Ok(Some(CpEvent::Data(data))),
            Some(Message::Text(text)) => match frame(&self.receiver, &text)? {
                CpFrame::Header(header) => Ok(Some(CpEvent::Entry(header))),
                CpFrame::End { last } => {
                    self.done = last;
                    Ok(Some(CpEvent::EntryEnd))
                }
                CpFrame::Error { message, path, code } => {
                    Err(refused(message, path.unwrap_or_else(|| self.path.clone()), code))
                }
                CpFrame::Result { .. } => Err(self.receiver.strange("a result where an entry was to come")),
            },
            _ => Err(self.receiver.ended("the copy was complete")),
        }
    }
}

/// What the server says about a copy into a guest.
async fn told(receiver: &mut Receiver, path: &str) -> Result<u64, ClientError> {
    let Some(Message::Text(text)) = receiver.next().await? else {
        return Err(receiver.ended("the copy's result was told"));
    };
    match frame(receiver, &text)? {
        CpFrame::Result { success: true, bytes_written, .. } => Ok(bytes_written),
        CpFrame::Result { error, code, .. } => Err(refused(error.unwrap_or_default(), path.into(), code)),
        CpFrame::Error { message, path: at, code } => Err(refused(message, at.unwrap_or_else(|| path.into()), code)),
        CpFrame::Header(_) | CpFrame::End { .. } => Err(receiver.strange("an entry where a result was to come")),
    }
}

fn frame(receiver: &Receiver, text: &str) -> Result<CpFrame, ClientError> {
    serde_json::from_str(text).map_err(|source| receiver.strange(format!("a frame that cannot be read: {source}")))
}

/// The guest's objection, or the server's.
fn refused(message: String, path: String, code: Option<String>) -> ClientError {
    let kind = code.and_then(|code| ErrorKind::from_name(&code)).unwrap_or(ErrorKind::Invalid);
    let body = ErrorBody::new(kind, message).about("path", path);
    ApiError { status: kind.http_status(), body: Box::new(body) }.into()
}
