//! Commands in a guest, with stdout and stderr apart.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::Message;

use super::requests::instance;
use super::websocket::{self, Receiver, Sender};
use super::{Client, ClientError};
use crate::exec::{ExecControl, ExecEnd, ExecRequest, STDERR, STDIN, STDOUT};

/// A command that runs. Dropping it hangs up, and the server ends the command.
#[derive(Debug)]
pub struct ExecSession {
    /// What goes to the command.
    pub input: ExecInput,
    /// What comes from it.
    pub output: ExecOutput,
}

/// What goes to a command.
#[derive(Debug)]
pub struct ExecInput(Sender);

/// What comes from a command.
#[derive(Debug)]
pub struct ExecOutput(Receiver);

/// Something that a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote output; with a terminal, all of it.
    Stdout(Bytes),
    /// It wrote error output.
    Stderr(Bytes),
    /// It ended. Nothing comes after this.
    End(ExecEnd),
}

impl Client {
    /// Runs a command in a guest. `streams` is always asked for.
    ///
    /// # Errors
    /// As of any request. That the command cannot be run is told by [`ExecEnd::error`].
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecSession, ClientError> {
        let (mut sender, receiver) = websocket::open(self, &instance(id, "/exec")).await?;
        sender.json(&ExecRequest { streams: true, ..request.clone() }).await?;
        Ok(ExecSession { input: ExecInput(sender), output: ExecOutput(receiver) })
    }
}

impl ExecInput {
    /// Writes to its input.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), ClientError> {
        // A lone byte would mean the end.
        if data.is_empty() {
            return Ok(());
        }
        let mut frame = BytesMut::with_capacity(data.len() + 1);
        frame.put_u8(STDIN);
        frame.put_slice(data);
        self.0.binary(frame).await
    }

    /// Ends its input.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.0.binary(Bytes::from_static(&[STDIN])).await
    }

    /// Its terminal has a new size.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ClientError> {
        self.0.json(&ExecControl::Resize { rows, cols }).await
    }

    /// Sends it a signal, named without `SIG`.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn signal(&mut self, name: &str) -> Result<(), ClientError> {
        self.0.json(&ExecControl::Signal(name.into())).await
    }
}

impl ExecOutput {
    /// What it does next.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection ends before the command's end was told.
    pub async fn next(&mut self) -> Result<ExecEvent, ClientError> {
        match self.0.next().await? {
            Some(Message::Binary(mut data)) => match data.first() {
                Some(&STDOUT) => {
                    data.advance(1);
                    Ok(ExecEvent::Stdout(data))
                }
                Some(&STDERR) => {
                    data.advance(1);
                    Ok(ExecEvent::Stderr(data))
                }
                _ => Err(self.0.strange("a frame of no known stream: the server is older than this client")),
            },
            Some(Message::Text(text)) => serde_json::from_str(&text)
                .map(ExecEvent::End)
                .map_err(|source| self.0.strange(format!("a last frame that cannot be read: {source}"))),
            _ => Err(self.0.ended("the command's end was told")),
        }
    }
}
