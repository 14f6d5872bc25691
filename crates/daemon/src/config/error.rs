//! Why a configuration cannot be used.

use std::net::SocketAddr;
use std::path::PathBuf;

use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, Kind};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// Which one.
        path: PathBuf,
        /// In which line.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// Something is given that is not a setting.
    #[error("{place}: {key} is not a setting")]
    Unknown {
        /// Where it was given.
        place: String,
        /// What was given.
        key: String,
        /// Settings that look like it.
        nearest: Vec<String>,
    },
    /// A setting has a value that it cannot have.
    #[error("{source_of_value}: {key}: {problem}")]
    Value {
        /// Which one.
        key: &'static str,
        /// Where it was given.
        source_of_value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The file with the secret has none in it.
    #[error("the token secret in {} is empty", path.display())]
    EmptySecret {
        /// Which file.
        path: PathBuf,
    },
    /// Others could reach the API, and nobody would ask them who they are.
    #[error("listening on {listen} without a token secret would let everybody who reaches it use this host")]
    Exposed {
        /// Where.
        listen: SocketAddr,
    },
}

impl Kind for ConfigError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } if source.kind() != std::io::ErrorKind::NotFound => io_kind(source),
            _ => ErrorKind::Invalid,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { nearest, .. } if !nearest.is_empty() => Some(format!("there is {}", nearest.join(", "))),
            Self::Exposed { .. } => Some(
                "set auth.token_secret_file to a file with a secret, or listen on a loopback address such as \
                 127.0.0.1:4973"
                    .into(),
            ),
            _ => None,
        }
    }
}
