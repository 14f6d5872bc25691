//! Slots on this host: made ahead in a pool, taken by instances, found again after a restart.
//!
//! What talks to the kernel runs to its end, whether the caller still waits or not: on a thread that may
//! block, if it takes more than a few calls.

mod pool;

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use hearth_model::error::chain;
use hearth_model::{InstanceId, InstanceName};
use rustix::thread::CapabilitySet;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use pool::{refill, remove_later};

use crate::dns::{Directory, Forwarder, Served};
use crate::fault::{During, Impossible, NetError};
use crate::host::{self, Admitting};
use crate::lease::{Leases, host_address};
use crate::netlink::Rtnl;
use crate::netns;
use crate::nft::Nft;
use crate::publish::{self, PublishError, Published};
use crate::ruleset::{self, PublishedPort};
use crate::slot::{self, Ground, Slot, Turns};
use crate::spec::{Made, NetConfig, NetSeat, SweptSlots, Taken, Usage, Wish};
use crate::steps::Steps;
use crate::tag::Tag;

/// Slots on this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: NetConfig,
    ground: Arc<Ground>,
    state: Mutex<State>,
    names: Directory,
    forwarder: Forwarder,
    swept: SweptSlots,
    /// What is made and removed in the background.
    background: TaskTracker,
    /// An instance is not on its way any more.
    calmer: Notify,
    /// Sees to it that other people's rules let instances through.
    admitting: Mutex<Option<Admitting>>,
    /// Held as long as this is: no other process uses the same names, or the same range.
    _locks: [UnixDatagram; 2],
}

#[derive(Debug)]
struct State {
    leases: Leases,
    instances: HashMap<InstanceId, Instance>,
    pool: VecDeque<Slot>,
    /// Of the pool's.
    being_made: usize,
    /// When an instance's way was last gone, from taking a slot to opening its gate.
    busy: Instant,
    /// Released, and still there.
    leaving: Vec<Arc<Slot>>,
    next: u32,
    closed: bool,
}

/// An instance's part.
#[derive(Debug)]
struct Instance {
    address: Ipv4Addr,
    name: InstanceName,
    ports: Vec<PublishedPort>,
    /// `None` while it is being taken.
    moved: Option<Moved>,
    /// Its gate is going to be opened soon.
    on_its_way: bool,
}

/// Into its slot.
#[derive(Debug)]
struct Moved {
    slot: Arc<Slot>,
    /// What answers its questions for names.
    _served: Served,
    /// Of its published ports.
    listeners: Vec<Published>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Taken,
    Adopted,
}

impl Slots {
    pub(crate) fn possible() -> Result<(), Impossible> {
        let has = rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
        let needed = [(CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"), (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN")];
        let missing: Vec<_> = needed.iter().filter(|(one, _)| !has.contains(*one)).map(|(_, name)| *name).collect();
        if !missing.is_empty() {
            return Err(Impossible::Unprivileged { missing });
        }
        if !std::path::Path::new(netns::TUN).exists() {
            return Err(Impossible::NoKernelSupport { what: "tun" });
        }
        Nft::load().map(drop)
    }

    pub(crate) fn look(config: &NetConfig) -> Result<Vec<String>, NetError> {
        Self::possible().map_err(NetError::Impossible)?;
        host::look(config, Tag::of(&config.data_dir), Nft::load().map_err(NetError::Impossible)?)
    }

    pub(crate) async fn open(config: NetConfig, owned: &[NetSeat]) -> Result<Self, NetError> {
        let owned = owned.to_vec();
        let opened = blocking(move || open(config, &owned)).await?;
        refill(&opened.0);
        Ok(opened)
    }

    pub(crate) fn lease(&self) -> Result<Ipv4Addr, NetError> {
        self.0.lock().leases.lease(Instant::now())
    }

    pub(crate) fn hold(&self, address: Ipv4Addr) {
        self.0.lock().leases.hold(address);
    }

