//! The guest itself: what it is told to be, and what it tells of itself.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::exec::ProgramExit;

/// What a guest becomes after its boot. Sent once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestConfig {
    /// Host name.
    pub hostname: String,
    /// The instance's id.
    pub instance_id: String,
    /// What runs in it.
    pub program: Program,
    /// Name servers; empty leaves the image's `/etc/resolv.conf`.
    pub dns: Vec<String>,
    /// The address of its network device; `None` leaves the device down.
    pub network: Option<NetworkConfig>,
}

/// What runs in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Command and arguments; a command without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// All its variables, as `KEY=value`.
    pub env: Vec<String>,
    /// Where it starts; made if missing.
    pub workdir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
}

/// A static address for the first network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Its address.
    pub address: Ipv4Addr,
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// The default route.
    pub gateway: Option<Ipv4Addr>,
    /// Bytes of its largest packet; `None` leaves the device's own.
    pub mtu: Option<u16>,
}

/// The answer to a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Configured {
    /// It was taken.
    Now,
    /// There was one before; this one was ignored.
    Already,
}

/// Gives a guest all that it must not share with another, in one round trip. The guest finds out by
/// itself what of it is new: with another instance's id it is a fork of that one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// Counts the refreshes of an instance; the answer names it.
    pub generation: u64,
    /// The host's `CLOCK_REALTIME`, in nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Fresh randomness.
    pub entropy: Entropy,
    /// Host name.
    pub hostname: String,
    /// The instance's id.
    pub instance_id: String,
    /// The instance's own variables as `KEY=value`, over those of its program.
    pub env: Vec<String>,
    /// Name servers; empty leaves what `/etc/resolv.conf` says.
    pub dns: Vec<String>,
    /// How long its hooks may take together, and as long the making of a fork's SSH host keys, in
    /// milliseconds; `None` runs no hooks, since the guest comes back from nowhere.
    pub hooks_ms: Option<u32>,
}

/// What a refresh took, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refreshed {
    /// As asked.
    pub generation: u64,
    /// Whether the guest was another instance before.
    pub forked: bool,
    /// From the clock being set to this answer, in microseconds.
    pub took_us: u32,
    /// Page faults of the agent meanwhile: those that needed no disk.
    pub minor_faults: u32,
    /// Those that needed one.
    pub major_faults: u32,
    /// How many hooks ran.
    pub hooks: u32,
    /// What failed and need not stop the guest.
    pub complaints: Vec<String>,
}

/// What a refresh has come to that runs programs of the image, and so may take its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefreshPart {
    /// It makes host keys for SSH.
    SshHostKeys,
    /// It runs the hooks for forks.
    ForkHooks,
    /// It runs the hooks for restores.
    RestoreHooks,
}

impl fmt::Display for RefreshPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SshHostKeys => "SSH host keys",
            Self::ForkHooks => "hooks in /etc/hearth/on-fork.d",
            Self::RestoreHooks => "hooks in /etc/hearth/on-restore.d",
        })
    }
}

/// The refresh of version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshV1 {
    /// As in [`Refresh`].
    pub generation: u64,
    /// As in [`Refresh`].
    pub realtime_ns: u64,
    /// As in [`Refresh`].
    pub entropy: Entropy,
    /// As in [`Refresh`].
    pub hostname: String,
    /// As in [`Refresh`].
    pub instance_id: String,
}

/// 64 bytes of randomness. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy([u8; 32], [u8; 32]);

impl Entropy {
    /// From bytes of the host's generator.
    #[must_use]
    pub fn new(bytes: [u8; 64]) -> Self {
        let (a, b) = bytes.split_at(32);
        Self(a.try_into().expect("32 bytes"), b.try_into().expect("32 bytes"))
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&self.0);
        bytes[32..].copy_from_slice(&self.1);
        bytes
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy(64 bytes)")
    }
}

/// The guest's first answer in an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol's version.
    pub version: u32,
    /// The guest kernel's boot id: the same after a restore, another after a boot.
    pub boot_id: String,
    /// The agent's own version.
    pub agent_version: String,
    /// Whether it has its configuration.
    pub configured: bool,
    /// What the program does.
    pub program: ProgramState,
    /// Why the guest could not come up; it can then only be shut down.
    pub boot_failure: Option<String>,
}

/// What the guest's program does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProgramState {
    /// There is no configuration yet.
    NotStarted,
    /// It runs.
    Running {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It has ended, and the guest is about to.
    Exited(ProgramExit),
}

/// What the guest knows of its resources.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStats {
    /// Memory the kernel manages, in bytes.
    pub memory_total: u64,
    /// Memory that could be had without swapping, in bytes.
    pub memory_available: u64,
    /// The agent's own resident memory, in bytes.
    pub agent_resident: u64,
    /// Time since boot, in milliseconds.
    pub uptime_ms: u64,
    /// Load over the last minute, in thousandths.
    pub load1_milli: u32,
    /// Processes and threads.
    pub tasks: u32,
    /// Frames that did not check since the agent began.
    pub bad_frames: u64,
}
