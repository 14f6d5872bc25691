//! A network in memory: the same leases, refusals and gates, without a packet. For tests of whoever
//! uses this crate.
//!
//! A [`FakeNetwork`] stands for the host, and outlives the "daemon" of a test: after
//! [`FakeNetwork::reopen`] the slots of records are there and wait to be adopted, as after
//! [`crate::Network::open`]. It can be asked what is taken, open and leased, and can fail the nth
//! call before or after its effect.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hearth_model::InstanceId;
use ipnet::Ipv4Net;

use crate::fault::NetError;
use crate::lease::Leases;
use crate::publish::PublishError;
use crate::spec::{Made, NetConfig, NetSeat, SweptSlots, Taken, Usage, Wish};

/// Where a call is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing has happened.
    Before,
    /// It has happened, and the answer is an error all the same.
    After,
}

/// A network without packets. A clone is the same one.
#[derive(Debug, Clone)]
pub struct FakeNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    cidr: Ipv4Net,
    reuse_after: Duration,
    leases: Leases,
    slots: BTreeMap<u32, Slot>,
    made: u32,
    swept: SweptSlots,
    dry: bool,
    calls: u32,
    fail: Option<(u32, When)>,
}

#[derive(Debug)]
struct Slot {
    address: Ipv4Addr,
    open: bool,
    /// `None` until the daemon that was started again has adopted it.
    holder: Option<Wish>,
    usage: Usage,
}

impl FakeNetwork {
    /// One with the configuration's range, and nothing in it.
    ///
    /// # Panics
    /// The range has no room.
    #[must_use]
    pub fn new(config: &NetConfig) -> Self {
        let leases = Leases::new(config.cidr, config.reuse_after, 0).expect("a range with room");
        let state = State {
            cidr: config.cidr,
            reuse_after: config.reuse_after,
            leases,
            slots: BTreeMap::new(),
            made: 0,
            swept: SweptSlots::default(),
            dry: false,
            calls: 0,
            fail: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The daemon has died, and another opens the network: it knows no leases and no instances; of
    /// the slots those are left that records own.
    ///
    /// # Panics
    /// Never: the range had room before.
    pub fn reopen(&self, owned: &[NetSeat]) {
        let mut state = self.lock();
        state.leases = Leases::new(state.cidr, state.reuse_after, 0).expect("a range with room");
        let before = state.slots.len();
        state.slots.retain(|number, slot| owned.iter().any(|o| o.slot == *number && o.address == slot.address));
        state.swept = SweptSlots { removed: before - state.slots.len(), failed: Vec::new() };
        for slot in state.slots.values_mut() {
            slot.holder = None;
        }
    }

    /// The slots that exist, by seat, with their instance unless nobody has adopted it yet.
    #[must_use]
    pub fn taken(&self) -> Vec<(NetSeat, Option<InstanceId>)> {
        let state = self.lock();
        let taken = state.slots.iter().map(|(number, slot)| {
            let seat = NetSeat { slot: *number, address: slot.address };
            (seat, slot.holder.as_ref().map(|wish| wish.id.clone()))
        });
        taken.collect()
    }

    /// The addresses of slots whose gate is open.
    #[must_use]
    pub fn open(&self) -> Vec<Ipv4Addr> {
        self.lock().slots.values().filter(|slot| slot.open).map(|slot| slot.address).collect()
    }

    /// The leased addresses.
    #[must_use]
    pub fn leased(&self) -> Vec<Ipv4Addr> {
        self.lock().leases.leased()
    }

    /// What the instance's slot was taken for.
    #[must_use]
    pub fn wish(&self, id: &InstanceId) -> Option<Wish> {
        self.lock().slots.values().filter_map(|slot| slot.holder.as_ref()).find(|wish| wish.id == *id).cloned()
    }

    /// Whether the pool is dry from now on.
    pub fn set_dry(&self, dry: bool) {
        self.lock().dry = dry;
    }

    /// The slot of the instance is gone, as after a reboot of the host.
    pub fn lose(&self, id: &InstanceId) {
        let mut state = self.lock();
        if let Some(number) = state.number(id) {
            state.slots.remove(&number);
        }
    }

    /// What [`crate::Network::usage`] says of the instance from now on.
    pub fn set_usage(&self, id: &InstanceId, usage: Usage) {
        if let Some(slot) = self.lock().slot(id) {
            slot.usage = usage;
        }
    }

    /// How many calls were made that can fail.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.lock().calls
    }

    /// Lets the nth call from now fail, counted from 0; `None` lets all succeed.
    pub fn fail(&self, nth: Option<(u32, When)>) {
        let mut state = self.lock();
        state.fail = nth.map(|(nth, when)| (state.calls + nth, when));
    }

    pub(crate) fn namespaces(&self) -> String {
        "hearth-fake-".into()
    }

    pub(crate) fn lease(&self) -> Result<Ipv4Addr, NetError> {
        self.call(|state| state.leases.lease(Instant::now()))
    }

    pub(crate) fn hold(&self, address: Ipv4Addr) {
        self.lock().leases.hold(address);
    }

    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        self.lock().leases.give_back(address, Instant::now());
    }