    pub(crate) fn give_back(&self, address: Ipv4Addr) {
        self.0.lock().leases.give_back(address, Instant::now());
    }

    pub(crate) async fn take(&self, wish: &Wish) -> Result<Taken, NetError> {
        let waiting = {
            let mut state = self.0.lock();
            state.reserve(wish)?;
            state.pool.pop_front()
        };
        let taken = match waiting {
            // Three calls to the kernel: handing them to another thread and back would take longer.
            Some(slot) if wish.network.ports.is_empty() => take(&self.0, wish, Some(slot)),
            waiting => {
                let (inner, wish) = (Arc::clone(&self.0), wish.clone());
                blocking(move || take(&inner, &wish, waiting)).await
            }
        };
        self.0.calmer.notify_waiters();
        refill(&self.0);
        taken
    }

    pub(crate) async fn unlock(&self, id: &InstanceId) -> Result<(), NetError> {
        self.set_open("unlock", id, true).await
    }

    pub(crate) async fn shut(&self, id: &InstanceId) -> Result<(), NetError> {
        self.set_open("shut", id, false).await
    }

    async fn set_open(&self, action: &'static str, id: &InstanceId, open: bool) -> Result<(), NetError> {
        let slot = self.0.slot(id).ok_or_else(|| NetError::NoSlot { action, id: id.clone() })?;
        // One call, as for taking.
        let done = slot.set_open(open);
        let mut state = self.0.lock();
        state.busy = Instant::now();
        if let Some(instance) = state.instances.get_mut(id) {
            instance.on_its_way = false;
            if open && done.is_ok() {
                self.0.names.insert(&instance.name, instance.address);
            }
        }
        self.0.calmer.notify_waiters();
        done
    }

    pub(crate) async fn release(&self, id: &InstanceId) -> Result<(), NetError> {
        let (inner, id) = (Arc::clone(&self.0), id.clone());
        let released = blocking(move || release(&inner, &id)).await;
        self.0.calmer.notify_waiters();
        released
    }

    pub(crate) async fn adopt(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        let (inner, wish, seat) = (Arc::clone(&self.0), wish.clone(), seat.clone());
        blocking(move || adopt(&inner, &wish, &seat)).await
    }

    pub(crate) async fn discard(&self, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
        let (inner, wish, seat) = (Arc::clone(&self.0), wish.clone(), seat.clone());
        blocking(move || discard(&inner, &wish, &seat)).await
    }

    pub(crate) fn swept(&self) -> SweptSlots {
        self.0.swept.clone()
    }

    pub(crate) fn usage(&self, id: &InstanceId) -> Option<Usage> {
        self.0.slot(id)?.usage()
    }

    pub(crate) async fn close(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.closed = true;
            std::mem::take(&mut state.pool)
        };
        self.0.calmer.notify_waiters();
        remove_later(&self.0, waiting.into_iter().map(Arc::new));
        self.0.background.close();
        self.0.background.wait().await;
        let admitting = self.0.admitting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(admitting) = admitting {
            admitting.end().await;
        }
        if !self.0.lock().instances.is_empty() {
            return;
        }
        let inner = Arc::clone(&self.0);
        let restored = blocking(move || host::restore(inner.config.cidr, &inner.ground)).await;
        if let Err(error) = restored {
            let error = chain(&error);
            tracing::warn!(error, "the network's rules could not be removed from the host");
        }
    }

    /// How many slots wait in the pool.
    #[cfg(feature = "fake")]
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.lock().pool.len()
    }

    /// What the names of its namespaces begin with.
    #[must_use]
    pub fn namespaces(&self) -> String {
        self.0.ground.tag.namespaces()
    }

    /// How many calls were made that make and take slots.
    #[cfg(feature = "fake")]
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.0.ground.steps.calls()
    }

    /// Lets the nth of them from now fail, counted from 0; `None` lets all succeed.
    #[cfg(feature = "fake")]
    pub fn fail(&self, nth: Option<(u32, crate::fake::When)>) {
        self.0.ground.steps.fail(nth);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: &InstanceId) -> Option<Arc<Slot>> {
        Some(Arc::clone(&self.lock().instances.get(id)?.moved.as_ref()?.slot))
    }

    /// What an instance publishes, if anything.
    fn ports(&self, id: &InstanceId) -> Option<Vec<PublishedPort>> {
        self.lock().instances.get(id).map(|instance| instance.ports.clone()).filter(|ports| !ports.is_empty())
    }
}

