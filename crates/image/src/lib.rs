//! OCI content → a read-only root file system and the image's configuration.
//!
//! In: an OCI layout (directory or tar), a `docker save` tar, or a root file system (tar or
//! directory). Out: `images_dir/<hex digest>/` with `rootfs.erofs` and `image.json`, published by
//! one rename.
//!
//! Layers are merged into one tree in memory (`tree`) while file contents go straight into
//! their place in the EROFS image (`erofs`). Nothing is ever extracted to the host's file
//! system, so no entry of an archive can name a path of the host; and because the file system is
//! written here and not by `mkfs.erofs`, owners, devices and xattrs are right without root, and
//! no tool needs to be installed.
//!
//! It does not talk to registries, does not know names (the store does), and does not run anything.

mod blob;
mod detect;
mod digest;
mod docker;
mod erofs;
mod error;
mod hostdir;
mod import;
mod layer;
mod limits;
mod oci;
mod shelf;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;
mod tarball;
mod tree;

pub use detect::{Source, detect};
pub use error::{ImageError, ImportError, Problem};
pub use import::{Progress, import};
pub use limits::Limits;
pub use shelf::{Filesystem, Imported, StoredImage, Swept, claim, disown, list, open, remove, sweep};
