//! The network of all instances: real, or a test's.

use std::net::Ipv4Addr;

use hearth_model::InstanceId;

#[cfg(feature = "fake")]
use crate::fake::FakeNetwork;
use crate::fault::{Impossible, NetError};
use crate::slots::Slots;
use crate::spec::{NetConfig, NetSeat, SweptSlots, Taken, Usage, Wish};

/// The network of all instances of a daemon. A clone is the same network.
#[derive(Debug, Clone)]
pub enum Network {
    /// On this host.
    Slots(Slots),
    /// In memory.
    #[cfg(feature = "fake")]
    Fake(FakeNetwork),
}

/// Both kinds understand the same calls.
macro_rules! either {
    ($network:expr, $it:ident => $call:expr) => {
        match $network {
            Network::Slots($it) => $call,
            #[cfg(feature = "fake")]
            Network::Fake($it) => $call,
        }
    };
}

impl Network {
    /// Whether this process may make networks on this host. Touches nothing.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn possible() -> Result<(), Impossible> {
        Slots::possible()
    }

    /// Looks whether [`Network::open`] would succeed on this host, and what it would change or finds in
    /// its way: sentences for people. Changes nothing.
    ///
    /// # Errors
    /// As [`Network::open`]'s.
    pub fn look(config: &NetConfig) -> Result<Vec<String>, NetError> {
        Slots::look(config)
    }

    /// Prepares the host, removes what earlier daemons of this data directory left and no record
    /// owns, and begins to fill the pool. `owned` are the seats of records. Needs a tokio runtime.
    ///
    /// # Errors
    /// The process may not, the range clashes with the host's networks, or a call failed.
    pub async fn open(config: NetConfig, owned: &[NetSeat]) -> Result<Self, NetError> {
        Slots::open(config, owned).await.map(Self::Slots)
    }

    /// What the names of its network namespaces begin with.
    #[must_use]
    pub fn namespaces(&self) -> String {
        either!(self, it => it.namespaces())
    }

    /// Leases an outer address; it stays leased until it is given back.
    ///
    /// # Errors
    /// The range is exhausted.
    pub fn lease(&self) -> Result<Ipv4Addr, NetError> {
        either!(self, it => it.lease())
    }

    /// Marks an address as leased, as a record says.
    pub fn hold(&self, address: Ipv4Addr) {
        either!(self, it => it.hold(address));
    }

    /// Gives an address back. One that is not leased may be given back too.
    pub fn give_back(&self, address: Ipv4Addr) {
        either!(self, it => it.give_back(address));
    }

    /// Takes a slot for an instance. Its gate is closed: until [`Network::unlock`] no packet leaves
    /// or reaches the guest, and its published ports do not answer.
    ///
    /// # Errors
    /// The address is not leased or in use, a published port is taken, or a call failed; nothing is
    /// left of it then.
    pub async fn take(&self, wish: &Wish) -> Result<Taken, NetError> {
        either!(self, it => it.take(wish).await)
    }

    /// Opens the gate.
    ///
    /// # Errors
    /// The instance has no slot, or a call failed.
    pub async fn unlock(&self, id: &InstanceId) -> Result<(), NetError> {
        either!(self, it => it.unlock(id).await)
    }

    /// Closes the gate.
    ///
    /// # Errors
    /// The instance has no slot, or a call failed.
    pub async fn shut(&self, id: &InstanceId) -> Result<(), NetError> {
        either!(self, it => it.shut(id).await)
    }

    /// Takes an instance's slot away: nothing reaches it when this returns, and the rest is removed
    /// in the background. An instance without a slot is fine. Its address stays leased.
    ///
    /// # Errors
    /// A call failed; may be called again.
    pub async fn release(&self, id: &InstanceId) -> Result<(), NetError> {
        either!(self, it => it.release(id).await)
    }

    /// Finds the slot of an instance again that an earlier daemon gave it; the gate stays as it is. One that
    /// was found already is fine.
    ///
    /// # Errors
    /// It is gone, or a call failed.
    pub async fn adopt(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        either!(self, it => it.adopt(wish, seat).await)
    }

    /// Removes what there is of a slot that [`Network::adopt`] could not find again: it would be in the
    /// way of the instance's next one. One that is not there is fine.
    ///
    /// # Errors
    /// A call failed, and something is left.
    pub async fn discard(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        either!(self, it => it.discard(wish, seat).await)
    }

    /// What [`Network::open`] removed, and could not remove.
    #[must_use]
    pub fn swept(&self) -> SweptSlots {
        either!(self, it => it.swept())
    }

    /// What went over an instance's network device; `None` without a slot, or when it cannot be asked.
    #[must_use]
    pub fn usage(&self, id: &InstanceId) -> Option<Usage> {
        either!(self, it => it.usage(id))
    }

    /// The daemon ends: what waits in the pool is removed. Slots of instances stay, with all that
    /// they need of the host.
    pub async fn close(&self) {
        either!(self, it => it.close().await);
    }
}