    pub(crate) async fn take(&self, wish: &Wish) -> Result<Taken, NetError> {
        let netns = namespace()?;
        self.call(|state| {
            state.leases.check(wish.address)?;
            if state.number(&wish.id).is_some() {
                return Err(NetError::AlreadyTaken { id: wish.id.clone() });
            }
            if let Some(slot) = state.slots.values().find(|slot| slot.address == wish.address) {
                let holder = slot.holder.as_ref().map(|wish| wish.id.clone());
                return Err(NetError::AddressTaken { address: wish.address, holder });
            }
            for port in &wish.network.ports {
                let has =
                    |one: &&Wish| one.network.ports.iter().any(|p| (p.protocol, p.host) == (port.protocol, port.host));
                if let Some(one) = state.slots.values().filter_map(|slot| slot.holder.as_ref()).find(has) {
                    let holder = Some(format!("instance {}", one.name));
                    let (protocol, port) = (port.protocol, port.host);
                    return Err(NetError::Publish(PublishError::Taken { protocol, port, holder }));
                }
            }
            let number = state.made;
            state.made += 1;
            let slot = Slot { address: wish.address, open: false, holder: Some(wish.clone()), usage: Usage::default() };
            state.slots.insert(number, slot);
            let seat = NetSeat { slot: number, address: wish.address };
            Ok(Taken { seat, netns, made: if state.dry { Made::Inline } else { Made::Ahead } })
        })
        .inspect_err(|error| {
            // A slot that could not be taken is taken back.
            if matches!(error, NetError::Demanded) {
                self.lose(&wish.id);
            }
        })
    }

    pub(crate) async fn unlock(&self, id: &InstanceId) -> Result<(), NetError> {
        self.set_open("unlock", id, true)
    }

    pub(crate) async fn shut(&self, id: &InstanceId) -> Result<(), NetError> {
        self.set_open("shut", id, false)
    }

    pub(crate) async fn release(&self, id: &InstanceId) -> Result<(), NetError> {
        self.call(|state| {
            if let Some(number) = state.number(id) {
                state.slots.remove(&number);
            }
            Ok(())
        })
    }

    pub(crate) async fn adopt(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        self.call(|state| {
            let found = state.slots.get_mut(&seat.slot).filter(|slot| slot.address == seat.address);
            let gone = || NetError::Gone { slot: seat.slot, missing: "its namespace".into() };
            found.ok_or_else(gone)?.holder = Some(wish.clone());
            state.leases.hold(seat.address);
            Ok(())
        })
    }

    pub(crate) async fn discard(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        self.call(|state| {
            let is_its = |slot: &Slot| slot.holder.as_ref().is_none_or(|holder| holder.id == wish.id);
            if state.slots.get(&seat.slot).is_some_and(is_its) {
                state.slots.remove(&seat.slot);
            }
            Ok(())
        })
    }

    pub(crate) fn swept(&self) -> SweptSlots {
        self.lock().swept.clone()
    }

    pub(crate) fn usage(&self, id: &InstanceId) -> Option<Usage> {
        self.lock().slot(id).map(|slot| slot.usage)
    }

    pub(crate) async fn close(&self) {}

    fn set_open(&self, action: &'static str, id: &InstanceId, open: bool) -> Result<(), NetError> {
        self.call(|state| {
            let slot = state.slot(id).ok_or_else(|| NetError::NoSlot { action, id: id.clone() })?;
            slot.open = open;
            Ok(())
        })
    }

