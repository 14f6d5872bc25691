//! Why something asked of a guest failed.

use std::io;
use std::time::Duration;

use hearth_agent_proto::{Failure, FailureKind, RefreshPart, TooLarge, VERSION};
use hearth_model::{ErrorKind, Kind};

/// Why something asked of a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent did not answer in time. It may still do what it was asked.
    #[error("{tried}: the guest's agent did not answer within {within:?}")]
    Silent {
        /// What was asked.
        tried: String,
        /// How long it had.
        within: Duration,
    },
    /// The agent did not acknowledge a refresh in time: the guest may be half itself.
    #[error("refresh the guest: the guest's agent did not answer within {within:?}; it had come to {}", stage(*come_to))]
    NotRefreshed {
        /// How long it had.
        within: Duration,
        /// The part that it told of last.
        come_to: Option<RefreshPart>,
    },
    /// The agent acknowledged another refresh than the one that it was sent.
    #[error("refresh the guest: the guest's agent acknowledges generation {told}, not {asked}")]
    OtherGeneration {
        /// The refresh's.
        asked: u64,
        /// The answer's.
        told: u64,
    },
    /// The connection ended before the answer.
    #[error("{tried}: the connection to the guest's agent is lost")]
    Lost {
        /// What was asked.
        tried: String,
        /// What ended it, if that is known.
        #[source]
        source: Option<io::Error>,
    },
    /// The agent speaks a version of the protocol that is not spoken here.
    #[error("the guest's agent speaks version {guest} of the protocol, this host up to {VERSION}")]
    Version {
        /// The guest's version.
        guest: u32,
    },
    /// The agent answered that it cannot.
    #[error("{tried}: {text}")]
    Refused {
        /// What was asked.
        tried: String,
        /// What sort of reason it gave.
        kind: ErrorKind,
        /// The reason.
        text: String,
    },
    /// The agent answered something that is no answer to what was asked.
    #[error("{tried}: the guest's agent breaks the protocol: {problem}")]
    Protocol {
        /// What was asked.
        tried: String,
        /// What it did.
        problem: &'static str,
    },
    /// The request does not fit into a message.
    #[error("{tried}: the request is too large")]
    TooLarge {
        /// What was asked.
        tried: String,
        /// By how much.
        #[source]
        source: TooLarge,
    },
}

impl AgentError {
    pub(crate) fn refused(tried: &str, failure: Failure) -> Self {
        let kind = match failure.kind {
            FailureKind::NotFound => ErrorKind::NotFound,
            FailureKind::Permission | FailureKind::Invalid => ErrorKind::Invalid,
            FailureKind::Exhausted => ErrorKind::Exhausted,
            FailureKind::Failed => ErrorKind::GuestFailed,
        };
        Self::Refused { tried: tried.to_owned(), kind, text: failure.text }
    }

    pub(crate) fn lost(tried: &str) -> Self {
        Self::Lost { tried: tried.to_owned(), source: None }
    }
}

/// What a refresh had come to, in words.
fn stage(come_to: Option<RefreshPart>) -> String {
    come_to.map_or_else(|| "its clock, randomness, names or files".to_owned(), |part| part.to_string())
}

impl Kind for AgentError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Silent { .. }
            | Self::NotRefreshed { .. }
            | Self::OtherGeneration { .. }
            | Self::Lost { .. }
            | Self::Protocol { .. } => ErrorKind::GuestUnresponsive,
            Self::Version { .. } => ErrorKind::Incompatible,
            Self::Refused { kind, .. } => *kind,
            Self::TooLarge { .. } => ErrorKind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Silent { .. }
            | Self::NotRefreshed { .. }
            | Self::OtherGeneration { .. }
            | Self::Lost { .. }
            | Self::Protocol { .. } => {
                Some("the guest's serial log may say why; stop and start the instance if it does not come back".into())
            }
            Self::Version { .. } => {
                Some("stop and start the instance: it then boots with the agent of this installation".into())
            }
            Self::Refused { .. } => None,
            Self::TooLarge { .. } => Some("shorten the command's arguments or variables".into()),
        }
    }
}
