//! What the host has to give, and what an instance takes of it while it runs.
//!
//! The limits are found out once, when the daemon starts; what is free changes, and is looked at
//! whenever somebody asks (`reservations`).

use std::path::Path;

use hearth_model::capacity::{Amounts, Limits, oversubscribed};
use hearth_model::{Backend, ByteSize, InstanceSpec};
use rustix::process::{Resource, getrlimit};

use crate::config::Config;

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

/// Descriptors that the daemon has for one instance: some five for its slot of the network, and its
/// VMM's pidfd and socket, its agent's connection, and what is open for a moment while it starts.
const FILES: u64 = 12;
/// Descriptors for everything else: the API's clients, records, files that are copied; of few, half.
const FILES_KEPT: u64 = 256;
/// The host's other processes, at least; else an eighth of what it may run, and of few, half.
const PROCESSES_KEPT: u64 = 256;

/// What an instance holds while it has a VMM.
pub(crate) fn machine(spec: &InstanceSpec) -> Amounts {
    let vcpus = u64::from(spec.vcpus);
    // Threads beside those of vCPUs: Firecracker's main one and its API's; QEMU's main one, RCU's,
    // and workers that come and go.
    let threads = match spec.backend {
        Backend::Firecracker => 3,
        Backend::QemuMicrovm | Backend::Qemu => 8,
    };
    Amounts { vcpus, memory: spec.memory.size().bytes(), files: FILES, processes: threads + vcpus, disk: 0 }
}

/// Reads the host's capacity.
pub(crate) fn capacity(data_dir: &Path) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let system = rustix::system::sysinfo();
    let memory = system.totalram * u64::from(system.mem_unit);
    // In a container, what that may have.
    let memory = number_in(Path::new("/sys/fs/cgroup/memory.max")).map_or(memory, |most| most.min(memory));
    let disk = hearth_disk::free_space(data_dir).map_or(0, |space| space.total);
    Capacity { cpus, memory, disk }
}

/// Memory that is for instances, before it is given several times over.
pub(crate) fn memory_for_instances(config: &Config, host: &Capacity) -> u64 {
    config.memory.capacity.map_or(host.memory, ByteSize::bytes)
}

/// What all instances together keep to. `own_cgroup`: VMMs run in the daemon's.
pub(crate) fn limits(config: &Config, host: &Capacity, own_cgroup: bool) -> Limits {
    let most = Amounts {
        vcpus: oversubscribed(host.cpus, config.cpu.oversubscription),
        memory: oversubscribed(memory_for_instances(config, host), config.memory.oversubscription),
        files: files(),
        processes: processes(own_cgroup),
        disk: 0,
    };
    Limits {
        most,
        memory_reserve: config.memory.reserve_of(host.memory).bytes(),
        disk_reserve: config.disk.reserve_of(host.disk).bytes(),
    }
}

/// Descriptors that the daemon may have for instances.
pub(crate) fn files() -> u64 {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    most - FILES_KEPT.min(most / 2)
}

/// Instances for which so many descriptors, and so many processes, are enough.
pub(crate) fn instances_for(files: u64, processes: u64) -> u64 {
    // One of QEMU with one vCPU; Firecracker's has fewer threads.
    (files / FILES).min(processes / 9)
}

/// Processes and threads that may run for instances.
pub(crate) fn processes(own_cgroup: bool) -> u64 {
    let kernel = ["pid_max", "threads-max"].map(|name| number_in(&Path::new("/proc/sys/kernel").join(name)));
    // Whoever is root is held to cgroups alone.
    let user = if rustix::process::geteuid().is_root() { None } else { getrlimit(Resource::Nproc).current };
    let most = kernel.into_iter().flatten().chain(user).chain(of_cgroups(own_cgroup)).min().unwrap_or(u64::MAX);
    most - PROCESSES_KEPT.max(most / 8).min(most / 2)
}

/// What the cgroups allow that VMMs run in: the daemon's with those above it, or the root alone.
fn of_cgroups(own: bool) -> Vec<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let entry = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = entry.lines().find_map(|line| line.strip_prefix("0::/")).filter(|_| own).unwrap_or_default();
    let dir = root.join(path);
    dir.ancestors().take_while(|dir| dir.starts_with(root)).filter_map(|dir| number_in(&dir.join("pids.max"))).collect()
}

/// The number in a file of the kernel's; `None` of one that is not there, or says `max`.
fn number_in(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
