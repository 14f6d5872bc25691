//! What can go wrong with the network.

use std::io;
use std::net::Ipv4Addr;

use hearth_model::error::io_kind;
use hearth_model::{ErrorKind, InstanceId, Kind};
use ipnet::Ipv4Net;

use crate::nft::NftError;
use crate::publish::PublishError;

/// Why this process cannot make networks for instances.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// It is not privileged enough.
    #[error("make network namespaces: this process lacks {}", missing.join(" and "))]
    Unprivileged { missing: Vec<&'static str> },
    /// A library is not on this host.
    #[error("find the library {library}")]
    NoLibrary { library: &'static str, package: &'static str },
    /// The kernel lacks something.
    #[error("use {what}: this kernel has none")]
    NoKernelSupport { what: &'static str },
}

impl Kind for Impossible {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Unsupported
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unprivileged { .. } => {
                "run the daemon as root or with these capabilities; without them only QEMU has a network".into()
            }
            Self::NoLibrary { package, .. } => format!("install it (Debian: apt install {package})"),
            Self::NoKernelSupport { what } => format!("load the kernel's module for {what}, or use another kernel"),
        })
    }
}

/// Something about the network failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// This process may not make networks.
    #[error("set up the network")]
    Impossible(#[source] Impossible),
    /// Another daemon uses the same names.
    #[error("set up the network: another daemon on this host has the tag {tag}")]
    TagTaken { tag: String },
    /// The range overlaps what the host has.
    #[error("use the range {cidr} (network.cidr) for instances: the host has {with}")]
    RangeClash { cidr: Ipv4Net, with: String },
    /// The range has no address for an instance.
    #[error("use the range {cidr} (network.cidr) for instances: it is too small")]
    RangeTooSmall { cidr: Ipv4Net },
    /// All addresses are leased.
    #[error("lease an address: all {leased} of the range {cidr} are taken")]
    RangeExhausted { cidr: Ipv4Net, leased: usize },
    /// An address that was leased when the range was another.
    #[error("use the address {address}: it is not in the range {cidr} (network.cidr)")]
    OutsideRange { address: Ipv4Addr, cidr: Ipv4Net },
    /// Nobody leased the address.
    #[error("use the address {address}: it was not leased")]
    NotLeased { address: Ipv4Addr },
    /// The address has a slot.
    #[error("use the address {address}: {} has it", holder.as_ref().map_or("another slot".into(), |id| format!("instance {id}")))]
    AddressTaken { address: Ipv4Addr, holder: Option<InstanceId> },
    /// The instance has a slot.
    #[error("take a slot for instance {id}: it has one")]
    AlreadyTaken { id: InstanceId },
    /// The instance has no slot.
    #[error("{action} the network of instance {id}: it has none")]
    NoSlot { action: &'static str, id: InstanceId },
    /// What a record says is not on the host.
    #[error("find slot {slot} again: {missing} is gone")]
    Gone { slot: u32, missing: String },
    /// A call to the kernel failed.
    #[error("{action} {object}")]
    Host {
        action: &'static str,
        object: String,
        #[source]
        source: io::Error,
    },
    /// Rules could not be changed or read.
    #[error("set the rules of {of}")]
    Rules {
        of: String,
        #[source]
        source: NftError,
    },
    /// A port of the host could not be made to lead to the instance.
    #[error(transparent)]
    Publish(PublishError),
    /// The daemon ends, and begins nothing more.
    #[error("change the network: the daemon ends")]
    Ending,
    /// Made to fail by a test's fake.
    #[cfg(feature = "fake")]
    #[error("network, as a test demanded")]
    Demanded,
}

impl Kind for NetError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Impossible(source) => source.kind(),
            Self::TagTaken { .. } | Self::RangeClash { .. } => ErrorKind::AlreadyExists,
            Self::RangeTooSmall { .. } => ErrorKind::Invalid,
            Self::RangeExhausted { .. } => ErrorKind::Exhausted,
            Self::OutsideRange { .. } => ErrorKind::Incompatible,
            Self::NotLeased { .. } | Self::AddressTaken { .. } | Self::AlreadyTaken { .. } | Self::NoSlot { .. } => {
                ErrorKind::Internal
            }
            Self::Gone { .. } => ErrorKind::HostFailed,
            Self::Host { source, .. } if is_out_of_descriptors(source) => ErrorKind::Exhausted,
            Self::Host { source, .. } => io_kind(source),
            Self::Rules { source, .. } => source.kind(),
            Self::Publish(error) => error.kind(),
            Self::Ending => ErrorKind::Cancelled,
            #[cfg(feature = "fake")]
            Self::Demanded => ErrorKind::HostFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Impossible(source) => source.hint(),
            Self::Rules { source, .. } => source.hint(),
            Self::Publish(error) => error.hint(),
            Self::TagTaken { .. } => Some("stop that daemon, or use another data_dir for this one".into()),
            Self::RangeClash { .. } => Some("configure another network.cidr that nothing on this host uses".into()),
            Self::RangeTooSmall { .. } => Some("configure a network.cidr of at least four addresses".into()),
            Self::RangeExhausted { .. } => {
                Some("delete instances that are not needed, or configure a larger network.cidr".into())
            }
            Self::OutsideRange { .. } => {
                Some("network.cidr was another when this instance was made: set it back, or fork the instance".into())
            }
            Self::Gone { .. } => Some("stop the instance and start or restore it: it gets a new slot".into()),
            Self::Host { source, .. } if is_out_of_descriptors(source) => Some(
                "an instance's network takes some five descriptors: raise the daemon's limit (LimitNOFILE=)".into(),
            ),
            Self::Host { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("`hearth doctor` says which privileges the network needs".into())
            }
            _ => None,
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Says what was being done when a call to the kernel failed.
pub(crate) trait During<T> {
    fn during(self, action: &'static str, object: impl FnOnce() -> String) -> Result<T, NetError>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, action: &'static str, object: impl FnOnce() -> String) -> Result<T, NetError> {
        self.map_err(|source| NetError::Host { action, object: object(), source })
    }
}