impl State {
    fn number(&mut self) -> u32 {
        let number = self.next;
        // Nine digits are what a link's name has room for.
        self.next = (number + 1) % 1_000_000_000;
        number
    }

    /// Lets nobody else have the instance's place or its address.
    fn reserve(&mut self, wish: &Wish) -> Result<(), NetError> {
        self.leases.check(wish.address)?;
        if self.instances.contains_key(&wish.id) {
            return Err(NetError::AlreadyTaken { id: wish.id.clone() });
        }
        if let Some((holder, _)) = self.instances.iter().find(|(_, instance)| instance.address == wish.address) {
            return Err(NetError::AddressTaken { address: wish.address, holder: Some(holder.clone()) });
        }
        for port in &wish.network.ports {
            let has = |one: &&Instance| one.ports.iter().any(|p| (p.protocol, p.host) == (port.protocol, port.host));
            if let Some(holder) = self.instances.values().find(has).map(|one| format!("instance {}", one.name)) {
                let (protocol, port) = (port.protocol, port.host);
                return Err(NetError::Publish(PublishError::Taken { protocol, port, holder: Some(holder) }));
            }
        }
        let instance = Instance {
            address: wish.address,
            name: wish.name.clone(),
            ports: ports(wish, wish.address),
            moved: None,
            on_its_way: true,
        };
        self.instances.insert(wish.id.clone(), instance);
        Ok(())
    }

    /// Fills the place that was reserved for an instance, or lets it go.
    fn settle(&mut self, id: &InstanceId, moved: Result<Moved, NetError>) -> Result<Arc<Slot>, NetError> {
        let moved = moved.inspect_err(|_| drop(self.instances.remove(id)))?;
        let slot = Arc::clone(&moved.slot);
        self.instances.get_mut(id).expect("reserved before, and only then removed").moved = Some(moved);
        Ok(slot)
    }
}

/// What an instance wishes to publish, with this address.
fn ports(wish: &Wish, outer: Ipv4Addr) -> Vec<PublishedPort> {
    let ports = wish.network.ports.iter();
    ports.map(|port| PublishedPort { protocol: port.protocol, host: port.host, outer, guest: port.guest }).collect()
}

/// Runs what may block to its end.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(NetError::Ending),
        },
    }
}

fn open(config: NetConfig, owned: &[NetSeat]) -> Result<Slots, NetError> {
    Slots::possible().map_err(NetError::Impossible)?;
    let nft = Nft::load().map_err(NetError::Impossible)?;
    let tag = Tag::of(&config.data_dir);
    // A daemon that begins anew does not know which addresses rest: it begins at another one.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let leases = Leases::new(config.cidr, config.reuse_after, now.subsec_nanos())?;
    let names_lock = lock(&tag.to_string(), || NetError::TagTaken { tag: tag.to_string() })?;
    let cidr = config.cidr.trunc();
    let of_another = || NetError::RangeClash { cidr, with: "another daemon that uses it".into() };
    let range_lock = lock(&cidr.to_string(), of_another)?;
    let ground = Ground {
        tag,
        host: netns::current().during("open", || "the host's network namespace".into())?,
        gateway: host_address(config.cidr),
        outside: Rtnl::open().during("open", || "an rtnetlink socket".into())?,
        nft,
        steps: Steps::default(),
        making: Turns::default(),
    };
    let (next, swept) = host::prepare(&config, &ground, owned)?;
    let admitting = host::admit(&config, &ground);
    let names = Directory::new(config.cidr);
    let forwarder = Forwarder::new(config.dns.clone(), names.clone());
    let state = State {
        leases,
        instances: HashMap::new(),
        pool: VecDeque::new(),
        leaving: Vec::new(),
        being_made: 0,
        busy: Instant::now(),
        next,
        closed: false,
    };
    Ok(Slots(Arc::new(Inner {
        config,
        ground: Arc::new(ground),
        state: Mutex::new(state),
        names,
        forwarder,
        swept,
        background: TaskTracker::new(),
        calmer: Notify::new(),
        admitting: Mutex::new(admitting),
        _locks: [names_lock, range_lock],
    })))
}

