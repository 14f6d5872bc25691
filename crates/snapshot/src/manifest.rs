//! The manifest: what a bundle is, what it fits, and which files it has.
//!
//! Its format has a number. A later number is refused, an older one is read for ever:
//! `tests/golden/` keeps one manifest of each.

use hearth_model::foreign::ForeignState;
use hearth_model::spec::Disk;
use hearth_model::{Accel, Backend, InstanceId, InstanceSpec, MemMib, SnapshotId};

use crate::compatible::CpuFingerprint;
use crate::{MEMORY, ROOTFS, VMSTATE};

/// The format that this code writes, and the latest that it reads.
///
/// 1: every bundle has the disks of a guest that was made here. 2: a bundle has the disks that its
/// specification names, and may hold a state that was saved elsewhere (`foreign`).
pub const FORMAT: u32 = 2;

/// What a bundle holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BundleKind {
    /// Device state, memory and disks: what is made of it goes on running.
    Standby,
    /// Disks only: what is made of it boots.
    Stopped,
}

/// What is known of a bundle. Who publishes fills in all but `format`, `boot_id` and `files`,
/// which [`publish`](crate::publish) sets from what it finds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// [`FORMAT`] of the version that wrote it.
    pub format: u32,
    /// The snapshot's id, and its directory's name.
    pub id: SnapshotId,
    /// With memory or without.
    pub kind: BundleKind,
    /// When the guest stood still for it, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// The instance it was taken of.
    pub source_instance: InstanceId,
    /// What ran it.
    pub backend: Backend,
    /// How its vCPUs were executed.
    pub accel: Accel,
    /// The VMM's version, as it says.
    pub vmm_version: String,
    /// The devices that the VMM's state is of.
    pub device_set: Vec<String>,
    /// How device state and memory were saved, in the vmm crate's words.
    pub state_format: String,
    /// Guest memory.
    pub memory: MemMib,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// The CPU that it ran on.
    pub cpu: CpuFingerprint,
    /// The host's kernel release.
    pub host_kernel: String,
    /// Digest of the image in `disks/rootfs`.
    pub image_digest: String,
    /// The instance's specification at the time.
    pub spec: InstanceSpec,
    /// What the state names, if it was saved elsewhere and not again since. Never resumed before
    /// that is replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<ForeignState>,
    /// The bundle whose memory this one's was made from, for people: nothing needs that bundle.
    pub base: Option<SnapshotId>,
    /// The host's boot in which it was published.
    pub boot_id: String,
    /// Its files.
    pub files: Vec<FileEntry>,
}

/// One file of a bundle, as it was published.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileEntry {
    /// Its path in the bundle.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// What it took on disk then.
    pub allocated_bytes: u64,
}

impl Manifest {
    /// The files that the bundle has, no more and no less, by their paths in it.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let state: &[&str] = match self.kind {
            BundleKind::Standby => &[VMSTATE, MEMORY],
            BundleKind::Stopped => &[],
        };
        state.iter().map(|&file| file.to_owned()).chain(self.disks().into_iter().map(|disk| disk.path)).collect()
    }

    /// The disks among them.
    #[must_use]
    pub fn disks(&self) -> Vec<Disk> {
        self.spec.disks()
    }

    /// Bytes that the bundle took on disk when it was published: all but the root file system,
    /// which is the image's.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        let of_an_image = self.spec.foreign.is_none();
        let own = self.files.iter().filter(|file| !(of_an_image && file.name == ROOTFS));
        // Of a manifest that was changed the sum may be more than a number holds.
        own.fold(0, |sum, file| sum.saturating_add(file.allocated_bytes))
    }
}
