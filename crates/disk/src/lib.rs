//! Writable disks: empty overlays, and copy-on-write clones of them.
//!
//! In: paths and sizes. Out: files. A clone shares blocks with its source where the file system
//! can (reflink on XFS and btrfs), else it copies what is not a hole. Nothing is synced: what
//! these files are part of (a bundle, an instance) is made durable by whoever publishes it.
//!
//! It does not know instances, snapshots or volumes, only files.

mod clone;
mod files;
mod overlay;

pub use clone::{CloneError, CloneHow, Linked, clone_file, link, reflink_supported};
pub use files::{FileError, Space, free_space, remove, spread_directories, usage};
pub use overlay::{MIN_OVERLAY, OverlayError, SweptTemplates, create_overlay, sweep_templates};
