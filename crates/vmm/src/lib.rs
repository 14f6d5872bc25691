//! VMM processes: launch, load, control, wait for their end, find them again, dial the guest.
//!
//! In: a [`LaunchSpec`] that names a directory and a machine. Out: a [`Vmm`], or an error that
//! says what was tried on what. A VMM belongs to nobody: it runs in its own session, outlives the
//! daemon and is found again by its [`Seat`].
//!
//! Not here: disks and memory files are made, cloned, published and deleted by others; nothing
//! here knows what the guest says on its channel; nothing decides, records or retries.

mod answer;
mod cgroup;
mod devices;
mod ending;
#[cfg(feature = "fake")]
pub mod fake;
mod fault;
mod file;
mod firecracker;
mod kvm;
mod launcher;
mod probe;
mod process;
mod qemu;
mod socket;
mod spec;
mod sys;
mod usage;
mod vmm;

pub use cgroup::{Cgroups, SweptCgroups};
pub use devices::launched_with;
pub use fault::{AdoptError, ControlError, KillError, LaunchError, UsageError};
pub use firecracker::probe::{KvmTrust, probe as probe_firecracker};
#[cfg(any(test, feature = "stranger"))]
pub use firecracker::stranger;
pub use kvm::{accel, evidence};
pub use launcher::{Launcher, Ready, ReadyToBoot, Started};
pub use probe::BackendProbe;
pub use process::{Ended, Exit, answer_promptly};
pub use qemu::probe::probe as probe_qemu;
pub use spec::{
    AGENT_SOCKET, API_SOCKET, LaunchSpec, MADE, MEMORY, MEMORY_BASE, Machine, Nic, OVERLAY, PageCount, QMP_SOCKET,
    ROOTFS, Ram, RunState, SERIAL_LOG, SOCKETS, SaveMemory, Saved, SavedState, Seat, SocketWait, StateFormat,
    VMM_ERRORS, VMM_LOG, VSOCK_SOCKET, device_set,
};
pub use usage::{Usage, resource_usage};
pub use vmm::{Adopted, Loaded, Vmm};
