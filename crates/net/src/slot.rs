//! One slot: how it is made, taken, opened, shut and removed.
//!
//! ```text
//!  guest 10.0.2.15 ── tap hearth0 (10.0.2.2, 10.0.2.3) [namespace hearth-<tag>-<n>] up0 ── hv<tag><n> (the range's first address) host
//! ```
//!
//! A slot knows no outer address until it is taken, and has its gate closed: the tap is down, so
//! nothing of the guest gets out and nothing in. Everything has a name that follows from the slot's
//! number, so whatever was made can be removed without knowing how far it came.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use hearth_model::Network;
use hearth_model::network::{Destination, Egress, inner};
use ipnet::Ipv4Net;

use crate::bandwidth::token_bucket;
use crate::dns::{Forwarder, Policy, Served, Sockets};
use crate::fault::{During, NetError};
use crate::netlink::{Link, Rtnl};
use crate::netns;
use crate::nft::{Nft, Session};
use crate::ruleset;
use crate::spec::Usage;
use crate::steps::Steps;
use crate::tag::Tag;

/// The device that leads to the host, in every slot.
const UP: &str = "up0";
const DNS_PORT: u16 = 53;
/// The tap's own address, the same in every slot: a guest that was saved in one and wakes up in
/// another sends to the gateway whose address it learned in the first. It is QEMU's for it.
const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// What slots have in common.
#[derive(Debug)]
pub(crate) struct Ground {
    pub tag: Tag,
    /// The host's namespace: the one that the daemon runs in.
    pub host: OwnedFd,
    /// The host's address towards its guests.
    pub gateway: Ipv4Addr,
    /// To the host's tables, for what is short.
    pub outside: Rtnl,
    pub nft: Nft,
    pub steps: Steps,
    pub making: Turns,
}

/// How many slots are made at once. More only wait for one another in the kernel: of fifty that were
/// wanted at once, the last was there after two thirds of the time that it took without turns.
pub(crate) const MADE_AT_ONCE: usize = 2;

/// Who makes a slot, and who waits.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<usize>,
    free: Condvar,
}

impl Turns {
    fn wait(&self) -> Turn<'_> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.free.wait_while(taken, |taken| *taken >= MADE_AT_ONCE);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }
}

struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.free.notify_one();
    }
}

/// A slot that is there.
#[derive(Debug)]
pub(crate) struct Slot {
    pub number: u32,
    pub netns: Arc<OwnedFd>,
    /// In the slot's namespace.
    inside: Rtnl,
    /// The devices' numbers.
    tap: u32,
    up: u32,
    host_link: u32,
    /// Of its namespace's rules.
    rules: Arc<Mutex<Session>>,
    /// The guest's name server, until somebody serves it.
    name_server: Mutex<Option<Sockets>>,
}

impl Slot {
    /// Makes one. If that fails, nothing of it is left.
    pub(crate) fn make(ground: &Arc<Ground>, number: u32) -> Result<Self, NetError> {
        let name = ground.tag.namespace(number);
        let there = Arc::clone(ground);
        let _turn = ground.making.wait();
        let made = netns::in_thread(&name, move || make(&there, number)).during("make", || name.clone());
        made.flatten().inspect_err(|_| remove_or_say(ground, &[number]))
    }

    /// Finds one again that an earlier daemon made.
    pub(crate) fn find(ground: &Arc<Ground>, number: u32) -> Result<Self, NetError> {
        let name = ground.tag.namespace(number);
        let there = Arc::clone(ground);
        netns::in_thread(&name, move || find(&there, number)).during("look into", || name.clone()).flatten()
    }

    /// Gives it an outer address, and what else an instance wishes for. The gate stays closed.
    pub(crate) fn dress(&self, ground: &Ground, address: Ipv4Addr, wish: &Network) -> Result<(), NetError> {
        let steps = &ground.steps;
        let name = || ground.tag.namespace(self.number);
        steps.run(|| {
            let added = self.inside.add_address(self.up, address, 32);
            added.during("add the address", || format!("{address} in {}", name()))
        })?;
        steps.run(|| {
            let added = ground.outside.add_host_route(address, self.host_link, ground.gateway);
            added.during("add a route to", || format!("{address} by {}", ground.tag.link(self.number)))
        })?;
        for (link, device, speed) in [(self.tap, inner::TAP, wish.download), (self.up, UP, wish.upload)] {
            if let Some(speed) = speed {
                steps.run(|| {
                    let set = self.inside.set_qdisc(link, token_bucket(speed));
                    set.during("limit the speed of", || format!("{device} in {}", name()))
                })?;
            }
        }
        // Open is how a slot is made.
        if wish.egress != Egress::Open {
            let text = ruleset::egress(&wish.egress);
            steps.run(|| {
                let mut session = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
                session.run(&text).map(drop).map_err(|source| NetError::Rules { of: name(), source })
            })?;
        }
        Ok(())
    }

