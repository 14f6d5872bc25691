//! A command that runs in the guest: its input and its output.

use std::sync::Arc;

use bytes::Bytes;
use hearth_agent_proto::{ExitStatus, MAX_DATA, ToGuest, ToHost, TtySize};

use crate::connection::{Channel, Sender};
use crate::error::AgentError;

/// What a command's session brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote this to stdout, or to its terminal.
    Stdout(Bytes),
    /// It wrote this to stderr.
    Stderr(Bytes),
    /// It has ended; all its output came before.
    Exited(ExitStatus),
}

/// A running command. When both halves are dropped, the command loses its input and its terminal.
#[derive(Debug)]
pub struct ExecSession {
    input: ExecInput,
    output: ExecOutput,
    pid: u32,
}

/// What goes to the command.
#[derive(Debug, Clone)]
pub struct ExecInput {
    sender: Sender,
    tried: Arc<str>,
}

/// What comes from the command.
#[derive(Debug)]
pub struct ExecOutput {
    channel: Channel,
    exited: Option<ExitStatus>,
}

impl ExecSession {
    pub(crate) fn new(channel: Channel, pid: u32) -> Self {
        let input = ExecInput { sender: channel.sender(), tried: Arc::clone(&channel.tried) };
        Self { input, output: ExecOutput { channel, exited: None }, pid }
    }

    /// Its process id in the guest.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Both halves.
    #[must_use]
    pub fn split(self) -> (ExecInput, ExecOutput) {
        (self.input, self.output)
    }

    /// What goes to the command.
    #[must_use]
    pub const fn input(&self) -> &ExecInput {
        &self.input
    }

    /// See [`ExecOutput::next`].
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn next(&mut self) -> Result<ExecEvent, AgentError> {
        self.output.next().await
    }
}

impl ExecInput {
    /// Writes to its stdin; waits while the command does not read.
    ///
    /// # Errors
    /// [`AgentError::Lost`].
    pub async fn write(&self, data: &[u8]) -> Result<(), AgentError> {
        for piece in data.chunks(MAX_DATA) {
            self.sender.send_flow(&self.tried, &ToGuest::Stdin, piece).await?;
        }
        Ok(())
    }

    /// Ends its stdin.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn eof(&self) -> Result<(), AgentError> {
        self.sender.send(&self.tried, &ToGuest::StdinEof)
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn resize(&self, size: TtySize) -> Result<(), AgentError> {
        self.sender.send(&self.tried, &ToGuest::Resize(size))
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub fn signal(&self, signal: u8) -> Result<(), AgentError> {
        self.sender.send(&self.tried, &ToGuest::Signal(signal))
    }
}

impl ExecOutput {
    /// What comes next; after [`ExecEvent::Exited`] the same again. Cancel-safe.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn next(&mut self) -> Result<ExecEvent, AgentError> {
        if let Some(status) = self.exited {
            return Ok(ExecEvent::Exited(status));
        }
        match self.channel.next().await? {
            (ToHost::Stdout, data) => Ok(ExecEvent::Stdout(data)),
            (ToHost::Stderr, data) => Ok(ExecEvent::Stderr(data)),
            (ToHost::Exited(status), _) => {
                self.exited = Some(status);
                Ok(ExecEvent::Exited(status))
            }
            _ => Err(self.channel.protocol("it gives another answer")),
        }
    }
}
