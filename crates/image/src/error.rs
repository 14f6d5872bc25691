//! What can go wrong with an image: on import, and in the store.
//!
//! [`ImportError`] says which source, its [`Problem`] says what is wrong in it.

use std::io;
use std::path::PathBuf;

use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, Kind};

/// An import failed; nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[error("import image from {}", path.display())]
pub struct ImportError {
    /// What was to be imported.
    pub path: PathBuf,
    /// What was wrong.
    #[source]
    pub problem: Problem,
}

/// What is wrong with a source, or with the host while it was read.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The path names nothing.
    #[error("there is no such file or directory")]
    Absent,
    /// The path names something that is no image.
    #[error("this is {found}, not an image")]
    NotAnImage {
        /// What it is, with its article.
        found: String,
    },
    /// The source holds the directory that the image is to be stored in.
    #[error("the directory holds {}, where images are stored", images_dir.display())]
    HoldsStore {
        /// The store.
        images_dir: PathBuf,
    },
    /// There are images, but none that runs here.
    #[error("there is no image for linux/amd64, only for {}", have.join(", "))]
    NoPlatform {
        /// The platforms there are, as `os/architecture`.
        have: Vec<String>,
    },
    /// There are several images that could be meant.
    #[error("there are several images for linux/amd64: {}", names.join(", "))]
    Several {
        /// Their names, or digests where they have none.
        names: Vec<String>,
    },
    /// Something that a container image may hold but that we do not run.
    #[error("{what}")]
    Unsupported {
        /// What it is.
        what: String,
    },
    /// A JSON document does not parse.
    #[error("{document} is not a valid document")]
    Json {
        /// Which one: its name or digest.
        document: String,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
    /// A document parses, but says something impossible.
    #[error("{document} {problem}")]
    Document {
        /// Which one: its name or digest.
        document: String,
        /// What is impossible, as the end of a sentence.
        problem: String,
    },
    /// A document names a blob that is not there.
    #[error("{blob} is missing ({wanted_by} names it)")]
    MissingBlob {
        /// Its digest or name.
        blob: String,
        /// Who names it.
        wanted_by: String,
    },
    /// A blob has another size than its descriptor says.
    #[error("{blob} has {found} bytes where {expected} are announced: it is truncated or damaged")]
    BlobSize {
        /// Its digest or name.
        blob: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A blob has other content than its digest says.
    #[error("{blob} is damaged: its content has the digest sha256:{found} instead of sha256:{expected}")]
    BlobDigest {
        /// Its digest or name.
        blob: String,
        /// Hex digest announced.
        expected: String,
        /// Hex digest found.
        found: String,
    },
    /// An archive or a compressed stream ends early or does not check.
    #[error("{archive} is truncated or damaged: {problem}")]
    Damaged {
        /// Which one.
        archive: String,
        /// What does not check.
        problem: String,
    },
    /// An entry of a layer cannot be part of a file system.
    #[error("entry {entry:?} of {layer} {problem}")]
    Entry {
        /// The layer.
        layer: String,
        /// The entry's name.
        entry: String,
        /// What is wrong, as the end of a sentence.
        problem: String,
    },
    /// The image costs more than the limits allow.
    #[error("there are more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A file changed while it was read.
    #[error("{} changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The host could not read the source.
    #[error("read {what}")]
    Read {
        /// A file or a blob.
        what: String,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The host could not write the image.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl Kind for ImportError {
    fn kind(&self) -> ErrorKind {
        match &self.problem {
            Problem::Absent => ErrorKind::NotFound,
            Problem::NoPlatform { .. } | Problem::Unsupported { .. } => ErrorKind::Unsupported,
            Problem::NotAnImage { .. }
            | Problem::HoldsStore { .. }
            | Problem::Several { .. }
            | Problem::Json { .. }
            | Problem::Document { .. }
            | Problem::Entry { .. }
            | Problem::Limit { .. }
            | Problem::Changed { .. } => ErrorKind::Invalid,
            Problem::MissingBlob { .. }
            | Problem::BlobSize { .. }
            | Problem::BlobDigest { .. }
            | Problem::Damaged { .. } => ErrorKind::Corrupt,
            Problem::Read { source, .. } | Problem::Write { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            Problem::Absent => "check the path; it is looked up on the daemon's host",
            Problem::NotAnImage { .. } => {
                "give an OCI layout (directory or tar), a `docker save` tar, or a root file system (directory or tar)"
            }
            Problem::HoldsStore { .. } => "import a directory that does not contain hearth's data directory",
            Problem::NoPlatform { .. } => "pull or build the image with --platform linux/amd64 and save it again",
            Problem::Several { .. } => "save one image per archive",
            Problem::MissingBlob { .. }
            | Problem::BlobSize { .. }
            | Problem::BlobDigest { .. }
            | Problem::Damaged { .. } => "copy or save the image again",
            Problem::Entry { .. } => "build the layer again without that entry, or distrust where it came from",
            Problem::Limit { .. } => "make the image smaller, or distrust where it came from",
            Problem::Changed { .. } => "stop what writes there and import again",
            Problem::Write { source, .. } if io_kind(source) == ErrorKind::Exhausted => {
                "free space in the data directory, for example with `hearth image rm`"
            }
            Problem::Json { .. } | Problem::Document { .. } => "save the image again with the tool that made it",
            Problem::Unsupported { .. } => "hearth runs container images with tar layers and sha256 digests",
            Problem::Read { .. } | Problem::Write { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// A stored image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text is not `sha256:` and 64 hexadecimal digits.
    #[error("image digest {0:?} is not sha256: and 64 hexadecimal digits")]
    BadDigest(String),
    /// No image of that digest is stored.
    #[error("image {0} is not stored")]
    NotStored(String),
    /// What is stored cannot be used.
    #[error("image {digest} is stored, but {problem}")]
    Damaged {
        /// Its digest.
        digest: String,
        /// What is wrong.
        problem: String,
    },
    /// The host failed.
    #[error("{action} {}", path.display())]
    Host {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

impl Kind for ImageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::BadDigest(_) => ErrorKind::Invalid,
            Self::NotStored(_) => ErrorKind::NotFound,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Host { source, .. } => io_kind(source),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NotStored(_) | Self::Damaged { .. } => Some("import it again with `hearth image import`".into()),
            Self::BadDigest(_) | Self::Host { .. } => None,
        }
    }
}
