//! The host's side of the network: what is there before the first slot, and after the last.
//!
//! What is made: forwarding is turned on, one nftables table, one route that says that the range is
//! nowhere but where instances are. What earlier daemons left and no record owns is removed; what of
//! it cannot be removed is said, and keeps nothing else. "Could not look" is an error and removes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_model::Kind;
use hearth_model::network::Protocol;
use ipnet::Ipv4Net;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fault::{During, NetError};
use crate::foreign::{self, ForeignError};
use crate::netlink::Rtnl;
use crate::netns;
use crate::nft::Nft;
use crate::rule_changes::RuleChanges;
use crate::ruleset::{self, HostRules, PublishedPort};
use crate::slot::{self, Ground};
use crate::spec::{NetConfig, NetSeat, SweptSlots};
use crate::tag::Tag;

/// How long other people's changes of rules are given to become whole.
const CHANGES: Duration = Duration::from_millis(200);
const FORWARDING: &str = "net/ipv4/ip_forward";

/// Prepares the host. Returns a number above those of all slots that are left, and what was removed.
pub(crate) fn prepare(config: &NetConfig, ground: &Ground, owned: &[NetSeat]) -> Result<(u32, SweptSlots), NetError> {
    let outside = &ground.outside;
    let cidr = config.cidr.trunc();
    refuse_clash(cidr, ground.tag, outside)?;
    forward()?;
    netns::prepare().during("prepare", || "the directory of network namespaces".into())?;
    let (kept, swept) = remove_orphans(ground, outside, owned)?;
    let set = set_rules(config, ground, owned)
        .and_then(|()| outside.add_unreachable(cidr).during("say where is not", || cidr.to_string()));
    if let Err(error) = set {
        // Those of slots that are left stay: they lack something, but not everything.
        if kept.is_empty() {
            restore(cidr, ground)?;
        }
        return Err(error);
    }
    Ok((kept.last().map_or(0, |last| last.saturating_add(1)), swept))
}

/// What [`prepare`] would find, for people: an empty list if there is nothing to say. Changes nothing.
pub(crate) fn look(config: &NetConfig, tag: Tag, nft: Nft) -> Result<Vec<String>, NetError> {
    let outside = Rtnl::open().during("open", || "an rtnetlink socket".into())?;
    refuse_clash(config.cidr.trunc(), tag, &outside)?;
    let mut found = Vec::new();
    let path = format!("/proc/sys/{FORWARDING}");
    if fs::read_to_string(&path).during("read", || path.clone())?.trim() == "0" {
        found.push("the daemon will turn net.ipv4.ip_forward on".to_owned());
    }
    let tag = tag.to_string();
    match foreign::find(nft, &tag) {
        Ok(chains) => found.extend(chains.iter().filter(|chain| !chain.admits()).map(|chain| {
            if config.admit_in_foreign_chains {
                format!("{chain} drops what is forwarded: the daemon will add a rule of its own there")
            } else {
                format!("{chain} drops what is forwarded: {}", chain.advice(&tag))
            }
        })),
        Err(error) => found.push(hearth_model::error::chain(&error)),
    }
    Ok(found)
}

/// Takes away what [`prepare`] made, when there is no slot any more. Forwarding stays on: others may
/// have come to need it.
pub(crate) fn restore(cidr: Ipv4Net, ground: &Ground) -> Result<(), NetError> {
    let tag = ground.tag.to_string();
    foreign::withdraw(ground.nft, &tag).unwrap_or_else(|error| say(&error));
    let removed = ground.nft.run(&ruleset::remove_host(&tag)).map(drop);
    removed.map_err(|source| NetError::Rules { of: ruleset::host_table(&tag), source })?;
    let cidr = cidr.trunc();
    ground.outside.remove_unreachable(cidr).during("remove the route to", || cidr.to_string())
}

