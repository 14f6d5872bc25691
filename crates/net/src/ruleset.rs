//! The rules of instances' networks, as text for nftables. Pure: what is asked for in, commands
//! out; nobody is asked, nothing is changed here.
//!
//! Two places have rules. **The host** has one table per daemon, `inet hearth_<tag>`: what may pass
//! between instances, the host and the world, and the published ports. **A slot's namespace** has
//! two, both named `hearth`: `netdev`, which lets nothing in but what the guest's own address sent,
//! and `inet`, with the 1:1 NAT, what the guest may reach, and what it may ask of the slot itself.
//!
//! ```text
//! guest ── hearth0 [netdev: only its own MAC and address]
//!              │   [input: DNS on 10.0.2.3, echo on 10.0.2.2]
//!              │   [forward → egress: open | none | only these]
//!             up0  [prerouting: dnat to 10.0.2.15] [postrouting: masquerade]
//!              │
//!           hv…    [host: raw: only from the range] [input: echo and allowed ports]
//!              │   [forward: not to other instances, if isolated; in: published ports only]
//!            world [host: masquerade; dnat of published ports]
//! ```
//!
//! What is refused is answered at once, by a reset or an ICMP error, and counted. A guest has no
//! IPv6: nothing of it passes anywhere.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use hearth_model::network::{Destination, Egress, Protocol, inner};
use ipnet::Ipv4Net;

/// How many addresses of names a slot keeps at once.
pub(crate) const NAMES_SIZE: usize = 16_384;

/// Link-local addresses: a cloud host's metadata service, with its credentials, is among them.
pub(crate) const LINK_LOCAL: &str = "169.254.0.0/16";

/// What a slot's namespace must be told below `/proc/sys`, once its tap and its rules are there (the
/// rules bring connection tracking with them). The IPv6 ones are missing where the kernel has none.
pub(crate) const SLOT_SYSCTLS: [(&str, &str); 7] = [
    ("net/ipv4/ip_forward", "1"),
    // A connection that the source of a fork had open is not taken for one of the fork's: its packets
    // are invalid, and answered by a reset.
    ("net/netfilter/nf_conntrack_tcp_loose", "0"),
    // And only those: a packet that is merely out of its connection's window must not cut it.
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    // Every refusal is answered, not some per second: it is the guest's own time.
    ("net/ipv4/icmp_ratelimit", "0"),
    // The way to oneself by the outer address goes in and out of the tap; there is no shorter one.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/hearth0/send_redirects", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "1"),
];

/// What the host's table depends on.
#[derive(Debug, Clone)]
pub(crate) struct HostRules<'a> {
    /// Of the data directory; part of the names of the table and of the links.
    pub tag: &'a str,
    /// Of the outer addresses.
    pub cidr: Ipv4Net,
    /// Whether instances may not reach each other.
    pub isolated: bool,
    /// Ports of the host that guests may reach.
    pub host_ports: &'a [(Protocol, u16)],
}

/// A port of the host that leads to an instance's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PublishedPort {
    pub protocol: Protocol,
    pub host: u16,
    pub outer: Ipv4Addr,
    pub guest: u16,
}

/// The name of the host's table, of family inet.
pub(crate) fn host_table(tag: &str) -> String {
    format!("hearth_{tag}")
}

/// What the names of the links to the slots begin with.
pub(crate) fn link_prefix(tag: &str) -> String {
    format!("hv{tag}")
}

