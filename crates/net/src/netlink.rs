//! rtnetlink, one request at a time: links, addresses, routes, queueing disciplines.
//!
//! A socket belongs to the network namespace that it was opened in, whatever thread uses it: a slot
//! holds one in its namespace and one in the host's, so that nothing enters a namespace when a slot
//! is taken. The kernel answers before the send returns; nothing here waits.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeader, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, Stats64,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// What a dump may be interrupted by changes, before it counts as "could not look".
const DUMP_TRIES: u32 = 20;
/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 1 << 16;

/// The mark of our routes: a number that no routing daemon uses.
const OURS: RouteProtocol = RouteProtocol::Other(104);

/// A socket to the kernel's tables of one network namespace.
#[derive(Debug)]
pub(crate) struct Rtnl(Mutex<Talk>);

#[derive(Debug)]
struct Talk {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
}

/// An IPv4 route, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub to: Ipv4Net,
    /// The device that it leads to, if it leads anywhere.
    pub link: Option<u32>,
    /// Whether it bears our mark.
    pub ours: bool,
    pub unreachable: bool,
}

impl Rtnl {
    /// In the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        Ok(Self(Mutex::new(Talk { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })))
    }

    pub(crate) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.iter().find_map(as_link)),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn statistics(&self, index: u32) -> io::Result<Stats64> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(link_message(index)), 0)?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link.attributes),
            _ => None,
        });
        let statistics = links.flatten().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(statistics) => Some(statistics),
            _ => None,
        });
        statistics.ok_or_else(no_answer)
    }

    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        Ok(self.dump(&RouteNetlinkMessage::GetLink(LinkMessage::default()))?.iter().filter_map(as_link).collect())
    }

    /// Makes a pair of linked devices, the second one in the namespace `peer_in`.
    pub(crate) fn add_veth(&self, name: &str, peer: &str, peer_in: BorrowedFd<'_>) -> io::Result<()> {
        let mut other = LinkMessage::default();
        other.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        other.attributes.push(LinkAttribute::NetNsFd(peer_in.as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let data = InfoData::Veth(InfoVeth::Peer(other));
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)]));
        self.change(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes a device; one that is not there is fine.
    pub(crate) fn remove_link(&self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        but_for(self.change(RouteNetlinkMessage::DelLink(message), 0), libc::ENODEV)
    }

    /// Removes devices at once: most of the time that a removal takes is waiting until nobody looks
    /// at the device any more, and that is waited for once. Those that are not there are fine.
    ///
    /// `group` is nobody else's mark.
    pub(crate) fn remove_links(&self, names: &[String], group: u32) -> io::Result<()> {
        for name in names {
            let mut message = LinkMessage::default();
            message.attributes.push(LinkAttribute::IfName(name.clone()));
            message.attributes.push(LinkAttribute::Group(group));
            but_for(self.change(RouteNetlinkMessage::SetLink(message), 0), libc::ENODEV)?;
        }
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        but_for(self.change(RouteNetlinkMessage::DelLink(message), 0), libc::ENODEV)
    }

    pub(crate) fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        let mut message = link_message(index);
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(crate) fn set_mac(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = link_message(index);
        message.attributes.push(LinkAttribute::Address(mac.to_vec()));
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub(crate) fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header = AddressHeader {
            family: AddressFamily::Inet,
            prefix_len: prefix,
            scope: AddressScope::Universe,
            index,
            ..AddressHeader::default()
        };
        let address = IpAddr::V4(address);
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// IPv4 addresses with their networks, and the devices that have them.
    pub(crate) fn addresses(&self) -> io::Result<Vec<(Ipv4Net, u32)>> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let found = self.dump(&RouteNetlinkMessage::GetAddress(message))?.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewAddress(found) = answer else { return None };
            let local = found.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
                _ => None,
            })?;
            Some((Ipv4Net::new(local, found.header.prefix_len).ok()?, found.header.index))
        });
        Ok(found.collect())
    }

    /// A route to one address on a device, with the address that the host has towards it.
    pub(crate) fn add_host_route(&self, to: Ipv4Addr, link: u32, from: Ipv4Addr) -> io::Result<()> {
        let mut message = route_message(Ipv4Net::from(to), RouteType::Unicast, RouteScope::Link);
        message.attributes.push(RouteAttribute::Oif(link));
        message.attributes.push(RouteAttribute::PrefSource(RouteAddress::Inet(from)));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Removes such a route; one that is not there is fine.
    pub(crate) fn remove_host_route(&self, to: Ipv4Addr, link: u32) -> io::Result<()> {
        let mut message = route_message(Ipv4Net::from(to), RouteType::Unicast, RouteScope::Link);
        message.attributes.push(RouteAttribute::Oif(link));
        but_for(self.change(RouteNetlinkMessage::DelRoute(message), 0), libc::ESRCH)
    }

    /// The way out, to a neighbour whose network the device has no address of.
    pub(crate) fn add_default_route(&self, via: Ipv4Addr, link: u32) -> io::Result<()> {
        let mut message =
            route_message(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0), RouteType::Unicast, RouteScope::Universe);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(via)));
        message.attributes.push(RouteAttribute::Oif(link));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Says that a network is nowhere but where more special routes lead. Fine if that is said.
    pub(crate) fn add_unreachable(&self, net: Ipv4Net) -> io::Result<()> {
        let message = unreachable_message(net);
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    pub(crate) fn remove_unreachable(&self, net: Ipv4Net) -> io::Result<()> {
        but_for(self.change(RouteNetlinkMessage::DelRoute(unreachable_message(net)), 0), libc::ESRCH)
    }

    /// IPv4 routes of the main table.
    pub(crate) fn routes(&self) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let found = self.dump(&RouteNetlinkMessage::GetRoute(message))?.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewRoute(found) = answer else { return None };
            if found.header.table != RouteHeader::RT_TABLE_MAIN {
                return None;
            }
            let mut to = Ipv4Addr::UNSPECIFIED;
            let mut link = None;
            for attribute in &found.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
                    RouteAttribute::Oif(index) => link = Some(*index),
                    _ => {}
                }
            }
            Some(Route {
                to: Ipv4Net::new(to, found.header.destination_prefix_length).ok()?,
                link,
                ours: found.header.protocol == OURS,
                unreachable: found.header.kind == RouteType::Unreachable,
            })
        });
        Ok(found.collect())
    }

    /// Puts a queueing discipline on what leaves by a device, instead of what is there.
    pub(crate) fn set_qdisc(&self, link: u32, mut message: TcMessage) -> io::Result<()> {
        message.header = TcHeader {
            family: AddressFamily::Unspec,
            index: i32::try_from(link).map_err(io::Error::other)?,
            handle: TcHandle { major: 1, minor: 0 },
            parent: TcHandle::ROOT,
            info: 0,
        };
        self.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags).map(drop)
    }

    /// Sends a request, and returns what is answered before the acknowledgement.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.lock().talk(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(|(answers, _)| answers)
    }

    /// A whole table, as it was at one moment.
    fn dump(&self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut talk = self.lock();
        for _ in 0..DUMP_TRIES {
            let (answers, interrupted) = talk.talk(message.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the kernel's table changes all the time"))
    }

    fn lock(&self) -> MutexGuard<'_, Talk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Talk {
    fn talk(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let (mut answers, mut interrupted) = (Vec::new(), false);
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(rest.len()).next_multiple_of(4);
                rest = rest.get(length.max(1)..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Error(error) => {
                        return if error.code.is_some() { Err(error.to_io()) } else { Ok((answers, interrupted)) };
                    }
                    NetlinkPayload::Done(_) => return Ok((answers, interrupted)),
                    _ => {}
                }
            }
        }
    }
}

fn link_message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn route_message(to: Ipv4Net, kind: RouteType, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = to.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = OURS;
    message.header.scope = scope;
    message.header.kind = kind;
    if to.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to.network())));
    }
    message
}

/// Of a low rank: the network's own route, while there is one, comes first.
fn unreachable_message(net: Ipv4Net) -> RouteMessage {
    let mut message = route_message(net, RouteType::Unreachable, RouteScope::Universe);
    message.attributes.push(RouteAttribute::Priority(u32::MAX));
    message
}

fn as_link(answer: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(link) = answer else { return None };
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(Link { index: link.header.index, name })
}

fn but_for(result: io::Result<()>, fine: i32) -> io::Result<()> {
    result.or_else(|error| if error.raw_os_error() == Some(fine) { Ok(()) } else { Err(error) })
}

fn no_answer() -> io::Error {
    io::Error::other("the kernel's answer says nothing of it")
}
