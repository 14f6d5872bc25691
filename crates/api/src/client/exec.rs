//! Commands in a guest, with stdout and stderr apart.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;

use super::requests::instance;
use super::websocket::{self, Receiver, Sender};
use super::{Client, ClientError};
use crate::exec::{ExecControl, ExecEnd, ExecRequest, STDERR, STDIN, STDOUT, WINDOW};

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
pub struct ExecInput {
    sender: Sender,
    /// One for each byte that may be sent.
    window: Arc<Semaphore>,
}

/// What comes from a command.
#[derive(Debug)]
pub struct ExecOutput {
    receiver: Receiver,
    window: Arc<Semaphore>,
}

impl Drop for ExecOutput {
    fn drop(&mut self) {
        // Nobody will hear that there is room again.
        self.window.close();
    }
}

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
        let window = Arc::new(Semaphore::new(WINDOW as usize));
        let input = ExecInput { sender, window: Arc::clone(&window) };
        Ok(ExecSession { input, output: ExecOutput { receiver, window } })
    }
}

impl ExecInput {
    /// How much can be written without waiting, at least one byte; waits until that is so. It comes
    /// true while somebody asks [`ExecOutput::next`], or has dropped it. Cancel safe.
    pub async fn room(&self) -> usize {
        match self.window.acquire().await {
            Ok(one) => self.window.available_permits() + one.num_permits(),
            // The session ends: whoever writes is told so.
            Err(_) => WINDOW as usize,
        }
    }

    /// Writes to its input; waits as [`Self::room`] does.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn write(&mut self, mut data: &[u8]) -> Result<(), ClientError> {
        // A frame of nothing would mean the end.
        while !data.is_empty() {
            let now;
            (now, data) = data.split_at(self.room().await.min(data.len()));
            self.window.forget_permits(now.len());
            let mut frame = BytesMut::with_capacity(now.len() + 1);
            frame.put_u8(STDIN);
            frame.put_slice(now);
            self.sender.binary(frame).await?;
        }
        Ok(())
    }

    /// Ends its input.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn end(&mut self) -> Result<(), ClientError> {
        self.sender.binary(Bytes::from_static(&[STDIN])).await
    }

    /// Its terminal has a new size.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ClientError> {
        self.sender.json(&ExecControl::Resize { rows, cols }).await
    }

    /// Sends it a signal, named without `SIG`.
    ///
    /// # Errors
    /// [`ClientError::Lost`], also when the command has ended.
    pub async fn signal(&mut self, name: &str) -> Result<(), ClientError> {
        self.sender.json(&ExecControl::Signal(name.into())).await
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
        loop {
            match self.receiver.next().await? {
                Some(Message::Binary(mut data)) => match data.split_first() {
                    Some((&STDOUT, _)) => {
                        data.advance(1);
                        return Ok(ExecEvent::Stdout(data));
                    }
                    Some((&STDERR, _)) => {
                        data.advance(1);
                        return Ok(ExecEvent::Stderr(data));
                    }
                    Some((&STDIN, taken)) => {
                        let taken = taken.try_into().map(u32::from_be_bytes);
                        let taken = taken.map_err(|_| self.receiver.strange("a count that is no number"))?;
                        // No more than was sent, whatever the server counts.
                        let under_way = (WINDOW as usize).saturating_sub(self.window.available_permits());
                        self.window.add_permits(under_way.min(taken as usize));
                    }
                    _ => return Err(self.receiver.strange("a frame of a stream that this client does not know")),
                },
                Some(Message::Text(text)) => {
                    return serde_json::from_str(&text).map(ExecEvent::End).map_err(|source| {
                        self.receiver.strange(format!("a last frame that cannot be read: {source}"))
                    });
                }
                _ => return Err(self.receiver.ended("the command's end was told")),
            }
        }
    }
}
