//! What can go wrong with a guest kernel, and what the user can do about it.
//!
//! One type for the crate: its callers act only on the kind, and every variant names its object.

use std::io;
use std::path::{Path, PathBuf};

use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, Kind};

/// What was tried on what; the cause, if there is one, is the source.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Nothing that looks like an unpacked kernel package.
    #[error("no guest kernel in {}: {reason}", dir.display())]
    NotFound {
        /// Where it was looked for.
        dir: PathBuf,
        /// What is missing there.
        reason: String,
    },
    /// A file or directory could not be used.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel package does not check.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel has neither module nor built-in driver for something that every guest needs.
    #[error("kernel {version} lacks what every guest needs: {}{}", essential.join(", "), also_optional(optional))]
    Lacks {
        /// The kernel's version.
        version: String,
        /// The essential ones; alternatives are written `erofs or ext4`.
        essential: Vec<String>,
        /// Missing ones that guests can do without.
        optional: Vec<String>,
    },
    /// The `vmlinuz` is packed in a way that is not known here.
    #[error("cannot take the kernel out of {}: {reason}", path.display())]
    UnknownFormat {
        /// Which file.
        path: PathBuf,
        /// What was found there.
        reason: String,
    },
    /// The place where a kernel should be installed holds something else.
    #[error("cannot install a kernel in {}: it is not empty and holds no kernel", dir.display())]
    Occupied {
        /// The place.
        dir: PathBuf,
    },
    /// A host tool failed.
    #[error("{command} failed: {detail}")]
    Tool {
        /// The command line.
        command: String,
        /// Its last words, or why it could not be started.
        detail: String,
    },
}

fn also_optional(optional: &[String]) -> String {
    if optional.is_empty() { String::new() } else { format!(" (missing too, but optional: {})", optional.join(", ")) }
}

impl KernelError {
    /// For `map_err`: what was tried on which path.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

impl Kind for KernelError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => io_kind(source),
            Self::Damaged { .. } => ErrorKind::Corrupt,
            // What is missing is the host's, not what the request names.
            Self::NotFound { .. } | Self::Lacks { .. } | Self::UnknownFormat { .. } => ErrorKind::Unsupported,
            Self::Occupied { .. } => ErrorKind::AlreadyExists,
            Self::Tool { .. } => ErrorKind::HostFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { .. } => Some(
                "run `hearth doctor --fix` to install Debian's cloud kernel, or set `kernel.dir` in the configuration \
                 to a directory with boot/vmlinuz-* and lib/modules/*"
                    .to_owned(),
            ),
            Self::Damaged { .. } => Some(
                "remove the kernel directory and run `hearth doctor --fix` to unpack the kernel package again"
                    .to_owned(),
            ),
            Self::Lacks { .. } => Some(
                "use a Debian kernel (linux-image-cloud-amd64): run `hearth doctor --fix`, or set `kernel.dir` in the \
                 configuration"
                    .to_owned(),
            ),
            Self::UnknownFormat { .. } => {
                Some("use a bzImage packed with lz4, zstd, gzip or xz, or an uncompressed vmlinux".to_owned())
            }
            Self::Occupied { .. } => {
                Some("move it away, or set `kernel.dir` in the configuration to another directory".to_owned())
            }
            Self::Tool { .. } => Some(
                "check that apt works here (`apt-get update` as root, a Debian mirror that can be reached), or unpack \
                 a kernel package by hand and set `kernel.dir` in the configuration"
                    .to_owned(),
            ),
            Self::Io { .. } => None,
        }
    }
}
