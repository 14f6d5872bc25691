//! What the host has, and what instances take of it.

use hearth_model::{InstanceState, Phase};

use crate::handle::InstanceView;

/// Capacity of the host, in the API's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capacity {
    /// Logical processors.
    pub(crate) cpus: u64,
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Bytes of the file system that the data directory lies on.
    pub(crate) disk: u64,
}

/// What one instance takes while it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) cpus: u64,
    pub(crate) memory: u64,
    /// The overlay's size: what it may grow to.
    pub(crate) disk: u64,
}

/// What an instance takes: processors and memory only with a VMM, its overlay always.
pub(crate) fn taken(view: &InstanceView) -> Taken {
    let spec = &view.record.spec;
    let has_vmm = match &view.record.phase {
        Phase::Busy { .. } => true,
        Phase::Resting(InstanceState::Running) => true,
        Phase::Resting(InstanceState::Stopped | InstanceState::Standby { .. } | InstanceState::Failed { .. }) => false,
    };
    Taken {
        cpus: if has_vmm { u64::from(spec.vcpus) } else { 0 },
        memory: if has_vmm { spec.memory.size().bytes() } else { 0 },
        disk: spec.overlay.bytes(),
    }
}

/// Reads the host's capacity.
pub(crate) fn capacity(data_dir: &std::path::Path) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let system = rustix::system::sysinfo();
    let memory = system.totalram * u64::from(system.mem_unit);
    let disk = hearth_disk::free_space(data_dir).map_or(0, |space| space.total);
    Capacity { cpus, memory, disk }
}
