//! What is launched and what is left behind: machines, directories, saved states, seats.
//!
//! Neutral between backends: a field that only one of them reads belongs into its own folder.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_model::foreign::ForeignDevices;
use hearth_model::network::PortMapping;
use hearth_model::{Accel, Backend, MemMib};

/// The read-only root file system: a raw disk, or a link to one. Made by the caller.
pub const ROOTFS: &str = hearth_model::spec::ROOTFS;
/// The writable layer: a raw disk. Made by the caller.
pub const OVERLAY: &str = hearth_model::spec::OVERLAY;
/// Guest RAM of a booted QEMU instance, made by [`crate::Launcher::boot`]: sparse, as large as the
/// memory.
pub const MEMORY: &str = "memory";
/// What a loaded instance's memory is a private mapping of, and what the next snapshot's memory is
/// written onto a copy of. Made by the caller; see [`Ram::Tracked`].
pub const MEMORY_BASE: &str = "memory.base";
/// What the guest writes to its first serial port; appended to, so that it goes on after a load.
pub const SERIAL_LOG: &str = "serial.log";
/// What the VMM itself has to say; begins anew with every launch.
pub const VMM_LOG: &str = "vmm.log";
/// What Firecracker's process has to say before it has a log; begins anew with every launch.
pub const VMM_ERRORS: &str = "vmm.err";
/// QEMU's control socket.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The host end of the guest's port `hearth.agent` under QEMU.
pub const AGENT_SOCKET: &str = "agent.sock";
/// Firecracker's control socket.
pub const API_SOCKET: &str = "api.sock";
/// The host end of the guest's vsock device under Firecracker.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// Every socket that a VMM may leave in its directory.
pub const SOCKETS: [&str; 4] = [QMP_SOCKET, AGENT_SOCKET, API_SOCKET, VSOCK_SOCKET];

/// What a VMM makes in its directory.
pub const MADE: [&str; 7] = [SERIAL_LOG, VMM_LOG, VMM_ERRORS, QMP_SOCKET, AGENT_SOCKET, API_SOCKET, VSOCK_SOCKET];

/// The machine a guest sees, and what it boots.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Machine {
    /// The VMM and its board.
    pub backend: Backend,
    /// How vCPUs are executed.
    pub accel: Accel,
    /// How many, at least one.
    pub vcpus: u8,
    /// Guest RAM.
    pub memory: MemMib,
    /// The kernel: a bzImage, or the ELF inside it (boots faster). Read by a boot only.
    pub kernel: PathBuf,
    /// The initrd; a kernel that finds its own way has none. Read by a boot only.
    pub initrd: Option<PathBuf>,
    /// What its network card leads to.
    pub network: Nic,
    /// The devices of a guest that was made elsewhere, in place of those of ours. Such a machine is
    /// only ever loaded.
    pub foreign: Option<ForeignDevices>,
}

/// What a guest's network card leads to.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nic {
    /// There is none.
    #[default]
    None,
    /// The VMM's own network stack: needs no privileges. QEMU has one.
    User {
        /// Ports of the host that lead to the guest.
        ports: Vec<PortMapping>,
        /// Whether the guest reaches nothing.
        closed: bool,
    },
    /// The tap [`inner::TAP`](hearth_model::network::inner::TAP) of the network namespace that the
    /// VMM is launched in.
    Tap,
}

/// Where a VMM is launched, and as what.
#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The instance's directory: the VMM's working directory. It exists, and has `disks/`.
    pub dir: PathBuf,
    /// The machine. For a load: the one that was saved.
    pub machine: Machine,
    /// The VMM's program: a path, or a name that is looked up in `PATH`.
    pub program: PathBuf,
    /// The network namespace it runs in; the daemon's if there is none. A machine with [`Nic::Tap`]
    /// has one.
    pub netns: Option<Arc<OwnedFd>>,
    /// Whether snapshots of what is loaded are to hold only what it changed (see [`Ram::Tracked`]).
    /// It costs the guest a fault for each page that it writes first.
    pub track_dirty_pages: bool,
}

/// How a saved device state is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum StateFormat {
    /// QEMU's device state alone, without RAM and without the configuration section.
    #[serde(rename = "qemu-devices-1")]
    QemuDevices,
    /// Firecracker's state file. What it is in detail depends on Firecracker's version.
    #[serde(rename = "firecracker-1")]
    Firecracker,
}

