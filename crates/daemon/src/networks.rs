//! How guests of this host reach the network: each from a slot of its own where this process may make
//! network namespaces, else by QEMU's own stack.
//!
//! A slot's gate is closed until the guest has acknowledged who it is, and while it is saved. QEMU's
//! own stack has no gate: what a guest sends leaves at once.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hearth_model::network::{Egress, Network};
use hearth_model::{Backend, ErrorKind, InstanceId, InstanceSpec};
use hearth_net::{Made, NetConfig, NetSeat, SweptSlots, Usage, Wish};
use hearth_store::InstanceRecord;
use hearth_vmm::Nic;

use crate::config::{self, Config, NetworkMode};
use crate::error::OpError;

/// How guests reach the network.
#[derive(Debug)]
pub(crate) enum Networks {
    /// Each from a slot of its own.
    Slots(hearth_net::Network),
    /// By QEMU's own stack, because of this.
    User(String),
}

/// Where a VMM is put on the network.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// What the guest's card leads to.
    pub(crate) nic: Nic,
    /// The namespace that the VMM is started in.
    pub(crate) netns: Option<Arc<OwnedFd>>,
}

impl Networks {
    /// What the configuration asks for, as far as it can be had. `records`: of every instance.
    pub(crate) async fn open(config: &Config, records: &[InstanceRecord]) -> Result<Self, OpError> {
        let possible = hearth_net::Network::possible();
        match (config.network.mode, possible) {
            (NetworkMode::User, _) => return Ok(Self::User("the configuration says so (network.mode)".into())),
            (NetworkMode::Auto, Err(why)) => {
                tracing::info!(%why, "guests have QEMU's own network");
                return Ok(Self::User(why.to_string()));
            }
            (NetworkMode::Slots, Err(why)) => return Err(OpError::from_kind(&why)),
            (NetworkMode::Auto | NetworkMode::Slots, Ok(())) => {}
        }
        let slots = hearth_net::Network::open(slots_config(config), &seats(records)).await?;
        records.iter().filter_map(|record| record.address).for_each(|address| slots.hold(address));
        let (names, range) = (format!("{}*", slots.namespaces()), config.network.cidr);
        tracing::info!(names, %range, "each instance has a network namespace of its own");
        Ok(Self::Slots(slots))
    }

    /// Refuses what this host cannot give, with the reason.
    pub(crate) fn refuse(&self, backend: Backend, network: &Network) -> Result<(), OpError> {
        let Self::User(why) = self else { return Ok(()) };
        let unsupported = |what: &str, hint: &str| {
            Err(OpError::new(ErrorKind::Unsupported, format!("{what} is not possible here: {why}")).hinted(hint))
        };
        let privileged = "run the daemon as root, with network.mode = \"auto\"; `hearth doctor` says what is missing";
        match backend {
            Backend::Firecracker => unsupported("a network under firecracker", privileged),
            Backend::QemuMicrovm | Backend::Qemu => match network {
                Network { upload: Some(_), .. } | Network { download: Some(_), .. } => {
                    unsupported("limiting bandwidth", privileged)
                }
                Network { egress: Egress::Only(_), .. } => unsupported("a list of what a guest may reach", privileged),
                Network { egress: Egress::Open | Egress::None, .. } => Ok(()),
            },
        }
    }

    /// An address for a new instance, if it is to have one.
    pub(crate) fn lease(&self, spec: &InstanceSpec) -> Result<Option<Ipv4Addr>, OpError> {
        match (self, &spec.network) {
            (Self::Slots(slots), Some(_)) => Ok(Some(slots.lease()?)),
            (Self::Slots(_) | Self::User(_), _) => Ok(None),
        }
    }

    /// The instance is no more: its address is another's, in time.
    pub(crate) fn give_back(&self, record: &InstanceRecord) {
        if let (Self::Slots(slots), Some(address)) = (self, record.address) {
            slots.give_back(address);
        }
    }

    /// What a guest's card leads to.
    pub(crate) fn nic(&self, spec: &InstanceSpec) -> Nic {
        match (self, &spec.network) {
            (_, None) => Nic::None,
            (Self::Slots(_), Some(_)) => Nic::Tap,
            (Self::User(_), Some(network)) => {
                Nic::User { ports: network.ports.clone(), closed: network.egress == Egress::None }
            }
        }
    }

    /// Whether an instance has a slot to take.
    pub(crate) fn has_slots(&self, spec: &InstanceSpec) -> bool {
        matches!(self, Self::Slots(_)) && spec.network.is_some()
    }