    /// Sees to it that an address that it was given earlier is there, and leads to it.
    pub(crate) fn redress(&self, ground: &Ground, address: Ipv4Addr) -> Result<(), NetError> {
        let there = |result: io::Result<()>| {
            result.or_else(|error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) })
        };
        let added = there(self.inside.add_address(self.up, address, 32));
        added.during("add the address", || format!("{address} in {}", ground.tag.namespace(self.number)))?;
        let added = there(ground.outside.add_host_route(address, self.host_link, ground.gateway));
        added.during("add a route to", || format!("{address} by {}", ground.tag.link(self.number)))
    }

    pub(crate) fn set_open(&self, open: bool) -> Result<(), NetError> {
        let action = if open { "open" } else { "shut" };
        self.inside.set_up(self.tap, open).during(action, || format!("{} of slot {}", inner::TAP, self.number))
    }

    /// Nothing reaches it any more.
    pub(crate) fn cut_off(&self, ground: &Ground, address: Ipv4Addr) -> Result<(), NetError> {
        self.set_open(false)?;
        let removed = ground.outside.remove_host_route(address, self.host_link);
        removed.during("remove the route to", || address.to_string())
    }

    /// Answers the guest's questions from now on, until the answer is dropped. Only once.
    pub(crate) fn serve_names(&self, forwarder: &Forwarder, egress: &Egress) -> io::Result<Served> {
        let policy = match egress {
            Egress::Open => Policy::Open,
            Egress::None => Policy::None,
            Egress::Only(destinations) => {
                let names = destinations.iter().filter_map(|destination| match destination {
                    Destination::Net(_) => None,
                    Destination::Name(name) => Some(name.clone()),
                });
                let rules = Arc::clone(&self.rules);
                let admit = move |addresses: &[(Ipv4Addr, Duration)]| {
                    let mut session = rules.lock().unwrap_or_else(PoisonError::into_inner);
                    session.run(&ruleset::admit(addresses)).map(drop)
                };
                Policy::only(names.collect(), Arc::new(admit))
            }
        };
        let sockets = self.name_server.lock().unwrap_or_else(PoisonError::into_inner).take();
        forwarder.serve(sockets.ok_or(io::ErrorKind::AlreadyExists)?, policy)
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        // The device's receiver is the host: what it received, the guest sent.
        let seen = self.inside.statistics(self.tap).ok()?;
        Some(Usage {
            rx_bytes: seen.tx_bytes,
            rx_packets: seen.tx_packets,
            tx_bytes: seen.rx_bytes,
            tx_packets: seen.rx_packets,
        })
    }
}

/// Removes what there is of slots; nothing there is fine. Returns those of which something is left,
/// with the reason: they keep no other.
pub(crate) fn remove(ground: &Ground, numbers: &[u32]) -> Vec<(u32, NetError)> {
    let links: Vec<String> = numbers.iter().map(|number| ground.tag.link(*number)).collect();
    // A socket of its own: this takes long, and keeps others from theirs.
    let together = Rtnl::open().and_then(|outside| outside.remove_links(&links, ground.tag.leaving()));
    let one = |number: &u32| {
        let (name, link) = (ground.tag.namespace(*number), ground.tag.link(*number));
        let unlinked = match &together {
            Ok(()) => Ok(()),
            // One of them was in the way of all.
            Err(_) => Rtnl::open().and_then(|outside| outside.remove_link(&link)).during("remove the link", || link),
        };
        let forgotten = netns::forget(&name).during("remove the namespace", || name);
        unlinked.and(forgotten).err().map(|error| (*number, error))
    };
    numbers.iter().filter_map(one).collect()
}

/// As part of an undo: there is an error already that the caller hears of.
pub(crate) fn remove_or_say(ground: &Ground, numbers: &[u32]) {
    say_what_is_left(&remove(ground, numbers));
}

/// Of slots that could not be removed.
pub(crate) fn say_what_is_left(left: &[(u32, NetError)]) {
    for (slot, error) in left {
        let error = hearth_model::error::chain(error);
        tracing::warn!(slot, error, "a slot could not be removed: the next start of the daemon tries again");
    }
}