/// A guest at rest: device state and memory.
///
/// Both paths are absolute or relative to the directory of the VMM that loads them. Both files are
/// opened during the load and not needed by name afterwards; neither is ever written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedState {
    /// What [`crate::Vmm::save`] wrote.
    pub vmstate: PathBuf,
    /// The guest's RAM at that moment, as long as the machine's memory.
    pub memory: PathBuf,
    /// What [`crate::Vmm::save`] returned.
    pub format: StateFormat,
}

/// Where a guest's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ram {
    /// In the file [`MEMORY`], which is the memory file of a snapshot once the guest is paused.
    Shared,
    /// In a snapshot's memory file, which is never written, with the guest's own pages over it.
    Private,
    /// In the VMM alone, which can tell the pages that were ever touched.
    Anonymous,
    /// In the VMM alone, which tracks the pages that were written since the file [`MEMORY_BASE`] was
    /// loaded or saved. Where there is no such file, nobody knows since when it tracks them.
    Tracked,
}

/// Whether vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// They run.
    Running,
    /// They halt; the VMM stays.
    Paused,
}

/// How the memory of a paused guest gets into a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMemory<'a> {
    /// It is in a file of its own already ([`Ram::Shared`]).
    Leave,
    /// What differs is written onto this file: a copy, made by the caller, of what it is mapped
    /// from. With shared memory of [`MEMORY`], at any moment, while the guest ran; with private or
    /// tracked memory of [`MEMORY_BASE`].
    Onto(&'a Path),
    /// All of it is written into this file, which is not there yet.
    Into(&'a Path),
}

/// What was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saved {
    /// What the device state is.
    pub format: StateFormat,
    /// The pages written, where the VMM was not the one who wrote them.
    pub pages: Option<PageCount>,
}

/// How a VMM's control socket came to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketWait {
    /// It answered at the first try.
    Immediate,
    /// The file system told when it was there.
    Inotify,
    /// It was tried again and again, because of this.
    Polling(String),
}

impl SocketWait {
    /// The name in timelines and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::Inotify => "inotify",
            Self::Polling(_) => "polling",
        }
    }
}

/// What was written onto a copy of the memory. A page is 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct PageCount {
    /// Pages that the guest changed.
    pub changed: u64,
    /// Those of them that ended as zeroes, and take no space.
    pub zero: u64,
}

/// Where a VMM sits: enough to find it again, and to know that it is the same one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Seat {
    /// Its process.
    pub pid: u32,
    /// When that process started, in clock ticks since the host's boot.
    pub start_ticks: u64,
    /// The host's boot in which it started.
    pub boot_id: String,
    /// Its directory.
    pub dir: PathBuf,
    /// What it is.
    pub backend: Backend,
    /// Where its guest's memory is.
    pub ram: Ram,
    /// The inode of the file that guest RAM is mapped from; 0 where there is none.
    pub memory_inode: u64,
    /// How much guest RAM there is.
    pub memory: MemMib,
    /// The devices it was launched with, by the name that [`device_set`] gave them then. Older builds
    /// did not record it: see [`crate::launched_with`].
    #[serde(default)]
    pub device_set: Option<String>,
}

/// Names the devices a guest of this machine sees. A state loads only into the set it was saved
/// from: the manifest records it, and it changes whenever a launch's devices do.
#[must_use]
pub fn device_set(machine: &Machine) -> String {
    let Machine { backend, accel, vcpus, memory, kernel: _, initrd: _, network, foreign } = machine;
    // Taps offload what the VMM's own stack does not: a guest that knows of one knows not of the other.
    let net = match network {
        Nic::None => "",
        Nic::User { .. } => "+net",
        Nic::Tap => "+tap",
    };
    // QEMU's devices changed once, those of its standard board twice; Firecracker's are the first.
    let (version, channel) = match backend {
        Backend::Firecracker => (1, "vsock"),
        Backend::QemuMicrovm => (2, "agent"),
        Backend::Qemu => (3, "agent"),
    };
    let (accel, mib) = (accel.as_str(), memory.mib());
    if let Some(ForeignDevices { drives, vsock }) = foreign {
        let drive = |read_only| if read_only { "ro" } else { "rw" };
        let drives: Vec<String> = drives.iter().map(|d| format!("{}:{}", d.id, drive(d.read_only))).collect();
        let vsock = if *vsock { "+vsock" } else { "" };
        return format!("{backend}-foreign-1/{accel}/{vcpus}cpu/{mib}MiB/drives({}){vsock}{net}", drives.join(","));
    }
    format!("{backend}-{version}/{accel}/{vcpus}cpu/{mib}MiB/serial+rootfs+overlay+{channel}+rng{net}")
}