/// Sees to it that other people's rules let instances through, until it is dropped.
#[derive(Debug)]
pub(crate) struct Admitting {
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Admitting {
    /// Returns when it adds nothing any more.
    pub(crate) async fn end(self) {
        drop(self.stop);
        self.task.await.unwrap_or_else(|error| tracing::warn!(%error, "let instances through others' rules"));
    }
}

/// Lets instances through other people's chains that refuse to forward, now and whenever somebody
/// writes those anew; or says what the user has to do about them. Needs a tokio runtime.
pub(crate) fn admit(config: &NetConfig, ground: &Ground) -> Option<Admitting> {
    let (nft, tag) = (ground.nft, ground.tag.to_string());
    if !config.admit_in_foreign_chains {
        match foreign::find(nft, &tag) {
            Ok(chains) => chains.iter().filter(|chain| !chain.admits()).for_each(|chain| {
                let advice = chain.advice(&tag);
                tracing::warn!(
                    %chain,
                    advice,
                    "instances reach nobody: a chain refuses to forward, and the configuration lets the daemon add nothing to it"
                );
            }),
            Err(error) => say(&error),
        }
        return None;
    }
    // Listened to first, so that no change is missed.
    let changes = RuleChanges::listen();
    admit_now(nft, &tag);
    let changes = changes.inspect_err(|error| tracing::warn!(%error, "listen to changes of rules")).ok()?;
    let stop = CancellationToken::new();
    let task = tokio::spawn(admit_again(nft, tag, changes, stop.clone()));
    Some(Admitting { stop: stop.drop_guard(), task })
}

async fn admit_again(nft: Nft, tag: String, mut changes: RuleChanges, stop: CancellationToken) {
    loop {
        match stop.run_until_cancelled(changes.changed()).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => return tracing::warn!(%error, "listen to changes of rules"),
        }
        // Who writes a table anew changes much at once.
        if stop.run_until_cancelled(tokio::time::sleep(CHANGES)).await.is_none() {
            return;
        }
        let tag = tag.clone();
        if tokio::task::spawn_blocking(move || admit_now(nft, &tag)).await.is_err() {
            return;
        }
    }
}

/// Instances run without it, if nobody is in their way: so it is said, and not fatal.
fn admit_now(nft: Nft, tag: &str) {
    match foreign::admit(nft, tag) {
        Ok(chains) => chains.iter().for_each(|chain| {
            tracing::info!(%chain, "let instances through a chain that refuses to forward");
        }),
        Err(error) => say(&error),
    }
}

fn say(error: &ForeignError) {
    let (hint, error) = (error.hint(), hearth_model::error::chain(error));
    tracing::warn!(error, hint, "instances may reach nobody");
}

/// An address or a route of somebody else's in our range would be unreachable, or would be ours.
fn refuse_clash(cidr: Ipv4Net, tag: Tag, outside: &Rtnl) -> Result<(), NetError> {
    let links = outside.links().during("list", || "the host's links".into())?;
    let names: BTreeMap<u32, String> = links.into_iter().map(|link| (link.index, link.name)).collect();
    let name = |link: u32| names.get(&link).map_or("a link that is gone", String::as_str);
    let is_ours = |link: u32| tag.slot(name(link)).is_some();
    let overlaps = |net: &Ipv4Net| net.prefix_len() > 0 && (net.contains(&cidr) || cidr.contains(net));

    let addresses = outside.addresses().during("list", || "the host's addresses".into())?;
    for (address, link) in addresses {
        if overlaps(&address) && !is_ours(link) {
            return Err(NetError::RangeClash { cidr, with: format!("the address {address} on {}", name(link)) });
        }
    }
    for route in outside.routes().during("list", || "the host's routes".into())? {
        // What says that the range is nowhere is ours, from before.
        let is_ours = route.link.map_or(route.ours && route.unreachable && route.to == cidr, is_ours);
        if overlaps(&route.to) && !is_ours {
            let by = route.link.map_or(String::new(), |link| format!(" by {}", name(link)));
            return Err(NetError::RangeClash { cidr, with: format!("a route to {}{by}", route.to) });
        }
    }
    Ok(())
}

