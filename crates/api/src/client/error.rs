//! What can go wrong between a client and its server.

use std::error::Error;

use hearth_model::{ErrorKind, Kind};

use crate::error::ErrorBody;

/// The server refused, or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .body.message)]
pub struct ApiError {
    /// HTTP status code.
    pub status: u16,
    /// What it said.
    pub body: Box<ErrorBody>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not an address that this client can use.
    #[error("server address {url:?} {problem}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody is there.
    #[error("no server answers at {url}")]
    NotReachable {
        /// Where.
        url: String,
        /// How it was refused.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It said no.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The connection ended before the answer did: whether the request took effect is not known.
    #[error("{what}: the connection was lost")]
    Lost {
        /// The request.
        what: String,
        /// How.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The answer is not one of this API's.
    #[error("{what}: the answer is not Hearth's")]
    Strange {
        /// The request.
        what: String,
        /// What it looked like.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The request cannot be written as JSON.
    #[error("write the request")]
    Unwritable(#[source] serde_json::Error),
    /// The query cannot be written.
    #[error("write the query")]
    UnwritableQuery(#[source] serde_urlencoded::ser::Error),
}

impl ClientError {
    /// What the server said, if it said anything.
    #[must_use]
    pub fn body(&self) -> Option<&ErrorBody> {
        match self {
            Self::Api(error) => Some(&error.body),
            _ => None,
        }
    }
}

impl Kind for ClientError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } => ErrorKind::Invalid,
            Self::Api(error) => error.body.kind(),
            Self::NotReachable { .. } | Self::Lost { .. } => ErrorKind::HostFailed,
            Self::Strange { .. } | Self::Unwritable(_) | Self::UnwritableQuery(_) => ErrorKind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Address { .. } => Some("for example http://127.0.0.1:4973".into()),
            Self::NotReachable { .. } => {
                Some("start it with `hearth serve`, or say where it is with HEARTH_URL".into())
            }
            Self::Api(error) => error.body.hint.clone(),
            Self::Strange { .. } => Some("something else listens there, or the versions differ".into()),
            Self::Lost { .. } => Some("look at the server's log, and at what the operation left".into()),
            Self::Unwritable(_) | Self::UnwritableQuery(_) => None,
        }
    }
}