/// Makes the host's table, in place of one that is there. What another's rules (Docker's, say) lead
/// from a port of the host to elsewhere is a port of the host too: hence `ct status dnat` for what
/// comes from instances.
pub(crate) fn host(rules: &HostRules<'_>, published: &[PublishedPort]) -> String {
    let HostRules { tag, cidr, isolated, host_ports } = rules;
    let (table, links, cidr) = (host_table(tag), format!("\"{}*\"", link_prefix(tag)), cidr.trunc());
    let (mut allowed, mut allowed_elsewhere) = (String::new(), String::new());
    for (protocol, port) in *host_ports {
        let protocol = protocol.as_str();
        let _ = writeln!(allowed, "\t\t{protocol} dport {port} accept");
        let _ = writeln!(
            allowed_elsewhere,
            "\t\tct status dnat meta l4proto {protocol} ct original proto-dst {port} accept"
        );
    }
    // Published ports lead to an address of the range, too: they are no way around the isolation.
    let between = if *isolated { "goto refuse" } else { "accept" };
    let mut text = format!(
        r#"table inet {table} {{}}
delete table inet {table}
table inet {table} {{
	counter spoofed {{}}
	counter refused {{}}
	map tcp_ports {{
		type inet_service : ipv4_addr . inet_service
	}}
	map udp_ports {{
		type inet_service : ipv4_addr . inet_service
	}}
	chain refuse {{
		counter name refused
		meta l4proto tcp reject with tcp reset
		reject with icmpx type admin-prohibited
	}}
	chain raw {{
		type filter hook prerouting priority raw; policy accept;
		iifname {links} ip saddr != {cidr} counter name spoofed drop
		iifname {links} meta nfproto ipv6 counter name spoofed drop
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local dnat ip to tcp dport map @tcp_ports
		fib daddr type local dnat ip to udp dport map @udp_ports
	}}
	chain output_nat {{
		type nat hook output priority -100; policy accept;
		ip daddr 127.0.0.0/8 return
		fib daddr type local dnat ip to tcp dport map @tcp_ports
		fib daddr type local dnat ip to udp dport map @udp_ports
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr {cidr} oifname != {links} masquerade
		ip saddr {cidr} ip daddr {cidr} ct status dnat masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		ip daddr {cidr} oifname != {links} goto refuse
		iifname {links} goto from_instances
		oifname {links} goto to_instances
	}}
	chain from_instances {{
		ct state established,related accept
		ip daddr {cidr} {between}
{allowed_elsewhere}		ct status dnat goto refuse
		accept
	}}
	chain to_instances {{
		ct state established,related accept
		ct status dnat accept
		goto refuse
	}}
	chain input {{
		type filter hook input priority filter; policy accept;
		iifname {links} goto to_host
	}}
	chain to_host {{
		ct state established,related accept
		icmp type echo-request accept
{allowed}		goto refuse
	}}
	chain output {{
		type filter hook output priority filter; policy accept;
		ip daddr {cidr} oifname != {{ "lo", {links} }} goto refuse
	}}
}}
"#
    );
    text.push_str(&publish(tag, published));
    text
}

