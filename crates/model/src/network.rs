//! An instance's network, as far as it is decided and not made: what the guest may reach, how fast,
//! which of its ports are published, and the addresses that are the same in every guest.
//!
//! Every guest has the same inner address, in a place of its own; outside it is known by an address
//! that belongs to it alone. So a fork needs no other address inside, and at no moment do two
//! guests share one outside.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// What is the same inside every guest. These are the addresses of QEMU's user-mode network, so that
/// a guest sees the same with and without privileges on the host (QEMU's manual, "Using the user
/// mode network stack").
pub mod inner {
    use std::net::Ipv4Addr;

    /// The guest's address.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    /// Length of its network's prefix.
    pub const PREFIX: u8 = 24;
    /// Its way out.
    pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    /// Its name server.
    pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
    /// Its network device's address: QEMU's default for the first one.
    pub const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
    /// The same, written out.
    pub const MAC_TEXT: &str = "52:54:00:12:34:56";
    /// The host end of that device, in the guest's own network namespace.
    pub const TAP: &str = "hearth0";
}

/// An instance's network, as asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Network {
    /// What the guest may reach.
    #[serde(default)]
    pub egress: Egress,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Bandwidth>,
    /// To the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Bandwidth>,
    /// Ports of the host that lead to the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
}

/// What a guest may reach beyond its own host. Answers to who reached it first always leave.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Egress {
    /// Everything.
    #[default]
    Open,
    /// Nothing; names are not resolved either.
    None,
    /// These, and no other; only names of the list are resolved.
    Only(Vec<Destination>),
}

/// Where a guest may connect to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Addresses.
    Net(Ipv4Net),
    /// What a name stands for, as our forwarder told the guest.
    Name(NamePattern),
}

/// A domain name in lower case without a final dot; as a pattern, with `*.` before it, it means every
/// name below and not the name itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern(String);

impl NamePattern {
    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name, in any case and with or without a final dot, is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        match self.0.strip_prefix("*.") {
            None => name.eq_ignore_ascii_case(&self.0),
            Some(parent) => {
                let split = name.len().checked_sub(parent.len() + 1);
                split.filter(|at| *at > 0 && name.is_char_boundary(*at)).is_some_and(|at| {
                    let (_, below) = name.split_at(at);
                    below.strip_prefix('.').is_some_and(|below| below.eq_ignore_ascii_case(parent))
                })
            }
        }
    }
}

/// Why a text is not a place on the network, or not how one is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} {problem}")]
pub struct NetworkTextError {
    what: &'static str,
    text: String,
    problem: &'static str,
}

impl FromStr for NamePattern {
    type Err = NetworkTextError;

    fn from_str(text: &str) -> Result<Self, NetworkTextError> {
        let fail = |problem| NetworkTextError { what: "name", text: text.to_owned(), problem };
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = lower.strip_prefix("*.").unwrap_or(&lower);
        if name.is_empty() || lower.len() > 253 {
            return Err(fail("is not a domain name: it must have 1 to 253 characters"));
        }
        let label = |label: &str| {
            let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
            (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
        };
        if !name.split('.').all(label) {
            return Err(fail("is not a domain name, as in example.com or *.example.com"));
        }
        Ok(Self(lower))
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NetworkTextError;
    fn try_from(text: String) -> Result<Self, NetworkTextError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(name: NamePattern) -> Self {
        name.0
    }
}

impl FromStr for Destination {
    type Err = NetworkTextError;

    /// `10.0.0.0/8`, `192.0.2.7`, `example.com`, `*.example.com`.
    fn from_str(text: &str) -> Result<Self, NetworkTextError> {
        let fail = |problem| NetworkTextError { what: "destination", text: text.to_owned(), problem };
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Net(Ipv4Net::from(address)));
        }
        if text.contains('/') {
            let net: Ipv4Net = text.parse().map_err(|_| fail("is not a network, as in 192.0.2.0/24"))?;
            return Ok(Self::Net(net.trunc()));
        }
        if text.contains(':') {
            return Err(fail("is not an IPv4 address or a name: guests have no IPv6"));
        }
        let last = text.rsplit('.').next().unwrap_or(text);
        if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(fail("is neither an IPv4 address nor a name"));
        }
        text.parse().map(Self::Name)
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == 32 => net.addr().fmt(f),
            Self::Net(net) => net.fmt(f),
            Self::Name(name) => f.write_str(&name.0),
        }
    }
}

/// A speed, at least [`Bandwidth::MIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Bandwidth {
    bytes_per_s: u64,
}

impl Bandwidth {
    /// 8 kbit/s: below it not even a handshake gets through in time.
    pub const MIN: Self = Self { bytes_per_s: 1000 };

    /// In bytes per second.
    #[must_use]
    pub const fn bytes_per_s(self) -> u64 {
        self.bytes_per_s
    }
}

impl FromStr for Bandwidth {
    type Err = NetworkTextError;