    /// Counts a call, and lets it fail if it is the one.
    fn call<T>(&self, effect: impl FnOnce(&mut State) -> Result<T, NetError>) -> Result<T, NetError> {
        let mut state = self.lock();
        let this = state.calls;
        state.calls += 1;
        match state.fail.filter(|(nth, _)| *nth == this).map(|(_, when)| when) {
            None => effect(&mut state),
            Some(When::Before) => Err(NetError::Demanded),
            Some(When::After) => effect(&mut state).and(Err(NetError::Demanded)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&self, id: &InstanceId) -> Option<u32> {
        let is_its = |slot: &Slot| slot.holder.as_ref().is_some_and(|wish| wish.id == *id);
        self.slots.iter().find(|(_, slot)| is_its(slot)).map(|(number, _)| *number)
    }

    fn slot(&mut self, id: &InstanceId) -> Option<&mut Slot> {
        let number = self.number(id)?;
        self.slots.get_mut(&number)
    }
}

/// The namespace that this process is in already.
fn namespace() -> Result<Arc<OwnedFd>, NetError> {
    let path = "/proc/self/ns/net";
    let file = File::open(path).map_err(|source| NetError::Host { action: "open", object: path.into(), source })?;
    Ok(Arc::new(file.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Network;

    fn network() -> (FakeNetwork, Network) {
        let fake = FakeNetwork::new(&NetConfig::new("/data".into()));
        (fake.clone(), Network::Fake(fake))
    }

    fn wish(network: &Network, name: &str) -> Wish {
        let mut entropy = [0; 16];
        entropy[..name.len()].copy_from_slice(name.as_bytes());
        Wish {
            id: InstanceId::from_entropy(entropy),
            name: name.parse().expect("a name"),
            address: network.lease().expect("an address"),
            network: hearth_model::Network::default(),
        }
    }

    #[tokio::test]
    async fn a_slot_is_closed_until_it_is_opened_and_gone_when_it_is_released() {
        let (fake, network) = network();
        let wish = wish(&network, "web");
        let taken = network.take(&wish).await.expect("taken");
        assert_eq!((taken.made, taken.seat.address), (Made::Ahead, wish.address));
        assert_eq!(fake.open(), [] as [Ipv4Addr; 0]);
        network.unlock(&wish.id).await.expect("opened");
        assert_eq!(fake.open(), [wish.address]);
        network.shut(&wish.id).await.expect("closed");
        assert_eq!(fake.open(), [] as [Ipv4Addr; 0]);
        assert_eq!(network.usage(&wish.id), Some(Usage::default()));
        for _ in 0..2 {
            network.release(&wish.id).await.expect("released, or nothing to do");
            assert_eq!((fake.taken(), network.usage(&wish.id)), (Vec::new(), None));
        }
        assert_eq!(fake.leased(), [wish.address]);
        network.give_back(wish.address);
        assert_eq!(fake.leased(), [] as [Ipv4Addr; 0]);
        assert!(matches!(network.unlock(&wish.id).await, Err(NetError::NoSlot { .. })));
    }

    #[tokio::test]
    async fn no_two_instances_have_one_address_and_none_has_two_slots() {
        let (fake, network) = network();
        let mut first = wish(&network, "a");
        first.network.ports = vec!["8080:80".parse().expect("a port")];
        let second = Wish { address: first.address, ..wish(&network, "b") };
        network.take(&first).await.expect("taken");
        assert!(matches!(network.take(&first).await, Err(NetError::AlreadyTaken { .. })));
        assert!(matches!(network.take(&second).await, Err(NetError::AddressTaken { .. })));
        let third = Wish { network: first.network.clone(), ..wish(&network, "c") };
        let error = network.take(&third).await.expect_err("its port is taken");
        assert_eq!(error.to_string(), "publish port 8080/tcp: instance a has it");
        network.release(&first.id).await.expect("released");
        network.give_back(first.address);
        assert!(matches!(network.take(&second).await, Err(NetError::NotLeased { .. })));
        assert_eq!(fake.taken(), []);
    }

    #[tokio::test]
    async fn a_daemon_that_comes_back_finds_what_records_own_and_nothing_else() {
        let (fake, network) = network();
        let (kept, lost) = (wish(&network, "kept"), wish(&network, "lost"));
        let seat = network.take(&kept).await.expect("taken").seat;
        let orphan = network.take(&lost).await.expect("taken").seat;
        network.unlock(&kept.id).await.expect("opened");
        fake.reopen(std::slice::from_ref(&seat));
        assert_eq!(fake.taken(), [(seat.clone(), None)]);
        assert_eq!(fake.leased(), [] as [Ipv4Addr; 0]);
        network.adopt(&kept, &seat).await.expect("adopted");
        assert!(matches!(network.adopt(&lost, &orphan).await, Err(NetError::Gone { .. })));
        assert_eq!((fake.taken(), fake.open()), (vec![(seat, Some(kept.id.clone()))], vec![kept.address]));
        assert_eq!(fake.leased(), [kept.address]);
        assert_ne!(network.lease().expect("another"), kept.address);
    }

    #[tokio::test]
    async fn a_take_that_fails_leaves_nothing() {
        let (fake, network) = network();
        let wish = wish(&network, "web");
        for when in [When::Before, When::After] {
            fake.fail(Some((0, when)));
            assert!(matches!(network.take(&wish).await, Err(NetError::Demanded)));
            assert_eq!(fake.taken(), []);
        }
        fake.fail(None);
        fake.set_dry(true);
        assert_eq!(network.take(&wish).await.expect("taken").made, Made::Inline);
    }
}
