//! Files on their way into the guest and out of it.

use bytes::Bytes;
use hearth_agent_proto::{CopyDone, CopyEntry, MAX_DATA, ToGuest, ToHost};

use crate::connection::Channel;
use crate::error::AgentError;

/// A copy into the guest. Dropped before [`CopyTo::finish`], it breaks off where it is.
#[derive(Debug)]
pub struct CopyTo {
    channel: Channel,
}

impl CopyTo {
    pub(crate) const fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Begins the next file, directory or link.
    ///
    /// # Errors
    /// [`AgentError`]; a failure in the guest may be told by a later call only.
    pub async fn entry(&mut self, entry: CopyEntry) -> Result<(), AgentError> {
        self.send(&ToGuest::Entry(entry), &[]).await
    }

    /// Adds to the current file.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn data(&mut self, data: &[u8]) -> Result<(), AgentError> {
        for piece in data.chunks(MAX_DATA) {
            self.send(&ToGuest::Data, piece).await?;
        }
        Ok(())
    }

    /// Completes the current file.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn entry_end(&mut self) -> Result<(), AgentError> {
        self.send(&ToGuest::EntryEnd, &[]).await
    }

    /// Completes the copy, and tells what it did.
    ///
    /// # Errors
    /// [`AgentError`]: the first failure in the guest.
    pub async fn finish(mut self) -> Result<CopyDone, AgentError> {
        self.channel.sender().send(&self.channel.tried, &ToGuest::CopyEnd)?;
        match self.channel.next().await? {
            (ToHost::CopyDone(done), _) => Ok(done),
            _ => Err(self.channel.protocol("it gives another answer")),
        }
    }

    /// Sends, unless the guest has ended the copy: then says why.
    async fn send(&mut self, message: &ToGuest, data: &[u8]) -> Result<(), AgentError> {
        let sender = self.channel.sender();
        if sender.is_closed() {
            return match self.channel.next().await {
                Err(error) => Err(error),
                Ok(_) => Err(self.channel.protocol("it ends the copy too early")),
            };
        }
        sender.send_flow(&self.channel.tried, message, data).await
    }
}

/// What a copy out of the guest brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyItem {
    /// The next file, directory or link; first the path itself, as an empty path.
    Entry(CopyEntry),
    /// More of the current file.
    Data(Bytes),
    /// The current file is complete.
    EntryEnd,
}

/// A copy out of the guest.
#[derive(Debug)]
pub struct CopyFrom {
    channel: Channel,
    done: Option<CopyDone>,
}

impl CopyFrom {
    pub(crate) const fn new(channel: Channel) -> Self {
        Self { channel, done: None }
    }

    /// What comes next; `None` when the copy is complete. Cancel-safe.
    ///
    /// # Errors
    /// [`AgentError`]; `not_found` when the path is not there.
    pub async fn next(&mut self) -> Result<Option<CopyItem>, AgentError> {
        if self.done.is_some() {
            return Ok(None);
        }
        match self.channel.next().await? {
            (ToHost::Entry(entry), _) => Ok(Some(CopyItem::Entry(entry))),
            (ToHost::Data, data) => Ok(Some(CopyItem::Data(data))),
            (ToHost::EntryEnd, _) => Ok(Some(CopyItem::EntryEnd)),
            (ToHost::CopyDone(done), _) => {
                self.done = Some(done);
                Ok(None)
            }
            _ => Err(self.channel.protocol("it gives another answer")),
        }
    }

    /// What the copy did, once it is complete.
    #[must_use]
    pub const fn done(&self) -> Option<CopyDone> {
        self.done
    }
}
