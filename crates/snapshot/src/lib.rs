//! Bundles: saved state on disk.
//!
//! ```text
//! snapshots/<id>/            published, immutable
//!     manifest.json          what it is and what it fits
//!     vmstate                device state             (kind standby)
//!     memory                 guest RAM, sparse        (kind standby)
//!     disks/rootfs           the image's file         (a hard link)
//!     disks/overlay.img      the writable layer at that moment
//!     disks/<id>             in place of both, each drive of a guest that was imported
//!     settled.json           checksums; there once all of it has reached the disk
//!     damaged.json           which file is not what it was; there from a verification that failed
//!                            to one that succeeds, and until then nothing is loaded of it
//! snapshots/.draft-<id>/     being written: nobody reads it
//! snapshots/.trash-<id>/     being deleted
//! ```
//!
//! In: files that others put into a [`Draft`]. Out: a [`Bundle`] that either opens whole or says
//! which file is wrong. This crate does not write memory or device state, clones no disks and
//! keeps no records.
//!
//! **A bundle never changes and is never copied to be used.** Every fork loads the bundle's own
//! memory file, one inode and one page cache for all. Who uses a bundle makes hard links to
//! `memory` and `disks/rootfs` in a directory of its own first; so [`remove()`] never takes a file
//! away from a guest that runs on it.
//!
//! **Durable later.** [`publish`] is on the way of a standby and waits for no disk; [`settle()`] does,
//! afterwards. A bundle that the host lost power on before it was settled is refused by [`open()`],
//! because its files may have the right sizes and the wrong content.

mod checksum;
mod compatible;
mod draft;
mod manifest;
mod mark;
mod open;
mod remove;
mod settle;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;
mod verify;

pub use compatible::{CpuFingerprint, Difference, HostFacts, Incompatible, compatible};
pub use draft::{Draft, DraftError, begin, discard, publish};
pub use manifest::{BundleKind, FORMAT, FileEntry, Manifest};
pub use mark::{Damage, damage};
pub use open::{Bundle, OpenError, open};
pub use remove::{RemoveError, Swept, remove, sweep, withdraw, withdrawn};
pub use settle::{SettleError, Settled, settle};
pub use verify::{VerifyError, check, due, verify};

/// The manifest.
pub const MANIFEST: &str = "manifest.json";
/// Device state.
pub const VMSTATE: &str = "vmstate";
/// Guest RAM.
pub const MEMORY: &str = "memory";
/// The directory of the disks.
pub const DISKS: &str = "disks";
/// The image's root file system.
pub const ROOTFS: &str = hearth_model::spec::ROOTFS;
/// The writable layer.
pub const OVERLAY: &str = hearth_model::spec::OVERLAY;
/// Checksums, written when the bundle has reached the disk.
pub const SETTLED: &str = "settled.json";

/// The mark of a bundle that failed its verification.
pub const DAMAGED: &str = "damaged.json";

const DRAFT_PREFIX: &str = ".draft-";
const TRASH_PREFIX: &str = ".trash-";

/// This host's current boot, to know whether it was down since something was made. Empty where the kernel
/// does not say.
pub fn boot_id() -> String {
    // It cannot change while this process lives, and is read on every publication.
    static BOOT_ID: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    BOOT_ID.get_or_init(read).clone()
}