/// Removes the host's table; also when there is none.
pub(crate) fn remove_host(tag: &str) -> String {
    let table = host_table(tag);
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Adds ports. Fails as a whole, with nothing added, if one of them leads elsewhere.
pub(crate) fn publish(tag: &str, ports: &[PublishedPort]) -> String {
    ports.iter().fold(String::new(), |mut text, port| {
        let _ = writeln!(text, "add {}", element(tag, port));
        text
    })
}

/// Removes a port; also when it is not there. If it leads elsewhere, nothing is removed and the error
/// is [`crate::nft::NftError::is_taken`]: it is another's, and the one that was meant is gone.
pub(crate) fn unpublish(tag: &str, port: &PublishedPort) -> String {
    let element = element(tag, port);
    format!("add {element}\ndelete {element}\n")
}

fn element(tag: &str, port: &PublishedPort) -> String {
    let (table, protocol) = (host_table(tag), port.protocol.as_str());
    format!("element inet {table} {protocol}_ports {{ {} : {} . {} }}", port.host, port.outer, port.guest)
}

/// Makes a slot's tables, egress open, in place of those that are there. They name no outer address:
/// the slot has none until it is taken. The tap must be there.
pub(crate) fn slot() -> String {
    let (tap, mac, guest) = (inner::TAP, inner::MAC_TEXT, inner::ADDRESS);
    let (gateway, dns) = (inner::GATEWAY, inner::DNS);
    format!(
        r#"table netdev hearth {{}}
delete table netdev hearth
table netdev hearth {{
	counter spoofed_mac {{}}
	counter spoofed_ip {{}}
	counter spoofed_arp {{}}
	counter other {{}}
	chain guest {{
		type filter hook ingress device "{tap}" priority filter; policy drop;
		ether saddr != {mac} counter name spoofed_mac drop
		ether type ip ip saddr {guest} accept
		ether type ip counter name spoofed_ip drop
		ether type arp arp saddr ether {mac} arp saddr ip {guest} accept
		ether type arp counter name spoofed_arp drop
		counter name other drop
	}}
}}
table inet hearth {{}}
delete table inet hearth
table inet hearth {{
	counter refused {{}}
	counter stale {{}}
	counter dns_flood {{}}
	set nets {{
		type ipv4_addr
		flags interval
		auto-merge
	}}
	set names {{
		type ipv4_addr
		size {NAMES_SIZE}
		flags timeout
	}}
	chain refuse {{
		counter name refused
		meta l4proto tcp reject with tcp reset
		reject with icmpx type admin-prohibited
	}}
	chain stale {{
		counter name stale
		meta l4proto tcp reject with tcp reset
		drop
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname "up0" dnat ip to {guest}
		iifname "{tap}" fib daddr type local ip daddr != {{ {gateway}, {dns} }} dnat ip to {guest}
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "up0" masquerade
		oifname "{tap}" ip saddr {guest} masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		ct state invalid goto stale
		oifname "{tap}" ct status dnat accept
		iifname "{tap}" oifname "up0" goto egress
		goto refuse
	}}
	chain egress {{
{OPEN}	}}
	chain input {{
		type filter hook input priority filter; policy drop;
		ct state invalid goto stale
		iifname "{tap}" goto asked
		ct state established,related accept
		goto refuse
	}}
	chain asked {{
		ip daddr {dns} udp dport 53 limit rate over 2000/second burst 1000 packets counter name dns_flood drop
		ip daddr {dns} meta l4proto {{ tcp, udp }} th dport 53 accept
		ip daddr {gateway} icmp type echo-request accept
		ct state established,related accept
		goto refuse
	}}
}}
"#
    )
}

/// Everything but link-local addresses.
const OPEN: &str = "\t\tip daddr 169.254.0.0/16 goto refuse\n\t\taccept\n";

/// Changes what a slot's guest may reach. Connections that it has stay.
///
/// Link-local addresses are reached only if the list has them in so many words (a network within
/// 169.254.0.0/16): neither `0.0.0.0/0` nor a name that somebody points there is asking for the
/// host's credentials.
pub(crate) fn egress(egress: &Egress) -> String {
    let mut text =
        "flush chain inet hearth egress\nflush set inet hearth nets\nflush set inet hearth names\n".to_owned();
    let mut rule = |rule: &str| {
        let _ = writeln!(text, "add rule inet hearth egress {rule}");
    };
    match egress {
        Egress::Open => {
            rule(&format!("ip daddr {LINK_LOCAL} goto refuse"));
            rule("accept");
        }
        Egress::None => rule("goto refuse"),
        Egress::Only(destinations) => {
            let link_local: Ipv4Net = LINK_LOCAL.parse().expect("a network");
            let nets = destinations.iter().filter_map(|destination| match destination {
                Destination::Net(net) => Some(net.trunc()),
                Destination::Name(_) => None,
            });
            let (asked, nets): (Vec<_>, Vec<_>) = nets.partition(|net| link_local.contains(net));
            for net in asked {
                rule(&format!("ip daddr {net} accept"));
            }
            rule(&format!("ip daddr {LINK_LOCAL} goto refuse"));
            rule("ip daddr @nets accept");
            rule("ip daddr @names accept");
            rule("goto refuse");
            if !nets.is_empty() {
                let nets: Vec<String> = nets.iter().map(ToString::to_string).collect();
                let _ = writeln!(text, "add element inet hearth nets {{ {} }}", nets.join(", "));
            }
        }
    }
    text
}

/// Lets a slot's guest reach addresses for some time from now, whether it may already or not. The
/// detour is because kernels before 6.12 leave the time of an element that is there as it is.
pub(crate) fn admit(addresses: &[(Ipv4Addr, Duration)]) -> String {
    addresses.iter().fold(String::new(), |mut text, (address, time)| {
        let set = "element inet hearth names";
        let seconds = time.as_secs().max(1);
        let _ = writeln!(
            text,
            "add {set} {{ {address} }}\ndelete {set} {{ {address} }}\nadd {set} {{ {address} timeout {seconds}s }}"
        );
        text
    })
}

#[cfg(test)]
mod tests;
