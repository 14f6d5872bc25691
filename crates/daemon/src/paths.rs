//! Every path below the data directory, computed in this one place.

use std::path::{Path, PathBuf};

/// What was done to an instance, in its directory.
pub(crate) const HEARTH_LOG: &str = "hearth.log";
/// Where instances' directories go when they are removed.
const REMOVED: &str = "removed";
/// How the name begins of an instance's directory that is half made.
pub(crate) const UNFINISHED: &str = ".new-";

use hearth_model::{InstanceId, SnapshotId};

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

    /// Where VMMs look at what is imported: a directory for each import that is under way.
    pub(crate) fn imports(&self) -> PathBuf {
        self.root.join("imports")
    }

    /// What is left of instances until it is on the disk that they have no record: `removed/<id>/`.
    pub(crate) fn removed(&self) -> PathBuf {
        self.root.join(REMOVED)
    }

    pub(crate) fn import(&self, id: &SnapshotId) -> InstanceDir {
        InstanceDir { dir: self.imports().join(id.as_str()) }
    }

    pub(crate) fn instance(&self, id: &InstanceId) -> InstanceDir {
        InstanceDir { dir: self.instances().join(id.as_str()) }
    }

    /// The directories that must exist before anything is served.
    pub(crate) fn all(&self) -> [PathBuf; 7] {
        let [instances, removed] = [self.instances(), self.removed()];
        [self.images(), self.snapshots(), self.templates(), self.initrds(), instances, removed, self.imports()]
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

    /// Where it is made before it has its name.
    pub(crate) fn aside(&self) -> Self {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        Self { dir: self.dir.with_file_name(format!("{UNFINISHED}{name}")) }
    }

    /// What tells that it was being removed.
    pub(crate) fn removed(&self) -> PathBuf {
        let root = self.dir.ancestors().nth(2).unwrap_or(&self.dir);
        root.join(REMOVED).join(self.dir.file_name().unwrap_or_default())
    }

    /// One that is there, of whatever name.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// A disk by its path in here: [`hearth_model::InstanceSpec::disks`] names them.
    pub(crate) fn disk(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Where a writable disk rests while another one is tried in its place.
    pub(crate) fn disk_before(&self, path: &str) -> PathBuf {
        self.dir.join(path).with_extension("before")
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
        self.dir.join(HEARTH_LOG)
    }
}