    /// Takes a slot, closed. Its number is the record's from here on.
    pub(crate) async fn take(&self, record: &mut InstanceRecord) -> Result<(Place, Made), OpError> {
        let Self::Slots(slots) = self else { return Err(no_slots()) };
        if record.address.is_none() {
            // Of an instance that was made when there were no slots.
            record.address = Some(slots.lease()?);
        }
        let taken = slots.take(&wish(record).ok_or_else(no_slots)?).await?;
        record.slot = Some(taken.seat.slot);
        Ok((Place { nic: Nic::Tap, netns: Some(taken.netns) }, taken.made))
    }

    /// Opens the gate.
    pub(crate) async fn unlock(&self, id: &InstanceId) -> Result<(), OpError> {
        match self {
            Self::Slots(slots) => Ok(slots.unlock(id).await?),
            Self::User(_) => Ok(()),
        }
    }

    /// Closes it.
    pub(crate) async fn shut(&self, id: &InstanceId) -> Result<(), OpError> {
        match self {
            Self::Slots(slots) => Ok(slots.shut(id).await?),
            Self::User(_) => Ok(()),
        }
    }

    /// Gives a slot up; none there is success.
    pub(crate) async fn release(&self, id: &InstanceId) -> Result<(), OpError> {
        match self {
            Self::Slots(slots) => Ok(slots.release(id).await?),
            Self::User(_) => Ok(()),
        }
    }

    /// Takes over the slot of an instance that has one, after a restart of the daemon.
    pub(crate) async fn adopt(&self, record: &InstanceRecord) -> Result<(), OpError> {
        match (self, seat(record), wish(record)) {
            (Self::Slots(slots), Some(seat), Some(wish)) => Ok(slots.adopt(&wish, &seat).await?),
            _ => Ok(()),
        }
    }

    /// Takes away whatever slot a record names, in whatever state it is; none there is success. What of a
    /// broken one stays is said, and no error: once no record names it, the next start tries again.
    pub(crate) async fn clear(&self, record: &InstanceRecord) -> Result<(), OpError> {
        let Err(broken) = self.adopt(record).await else { return self.release(&record.id).await };
        // An earlier try may have taken it over.
        self.release(&record.id).await?;
        if let (Self::Slots(slots), Some(seat), Some(wish)) = (self, seat(record), wish(record))
            && let Err(error) = slots.discard(&wish, &seat).await
        {
            let error = hearth_model::error::chain(&error);
            tracing::warn!(id = %record.id, slot = seat.slot, %broken, error, "a broken slot stays until the next start");
        }
        Ok(())
    }

    /// What the start has removed of slots, and could not remove.
    pub(crate) fn swept(&self) -> SweptSlots {
        match self {
            Self::Slots(slots) => slots.swept(),
            Self::User(_) => SweptSlots::default(),
        }
    }

    /// What a guest has sent and received.
    pub(crate) fn usage(&self, id: &InstanceId) -> Option<Usage> {
        match self {
            Self::Slots(slots) => slots.usage(id),
            Self::User(_) => None,
        }
    }

    /// The daemon ends: what no instance uses goes.
    pub(crate) async fn close(&self) {
        if let Self::Slots(slots) = self {
            slots.close().await;
        }
    }
}

/// The slots that records hold.
pub(crate) fn seats(records: &[InstanceRecord]) -> Vec<NetSeat> {
    records.iter().filter_map(seat).collect()
}

/// The slot that a record holds.
fn seat(record: &InstanceRecord) -> Option<NetSeat> {
    Some(NetSeat { slot: record.slot?, address: record.address? })
}

fn wish(record: &InstanceRecord) -> Option<Wish> {
    Some(Wish {
        id: record.id.clone(),
        name: record.spec.name.clone(),
        address: record.address?,
        network: record.spec.network.clone()?,
    })
}

fn no_slots() -> OpError {
    OpError::new(ErrorKind::Internal, "a slot of the network was wanted where there is none")
}

pub(crate) fn slots_config(config: &Config) -> NetConfig {
    let config::Network {
        mode: _,
        cidr,
        pool,
        isolated,
        ref host_ports,
        ref dns,
        admit_in_foreign_chains,
        reuse_after_s,
    } = config.network;
    NetConfig {
        cidr,
        pool,
        isolated,
        host_ports: host_ports.clone(),
        dns: dns.clone(),
        admit_in_foreign_chains,
        reuse_after: Duration::from_secs(reuse_after_s.into()),
        data_dir: config.data_dir.clone(),
    }
}