    /// `1Gbps`, `10 Mbit/s`, `125MB/s`: bits with a small b, bytes with a large one; K, M and G are
    /// powers of 1000, as with every network.
    fn from_str(text: &str) -> Result<Self, NetworkTextError> {
        let fail = |problem| NetworkTextError { what: "bandwidth", text: text.to_owned(), problem };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit = unit.trim();
        let unit = unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps")).unwrap_or(unit);
        let (scale, kind) = match unit.chars().next().map(|c| c.to_ascii_lowercase()) {
            Some('k') => (1_000, &unit[1..]),
            Some('m') => (1_000_000, &unit[1..]),
            Some('g') => (1_000_000_000, &unit[1..]),
            _ => (1, unit),
        };
        let bits = match kind {
            "b" | "bit" | "bits" => true,
            "B" | "bytes" => false,
            _ => return Err(fail("has an unknown unit: use Mbps, Gbps, MB/s or the like")),
        };
        let number: u64 = number.parse().map_err(|_| fail("is not a whole number with a unit, as in 100Mbps"))?;
        let product = number.checked_mul(scale).ok_or_else(|| fail("is too large"))?;
        let bytes_per_s = if bits { product / 8 } else { product };
        if bytes_per_s < Self::MIN.bytes_per_s {
            return Err(fail("is too little: at least 8Kbps"));
        }
        Ok(Self { bytes_per_s })
    }
}

impl fmt::Display for Bandwidth {
    /// In bits, with the largest unit that leaves a whole number: "100Mbps".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from(self.bytes_per_s) * 8;
        let units = [(1_000_000_000, "Gbps"), (1_000_000, "Mbps"), (1_000, "Kbps")];
        let (scale, unit) = units.into_iter().find(|(scale, _)| bits.is_multiple_of(*scale)).unwrap_or((1, "bps"));
        write!(f, "{}{unit}", bits / scale)
    }
}

/// A port of the host that leads to one of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct PortMapping {
    /// On every address of the host, loopback included.
    pub host: u16,
    /// In the guest.
    pub guest: u16,
    /// Of what.
    pub protocol: Protocol,
}

/// What has ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP
    #[default]
    Tcp,
    /// UDP
    Udp,
}

impl Protocol {
    /// The API's name, and nftables'.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl FromStr for PortMapping {
    type Err = NetworkTextError;

    /// `8080:80`, `53:53/udp`, `8080` (the same on both sides).
    fn from_str(text: &str) -> Result<Self, NetworkTextError> {
        let fail = |problem| NetworkTextError { what: "port mapping", text: text.to_owned(), problem };
        let (ports, protocol) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.split('/').next().unwrap_or(text), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some(_) => return Err(fail("has an unknown protocol: use tcp or udp")),
        };
        let port = |text: &str| match text.parse::<u16>() {
            Ok(0) | Err(_) => Err(fail("is not HOST:GUEST with ports from 1 to 65535, as in 8080:80")),
            Ok(port) => Ok(port),
        };
        let (host, guest) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self { host: port(host)?, guest: port(guest)?, protocol })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.host, self.guest, self.protocol.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_read_as_hypeman_s_users_write_them() {
        let read = |text: &str| text.parse::<Bandwidth>().map(Bandwidth::bytes_per_s);
        assert_eq!(read("1Gbps"), Ok(125_000_000));
        assert_eq!(read("125MB/s"), Ok(125_000_000));
        assert_eq!(read("10 Mbit/s"), Ok(1_250_000));
        assert_eq!(read("64kbps"), Ok(8_000));
        for wrong in ["", "fast", "1.5Gbps", "10", "-1Mbps", "7bps", "99999999999999999999Gbps"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        let shown = |text: &str| text.parse::<Bandwidth>().expect("a speed").to_string();
        assert_eq!((shown("125MB/s"), shown("1500 Kbps")), ("1Gbps".into(), "1500Kbps".into()));
    }

    #[test]
    fn a_pattern_means_what_is_below_it_and_nothing_that_ends_alike() {
        let pattern = |text: &str| text.parse::<NamePattern>().expect("a pattern");
        assert!(pattern("Example.com.").matches("EXAMPLE.com."));
        assert!(!pattern("example.com").matches("www.example.com"));
        let below = pattern("*.example.com");
        assert!(below.matches("www.example.com") && below.matches("a.b.Example.com."));
        for other in ["example.com", ".example.com", "badexample.com", "example.com.evil.org", "éexample.com"] {
            assert!(!below.matches(other), "{other:?}");
        }
        for wrong in ["", "*", "*.", "a..b", "-a.com", "a b", "*.*.com"] {
            assert!(wrong.parse::<NamePattern>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn destinations_are_networks_or_names() {
        let read = |text: &str| text.parse::<Destination>().map(|d| d.to_string());
        assert_eq!(read("192.0.2.7").as_deref(), Ok("192.0.2.7"));
        assert_eq!(read("192.0.2.7/24").as_deref(), Ok("192.0.2.0/24"));
        assert_eq!(read("Example.COM").as_deref(), Ok("example.com"));
        for wrong in ["", "192.0.2", "1.2.3.400", "10.0.0.0/33", "::1", "2001:db8::/32", "a/8"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn port_mappings_are_read_as_docker_s_users_write_them() {
        let read = |text: &str| text.parse::<PortMapping>().map(|p| p.to_string());
        assert_eq!(read("8080:80").as_deref(), Ok("8080:80/tcp"));
        assert_eq!(read("53/udp").as_deref(), Ok("53:53/udp"));
        assert_eq!(read("53:5353/udp").as_deref(), Ok("53:5353/udp"));
        for wrong in ["", "0:80", "80:0", "70000:1", "80:80:80", "80/sctp", "a:b", "80/"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