fn forward() -> Result<(), NetError> {
    let path = format!("/proc/sys/{FORWARDING}");
    let on = fs::read_to_string(&path).during("read", || path.clone())?;
    if on.trim() == "0" {
        netns::set_parameter(FORWARDING, "1").during("set", || path.clone())?;
        tracing::info!("turned IPv4 forwarding on (net.ipv4.ip_forward=1): instances reach others through this host");
    }
    Ok(())
}

/// Removes the slots that nobody owns; returns the numbers of those that are left, owned or not.
fn remove_orphans(ground: &Ground, outside: &Rtnl, owned: &[NetSeat]) -> Result<(BTreeSet<u32>, SweptSlots), NetError> {
    let tag = ground.tag;
    let namespaces = netns::names(&tag.namespaces()).during("list", || "network namespaces".into())?;
    let links = outside.links().during("list", || "the host's links".into())?;
    let routes = outside.routes().during("list", || "the host's routes".into())?;

    let found = namespaces.iter().chain(links.iter().map(|link| &link.name)).filter_map(|name| tag.slot(name));
    let owner = |slot: u32| owned.iter().find(|seat| seat.slot == slot);
    let (mut kept, orphans): (BTreeSet<u32>, BTreeSet<u32>) = found.partition(|slot| owner(*slot).is_some());
    let mut swept = SweptSlots::default();
    if !orphans.is_empty() {
        let orphans: Vec<u32> = orphans.into_iter().collect();
        tracing::info!(slots = ?orphans, "slots without an owner are removed");
        let left = slot::remove(ground, &orphans);
        slot::say_what_is_left(&left);
        swept.removed = orphans.len() - left.len();
        for (number, error) in &left {
            // Its name is taken.
            kept.insert(*number);
            swept.failed.push((tag.namespace(*number), hearth_model::error::chain(error)));
        }
    }
    for link in &links {
        let Some(seat) = tag.slot(&link.name).and_then(owner) else { continue };
        for route in routes.iter().filter(|route| route.link == Some(link.index) && route.ours) {
            let to = route.to.network();
            if to == seat.address {
                continue;
            }
            if let Err(error) = outside.remove_host_route(to, link.index) {
                tracing::warn!(%to, link = link.name, %error, "a route that leads to no instance could not be removed");
                swept.failed.push((format!("the route to {to} by {}", link.name), error.to_string()));
            }
        }
    }
    Ok((kept, swept))
}

fn set_rules(config: &NetConfig, ground: &Ground, owned: &[NetSeat]) -> Result<(), NetError> {
    let tag = ground.tag.to_string();
    let fail = |source| NetError::Rules { of: ruleset::host_table(&tag), source };
    let mut published = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let list = format!("list map inet {} {}_ports", ruleset::host_table(&tag), protocol.as_str());
        match ground.nft.list(&list) {
            Ok(listed) => published.extend(ports(protocol, &listed)),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(fail(error)),
        }
    }
    published.retain(|port| owned.iter().any(|seat| seat.address == port.outer));
    let rules = HostRules { tag: &tag, cidr: config.cidr, isolated: config.isolated, host_ports: &config.host_ports };
    ground.nft.run(&ruleset::host(&rules, &published)).map(drop).map_err(fail)
}

/// The elements of a map of ports, as nftables lists them: `[8080, {"concat": ["10.100.0.2", 80]}]`.
fn ports(protocol: Protocol, listed: &Value) -> Vec<PublishedPort> {
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["map"]["elem"].as_array()).flatten();
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    let read = |element: &Value| {
        let target = element[1]["concat"].as_array()?;
        let outer: Ipv4Addr = target.first()?.as_str()?.parse().ok()?;
        Some(PublishedPort { protocol, host: port(&element[0])?, outer, guest: port(target.get(1)?)? })
    };
    elements.filter_map(read).collect()
}
