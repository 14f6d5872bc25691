//! The host's part of an instance's network: a place of its own for each guest, an outer address
//! that belongs to it alone, and a gate that is closed until somebody says that the guest is itself.
//!
//! In: what an instance wishes for ([`Wish`]). Out: a namespace with the tap device that its VMM
//! opens ([`Taken`]), reachable at the outer address once [`Network::unlock`] was called.
//!
//! Not here: who gets a network and when the gate opens is the caller's affair; nothing here knows
//! VMMs, records or the guest's insides.

mod bandwidth;
mod dns;
#[cfg(feature = "fake")]
pub mod fake;
mod fault;
mod foreign;
#[cfg(feature = "fake")]
pub mod guest;
mod host;
mod lease;
mod netlink;
mod netns;
mod network;
mod nft;
mod publish;
mod rule_changes;
mod ruleset;
mod slot;
mod slots;
mod spec;
mod steps;
mod tag;
#[cfg(test)]
mod testbed;

#[cfg(any(test, feature = "stranger"))]
pub use dns::stranger;
pub use fault::{Impossible, NetError};
pub use network::Network;
pub use nft::NftError;
pub use publish::PublishError;
pub use slots::Slots;
pub use spec::{Made, NetConfig, NetSeat, SweptSlots, Taken, Usage, Wish};
