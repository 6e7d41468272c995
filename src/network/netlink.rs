// SPDX-License-Identifier: Apache-2.0
//! Interfaces, addresses and routes of the host, through the kernel's route netlink (rtnetlink(7)).

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number, which no other interface of this network namespace has.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The bridge that it is a port of, by number.
    pub bridge: Option<u32>,
    /// The text that was given to it.
    pub alias: Option<String>,
}

/// A route of the host that is not its default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads to.
    pub to: IpNet,
    /// The interface that it leads through, by number.
    pub link: Option<u32>,
}

/// What is to become of an interface, which comes up; what is `None` stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The bridge that it becomes a port of, by number.
    pub bridge: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// A text that `ip link` shows.
    pub alias: Option<String>,
    /// It goes down instead.
    pub down: bool,
}

/// A connection to the kernel, in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Connects.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes a bridge that forwards at once and takes no part in spanning trees.
    ///
    /// # Errors
    /// The kernel's: `AlreadyExists`, or no permission.
    pub fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        let data = InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)]);
        let info = vec![LinkInfo::Kind(InfoKind::Bridge), LinkInfo::Data(data)];
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes a pair of interfaces: one here, and one with this name and Ethernet address in another network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_pair(&mut self, name: &str, other: &str, mac: [u8; 6], namespace: RawFd) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(other.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::NetNsFd(namespace),
        ];
        let mut message = LinkMessage::default();
        let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))];
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(info)];
        self.ask(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Has everything that no other route is for go through an interface, to a router that need not be in its network.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        let (family, gateway) = match gateway {
            IpAddr::V4(address) => (AddressFamily::Inet, RouteAddress::Inet(address)),
            IpAddr::V6(address) => (AddressFamily::Inet6, RouteAddress::Inet6(address)),
        };
        message.header.address_family = family;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.header.flags = RouteFlags::Onlink;
        message.attributes = vec![RouteAttribute::Gateway(gateway), RouteAttribute::Oif(index)];
        self.ask(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn change(&mut self, index: u32, change: &Change) -> io::Result<()> {
        let mut message = link(index);
        message.header.flags = if change.down { LinkFlags::empty() } else { LinkFlags::Up };
        message.header.change_mask = LinkFlags::Up;
        message.attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        message.attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
        message.attributes.extend(change.bridge.map(LinkAttribute::Controller));
        message.attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Removes an interface.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&mut self, index: u32) -> io::Result<()> {
        self.ask(RouteNetlinkMessage::DelLink(link(index)), 0)
    }

    /// Gives an interface an address, and the host a route to its network. It may have it already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = address.prefix_len();
        message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        match address {
            IpNet::V4(address) => {
                message.header.family = AddressFamily::Inet;
                message.attributes.push(AddressAttribute::Broadcast(address.broadcast()));
            }
            IpNet::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                // Nobody else can have it, and without this it could not be bound for a second or two.
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.ask(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.push(read_link(&message));
            }
        })?;
        Ok(links)
    }

    /// Routes of both IP versions, without default routes and those to addresses of the host itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(&mut self) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let result = self.dump(RouteNetlinkMessage::GetRoute(message), |message| {
                if let RouteNetlinkMessage::NewRoute(message) = message {
                    routes.extend(read_route(&message));
                }
            });
            match result {
                // A kernel without IPv6 has no routes of it.
                Err(error) if family == AddressFamily::Inet6 => log::debug!("cannot list IPv6 routes: {error}"),
                result => result?,
            }
        }
        Ok(routes)
    }

    /// Sends a request and waits until the kernel has done it.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        self.receive(|_| ())
    }

    fn dump(&mut self, message: RouteNetlinkMessage, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        self.receive(each)
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Takes messages until the one that ends the answer.
    fn receive(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
                // Messages are aligned to four bytes (`NLMSG_ALIGN`).
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => each(message),
                    _ => {}
                }
            }
        }
    }
}

fn link(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, name: String::new(), bridge: None, alias: None };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(bridge) => link.bridge = Some(*bridge),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            _ => {}
        }
    }
    link
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut to = None;
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::V4(*address)),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    let to = IpNet::new(to?, message.header.destination_prefix_length).ok()?;
    (to.prefix_len() > 0).then(|| Route { to: to.trunc(), link })
}