/// A socket's name of the abstract kind goes with the process, and belongs to the network namespace,
/// as all that it stands for does.
fn lock(what: &str, taken: impl FnOnce() -> NetError) -> Result<UnixDatagram, NetError> {
    let bound =
        SocketAddr::from_abstract_name(format!("hearth-net-{what}")).and_then(|name| UnixDatagram::bind_addr(&name));
    bound.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => taken(),
        _ => NetError::Host { action: "lock", object: format!("{what} for this daemon"), source },
    })
}

/// Gives an instance, whose place is reserved, the slot that was waiting for one, or a new one.
fn take(inner: &Arc<Inner>, wish: &Wish, waiting: Option<Slot>) -> Result<Taken, NetError> {
    let ahead = waiting.and_then(|slot| {
        let dressed = dress(inner, wish, slot);
        // Somebody has been at it while it waited.
        dressed.inspect_err(|error| tracing::warn!(error = chain(error), "a slot of the pool is broken")).ok()
    });
    let made = if ahead.is_some() { Made::Ahead } else { Made::Inline };
    let dressed = ahead.map_or_else(
        || {
            let number = inner.lock().number();
            Slot::make(&inner.ground, number).and_then(|slot| dress(inner, wish, slot))
        },
        Ok,
    );
    let taken = dressed.and_then(|slot| {
        let number = slot.number;
        move_in(inner, wish, slot, When::Taken).inspect_err(|_| slot::remove_or_say(&inner.ground, &[number]))
    });
    let mut state = inner.lock();
    let slot = state.settle(&wish.id, taken)?;
    Ok(Taken { seat: NetSeat { slot: slot.number, address: wish.address }, netns: Arc::clone(&slot.netns), made })
}

/// Gives a slot what the instance wishes for. If that fails, the slot is gone.
fn dress(inner: &Inner, wish: &Wish, slot: Slot) -> Result<Slot, NetError> {
    let number = slot.number;
    let dressed = slot.dress(&inner.ground, wish.address, &wish.network).map(|()| slot);
    dressed.inspect_err(|_| slot::remove_or_say(&inner.ground, &[number]))
}

/// What a slot's instance needs of the daemon: answers to its questions, and its published ports.
fn move_in(inner: &Inner, wish: &Wish, slot: Slot, when: When) -> Result<Moved, NetError> {
    let served = inner.ground.steps.run(|| {
        let served = slot.serve_names(&inner.forwarder, &wish.network.egress);
        served.during("answer at", || format!("port 53 of slot {}", slot.number))
    })?;
    let listeners = publish(inner, wish, when)?;
    Ok(Moved { slot: Arc::new(slot), _served: served, listeners })
}

fn release(inner: &Arc<Inner>, id: &InstanceId) -> Result<(), NetError> {
    let Some((address, slot)) = inner.lock().instances.get(id).and_then(|instance| {
        let moved = instance.moved.as_ref()?;
        Some((instance.address, Arc::clone(&moved.slot)))
    }) else {
        return Ok(());
    };
    slot.cut_off(&inner.ground, address)?;
    unpublish(inner, id)?;
    let released = inner.lock().instances.remove(id);
    if let Some(Instance { name, moved: Some(moved), .. }) = released {
        inner.names.remove(&name, address);
        close(moved.listeners);
    }
    // Whoever asks for its usage right now lets go of it soon.
    remove_later(inner, [slot]);
    Ok(())
}

