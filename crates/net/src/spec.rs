//! What is asked for and what is handed out.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_model::network::Protocol;
use hearth_model::{InstanceId, InstanceName, Network};
use ipnet::Ipv4Net;

/// How this host's network of instances is set up.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Where outer addresses come from; the first one is the host's.
    pub cidr: Ipv4Net,
    /// How many slots are kept made ahead; 0 makes each when it is taken.
    pub pool: usize,
    /// Whether instances cannot reach each other.
    pub isolated: bool,
    /// Ports of the host itself that guests may connect to.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Name servers that the guests' forwarder asks; empty: those of the host's `/etc/resolv.conf`.
    pub dns: Vec<SocketAddr>,
    /// Whether a rule of ours may stand in other programs' forward chains that drop by policy.
    pub admit_in_foreign_chains: bool,
    /// How long an address that was given back is not given out again, as long as there are others.
    pub reuse_after: Duration,
    /// The daemon's data directory: names of what is made on the host are derived from it, so that
    /// several daemons do not meet.
    pub data_dir: PathBuf,
}

impl NetConfig {
    /// The defaults, for a daemon with this data directory.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 100, 0, 0), 16),
            pool: 8,
            isolated: true,
            host_ports: Vec::new(),
            dns: Vec::new(),
            admit_in_foreign_chains: true,
            reuse_after: Duration::from_secs(60),
            data_dir,
        }
    }
}

/// Where an instance's network is: enough to find it again. Recorded with its VMM's seat.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetSeat {
    /// Number of the slot.
    pub slot: u32,
    /// The instance's outer address.
    pub address: Ipv4Addr,
}

/// What a slot is taken for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The instance.
    pub id: InstanceId,
    /// What other instances find it by.
    pub name: InstanceName,
    /// Its outer address, leased before.
    pub address: Ipv4Addr,
    /// What it may reach, how fast, and its published ports.
    pub network: Network,
}

/// A slot that now is an instance's.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Where it is.
    pub seat: NetSeat,
    /// The network namespace that the VMM has to run in; its tap is [`hearth_model::network::inner::TAP`].
    pub netns: Arc<OwnedFd>,
    /// Whether it was waiting.
    pub made: Made,
}

/// When a slot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// It was in the pool.
    Ahead,
    /// On the way, because the pool was dry.
    Inline,
}

/// What went over an instance's network device since its slot was taken, as the guest sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// To the guest.
    pub rx_bytes: u64,
    /// To the guest.
    pub rx_packets: u64,
    /// From the guest.
    pub tx_bytes: u64,
    /// From the guest.
    pub tx_packets: u64,
}

/// What the network's opening removed that no record owns, and what it could not remove.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweptSlots {
    /// How many slots it removed.
    pub removed: usize,
    /// What is left of others, and why.
    pub failed: Vec<(String, String)>,
}
