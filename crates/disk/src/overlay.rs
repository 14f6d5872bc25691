//! Empty writable layers: ext4, cloned from a template that is made once per size.
//!
//! In: a size. Out: a sparse file with an empty file system. Only the first overlay of a size
//! starts a program.
//!
//! How the file system is made, and why:
//! - `discard` on a new file: mke2fs sees that all is zero and marks the inode tables as done. With
//!   tables left to the guest (`lazy_itable_init`), it would write zeros all over the disk after
//!   its first mount, and every clone would carry them.
//! - a journal, but the smallest (4 MiB): a VMM may be killed between two writes, and an overlay
//!   must then mount again without fsck. The journal is what a guest rewrites all the time, so its
//!   size is what every clone without reflink copies.
//! - `packed_meta_blocks`, no `resize_inode`: all that is written lies together at the beginning.
//! - every feature is named: the host's mke2fs.conf and newer defaults change nothing.
//! - 4 KiB blocks whatever the size, no reserve for root, label `hearth-overlay`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hearth_model::error::io_kind;
use hearth_model::{ByteSize, ErrorKind, Kind};

use crate::clone::{CloneError, clone_file};
use crate::files::{FileError, remove};

/// The smallest overlay: room for the journal and some files.
pub const MIN_OVERLAY: ByteSize = ByteSize::mib(16);

/// Part of a template's name: a change of the options below makes new templates.
const VERSION: u32 = 1;
/// How the name of one begins that is being made.
const UNFINISHED: &str = ".overlay-";
const OPTIONS: [&str; 8] = ["-F", "-q", "-text4", "-b4096", "-I256", "-i16384", "-m0", "-Lhearth-overlay"];
const LAYOUT: [&str; 3] = ["-Jsize=4", "-Ediscard,packed_meta_blocks=1,lazy_journal_init=1", FEATURES];
const FEATURES: &str = "-Onone,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,metadata_csum";

/// An overlay could not be made; nothing is left at its path.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// Smaller than [`MIN_OVERLAY`].
    #[error("an overlay of {0} is too small: at least {MIN_OVERLAY} are needed")]
    TooSmall(ByteSize),
    /// mke2fs is not installed.
    #[error("make an overlay of {size}: mke2fs is not installed")]
    NoMkfs {
        /// The size asked for.
        size: ByteSize,
    },
    /// mke2fs failed.
    #[error("make an overlay of {size}")]
    Mkfs {
        /// The size asked for.
        size: ByteSize,
        /// What it said.
        #[source]
        source: MkfsFailed,
    },
    /// The template could not be stored.
    #[error("write overlay template {}", path.display())]
    Template {
        /// Where.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// The template could not be cloned.
    #[error("make an overlay of {size}")]
    Clone {
        /// The size asked for.
        size: ByteSize,
        /// Why.
        #[source]
        source: CloneError,
    },
}

/// mke2fs did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("mke2fs ended with {status}: {stderr}")]
pub struct MkfsFailed {
    status: std::process::ExitStatus,
    stderr: String,
}

impl Kind for OverlayError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::TooSmall(_) => ErrorKind::Invalid,
            Self::NoMkfs { .. } => ErrorKind::Unsupported,
            Self::Mkfs { source, .. } if source.stderr.contains("No space left") => ErrorKind::Exhausted,
            Self::Mkfs { .. } => ErrorKind::HostFailed,
            Self::Template { source, .. } => io_kind(source),
            Self::Clone { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TooSmall(_) => Some(format!("ask for an overlay of at least {MIN_OVERLAY}")),
            Self::NoMkfs { .. } => Some("install it: `hearth doctor --fix`, or `apt-get install e2fsprogs`".into()),
            Self::Clone { source, .. } => source.hint(),
            Self::Mkfs { .. } | Self::Template { .. } => {
                (self.kind() == ErrorKind::Exhausted).then(|| "free space in the data directory".into())
            }
        }
    }
}

/// Makes an empty overlay at `to`, which must not exist. Sizes are rounded up to 4 KiB.
///
/// # Errors
/// See [`OverlayError`]. Nothing is left at `to`.
pub fn create_overlay(templates_dir: &Path, size: ByteSize, to: &Path) -> Result<(), OverlayError> {
    if size < MIN_OVERLAY {
        return Err(OverlayError::TooSmall(size));
    }
    let size = ByteSize(size.bytes().next_multiple_of(4096));
    let template = templates_dir.join(format!("overlay-v{VERSION}-{}.ext4", size.bytes()));
    let clone = || clone_file(&template, to).map(drop);
    let first = clone();
    let made = match first {
        Err(CloneError::Absent { .. }) => {
            make_template(templates_dir, &template, size)?;
            clone()
        }
        other => other,
    };
    made.map_err(|source| OverlayError::Clone { size, source })
}

/// Under another name first: whoever finds a template finds a whole one.
fn make_template(dir: &Path, template: &Path, size: ByteSize) -> Result<(), OverlayError> {
    let failed = |source| OverlayError::Template { path: template.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir).map_err(failed)?;
    file.as_file().set_len(size.bytes()).map_err(failed)?;
    let output = Command::new("mke2fs")
        .args(OPTIONS)
        .args(LAYOUT)
        .arg(file.path())
        .env("PATH", path_with_sbin())
        // What an administrator prefers for new disks is not meant for this one.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OverlayError::NoMkfs { size }),
        Err(error) => return Err(failed(error)),
    };
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        return Err(OverlayError::Mkfs { size, source: MkfsFailed { status: output.status, stderr } });
    }
    file.as_file().sync_all().map_err(failed)?;
    // Two at once make the same template twice: the later one wins, and both were whole.
    file.persist(template).map_err(|error| failed(error.error))?;
    Ok(())
}

/// What [`sweep_templates`] did.
#[derive(Debug, Default)]
pub struct SweptTemplates {
    /// Templates that were never finished, which it removed.
    pub removed: Vec<PathBuf>,
    /// Those that it could not remove.
    pub failed: Vec<FileError>,
}

/// Removes what was left of templates by a process that was killed while it made them. Only while none
/// is being made.
///
/// # Errors
/// The directory cannot be listed; one that is not there holds nothing.
pub fn sweep_templates(templates_dir: &Path) -> Result<SweptTemplates, FileError> {
    let failed = |source| FileError { action: "list", path: templates_dir.to_owned(), source };
    let mut swept = SweptTemplates::default();
    let entries = match std::fs::read_dir(templates_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            continue;
        }
        match remove(&entry.path()) {
            Ok(()) => swept.removed.push(entry.path()),
            Err(error) => swept.failed.push(error),
        }
    }
    Ok(swept)
}

/// Users' paths often lack the directories of administrators' programs.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}