/// In a thread of its own, which ends in the slot's namespace.
fn make(ground: &Ground, number: u32) -> Result<Slot, NetError> {
    let Ground { tag, gateway, steps, .. } = ground;
    let (name, link) = (tag.namespace(number), tag.link(number));
    let place = || name.clone();
    let in_place = |what: &str| format!("{what} in {name}");
    let rtnl = || Rtnl::open().during("open", || "an rtnetlink socket".into());

    steps.run(|| netns::name(&name).during("name the namespace", place))?;
    let outside = steps.run(rtnl)?;
    steps.run(|| netns::leave_for_a_new_one().during("make the namespace", place))?;
    steps.run(|| netns::keep(&name).during("keep the namespace", place))?;
    let netns = steps.run(|| netns::current().during("open the namespace", place))?;
    let inside = steps.run(rtnl)?;
    let device = |name: &str| device(&inside, name, number);
    steps.run(|| netns::add_tap(inner::TAP).during("make the tap", || in_place(inner::TAP)))?;
    let rules = steps.run(|| {
        let ruled = ground.nft.session().and_then(|mut session| session.run(&ruleset::slot()).map(|_| session));
        ruled.map_err(|source| NetError::Rules { of: name.clone(), source })
    })?;
    // After the rules, which bring connection tracking and its parameters into the namespace.
    for (parameter, value) in ruleset::SLOT_SYSCTLS {
        steps.run(|| netns::set_parameter(parameter, value).during("set", || in_place(parameter)))?;
    }
    let lo = steps.run(|| device("lo"))?;
    steps.run(|| inside.set_up(lo.index, true).during("set up", || in_place("lo")))?;
    let tap = steps.run(|| device(inner::TAP))?.index;
    let tap_name = || in_place(inner::TAP);
    steps.run(|| inside.set_mac(tap, GATEWAY_MAC).during("set the address of", tap_name))?;
    for (address, prefix) in [(inner::GATEWAY, inner::PREFIX), (inner::DNS, 32)] {
        steps.run(|| inside.add_address(tap, address, prefix).during("add an address to", tap_name))?;
    }
    // While the gate is closed the tap's own route is not there: without this one, what is for the
    // guest would be sent back to the host.
    let guests = Ipv4Net::new_assert(inner::GATEWAY, inner::PREFIX).trunc();
    steps.run(|| inside.add_unreachable(guests).during("say where is not", || in_place(&guests.to_string())))?;

    // The host's end is made among the host's parameters.
    steps.run(|| netns::enter(ground.host.as_fd()).during("enter", || "the host's namespace".into()))?;
    steps.run(|| outside.add_veth(&link, UP, netns.as_fd()).during("make the link", || link.clone()))?;
    let ipv6 = format!("net/ipv6/conf/{link}/disable_ipv6");
    steps.run(|| netns::set_parameter(&ipv6, "1").during("set", || ipv6.clone()))?;
    let host_link = steps.run(|| device_outside(&outside, &link, number))?.index;
    steps.run(|| outside.add_address(host_link, *gateway, 32).during("add an address to", || link.clone()))?;
    steps.run(|| outside.set_up(host_link, true).during("set up", || link.clone()))?;

    steps.run(|| netns::enter(netns.as_fd()).during("enter the namespace", place))?;
    let up = steps.run(|| device(UP))?.index;
    steps.run(|| inside.set_up(up, true).during("set up", || in_place(UP)))?;
    steps.run(|| inside.add_default_route(*gateway, up).during("add the default route", place))?;
    // So that the daemon needs no capability for it that it needs for nothing else.
    let ports = "net/ipv4/ip_unprivileged_port_start";
    steps.run(|| netns::set_parameter(ports, &DNS_PORT.to_string()).during("set", || in_place(ports)))?;
    let dns = || in_place(&format!("{}:{DNS_PORT}", inner::DNS));
    let name_server = steps.run(|| listen_for_questions().during("listen at", dns))?;
    Ok(Slot {
        number,
        netns: Arc::new(netns),
        inside,
        tap,
        up,
        host_link,
        rules: Arc::new(Mutex::new(rules)),
        name_server: Mutex::new(Some(name_server)),
    })
}

fn find(ground: &Ground, number: u32) -> Result<Slot, NetError> {
    let (name, link) = (ground.tag.namespace(number), ground.tag.link(number));
    let gone = || NetError::Gone { slot: number, missing: format!("the namespace {name}") };
    let netns = netns::find(&name).during("open the namespace", || name.clone())?.ok_or_else(gone)?;
    let host_link = device_outside(&ground.outside, &link, number)?.index;
    netns::enter(netns.as_fd()).during("enter the namespace", || name.clone())?;
    let inside = Rtnl::open().during("open", || "an rtnetlink socket".into())?;
    let tap = device(&inside, inner::TAP, number)?.index;
    let up = device(&inside, UP, number)?.index;
    let dns = || format!("{}:{DNS_PORT} in {name}", inner::DNS);
    let name_server = listen_for_questions().during("listen at", dns)?;
    let rules = ground.nft.session().map_err(|source| NetError::Rules { of: name, source })?;
    Ok(Slot {
        number,
        netns: Arc::new(netns),
        inside,
        tap,
        up,
        host_link,
        rules: Arc::new(Mutex::new(rules)),
        name_server: Mutex::new(Some(name_server)),
    })
}

fn listen_for_questions() -> io::Result<Sockets> {
    let at = (inner::DNS, DNS_PORT);
    Ok(Sockets { udp: UdpSocket::bind(at)?, tcp: TcpListener::bind(at)? })
}

fn device(inside: &Rtnl, name: &str, slot: u32) -> Result<Link, NetError> {
    let found = inside.link(name).during("look for the device", || format!("{name} of slot {slot}"))?;
    found.ok_or_else(|| NetError::Gone { slot, missing: format!("its device {name}") })
}

fn device_outside(outside: &Rtnl, name: &str, slot: u32) -> Result<Link, NetError> {
    let found = outside.link(name).during("look for the link", || name.to_owned())?;
    found.ok_or_else(|| NetError::Gone { slot, missing: format!("its link {name}") })
}
