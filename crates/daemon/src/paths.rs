//! Every path below the data directory, computed in this one place.

use std::path::{Path, PathBuf};

use hearth_model::InstanceId;

/// The data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    root: PathBuf,
}

impl DataDir {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Image root file systems: `images/<digest>/`.
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Bundles: `snapshots/<id>/`.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Empty overlays to clone from.
    pub(crate) fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// The unpacked kernel package, unless the configuration names another place.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.root.join("kernel")
    }

    /// Built initrds.
    pub(crate) fn initrds(&self) -> PathBuf {
        self.root.join("initrd")
    }

    pub(crate) fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    pub(crate) fn instance(&self, id: &InstanceId) -> InstanceDir {
        InstanceDir { dir: self.instances().join(id.as_str()) }
    }

    /// The directories that must exist before anything is served.
    pub(crate) fn all(&self) -> [PathBuf; 5] {
        [self.images(), self.snapshots(), self.templates(), self.initrds(), self.instances()]
    }
}

/// One instance's directory: its VMM's working directory.
#[derive(Debug, Clone)]
pub(crate) struct InstanceDir {
    dir: PathBuf,
}

impl InstanceDir {
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    /// A hard link to the image's file: the image may go, the instance keeps it.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join(hearth_vmm::ROOTFS)
    }

    pub(crate) fn overlay(&self) -> PathBuf {
        self.dir.join(hearth_vmm::OVERLAY)
    }

    /// Where the overlay rests while another one is tried in its place.
    pub(crate) fn overlay_before(&self) -> PathBuf {
        self.dir.join("disks/overlay.before")
    }

    /// Guest RAM of a booted instance: the VMM maps it shared.
    pub(crate) fn memory(&self) -> PathBuf {
        self.dir.join(hearth_vmm::MEMORY)
    }

    /// The snapshot's memory file that a restored instance maps privately (a hard link).
    pub(crate) fn memory_base(&self) -> PathBuf {
        self.dir.join(hearth_vmm::MEMORY_BASE)
    }

    /// The snapshot's device state while it is loaded (a hard link).
    pub(crate) fn vmstate(&self) -> PathBuf {
        self.dir.join("vmstate")
    }

    pub(crate) fn serial_log(&self) -> PathBuf {
        self.dir.join(hearth_vmm::SERIAL_LOG)
    }

    pub(crate) fn vmm_log(&self) -> PathBuf {
        self.dir.join(hearth_vmm::VMM_LOG)
    }

    /// What was done to the instance, a line an operation.
    pub(crate) fn hearth_log(&self) -> PathBuf {
        self.dir.join("hearth.log")
    }
}