fn adopt(inner: &Arc<Inner>, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
    let wish = Wish { address: seat.address, ..wish.clone() };
    {
        let mut state = inner.lock();
        let has = |one: &Instance| one.moved.as_ref().is_some_and(|moved| moved.slot.number == seat.slot);
        // An earlier try has come so far, or this daemon gave it that slot itself.
        if state.instances.get(&wish.id).is_some_and(has) {
            return Ok(());
        }
        state.leases.hold(wish.address);
        state.reserve(&wish)?;
    }
    let found = Slot::find(&inner.ground, seat.slot).and_then(|slot| {
        slot.redress(&inner.ground, wish.address)?;
        move_in(inner, &wish, slot, When::Adopted)
    });
    let mut state = inner.lock();
    state.settle(&wish.id, found)?;
    let instance = state.instances.get_mut(&wish.id).expect("settled just now");
    instance.on_its_way = false;
    inner.names.insert(&wish.name, wish.address);
    Ok(())
}

/// Removes a slot that cannot be found again, by its number.
fn discard(inner: &Inner, wish: &Wish, seat: &NetSeat) -> Result<(), NetError> {
    let closed = close_to_the_world(inner, &ports(wish, seat.address));
    let left = slot::remove(&inner.ground, &[seat.slot]);
    left.into_iter().next().map_or(closed, |(_, error)| Err(error))
}

/// Opens the instance's published ports; all of them or none.
fn publish(inner: &Inner, wish: &Wish, when: When) -> Result<Vec<Published>, NetError> {
    let Some(ports) = inner.ports(&wish.id) else { return Ok(Vec::new()) };
    let (tag, steps) = (inner.ground.tag.to_string(), &inner.ground.steps);
    let mut listeners = Vec::new();
    let published = ports.iter().try_for_each(|port| {
        let guest = SocketAddrV4::new(port.outer, port.guest);
        // First, because it finds out who else has the port.
        let listener = steps.run(|| {
            let listening = publish::publish(port.protocol, port.host, guest);
            Handle::current().block_on(listening).map_err(NetError::Publish)
        });
        match listener {
            Ok(listener) => listeners.push(listener),
            // The instance runs, and its port leads to it from everywhere else.
            Err(error) if when == When::Adopted => {
                tracing::warn!(instance = %wish.id, error = chain(&error), "a published port does not answer on loopback");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    });
    let published = published.and_then(|()| {
        steps.run(|| {
            let added = inner.ground.nft.run(&ruleset::publish(&tag, &ports)).map(drop);
            added.map_err(|source| NetError::Rules { of: ruleset::host_table(&tag), source })
        })
    });
    match published {
        Ok(()) => Ok(listeners),
        Err(error) => {
            close(listeners);
            unpublish(inner, &wish.id)?;
            Err(error)
        }
    }
}

fn close(listeners: Vec<Published>) {
    for listener in listeners {
        Handle::current().block_on(listener.close());
    }
}

/// Closes an instance's published ports.
fn unpublish(inner: &Inner, id: &InstanceId) -> Result<(), NetError> {
    close_to_the_world(inner, &inner.ports(id).unwrap_or_default())
}

/// Those that are not open are fine.
fn close_to_the_world(inner: &Inner, ports: &[PublishedPort]) -> Result<(), NetError> {
    let tag = inner.ground.tag.to_string();
    ports.iter().try_for_each(|port| {
        match inner.ground.nft.run(&ruleset::unpublish(&tag, port)) {
            Ok(_) => Ok(()),
            // It leads to another instance: this one's is not there.
            Err(error) if error.is_taken() => Ok(()),
            Err(source) => Err(NetError::Rules { of: ruleset::host_table(&tag), source }),
        }
    })
}
