// SPDX-License-Identifier: Apache-2.0
//! Interfaces, addresses and routes: all in one message to the kernel (`rtnetlink(7)`).

use alloc::format;
use alloc::vec::Vec;
use core::net::IpAddr;

use coracle_protocol::{Interface, Reconnected};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result, write};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::sys;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_CREATE | NLM_F_REPLACE`: what is there already is right already.
const NLM_F_SET: u16 = 0x500;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// An address of IPv6 can be used at once: the host has made sure that it is nobody else's.
const IFA_F_NODAD: u8 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
/// The gateway is on this link, whatever the addresses say.
const RTNH_F_ONLINK: u32 = 4;
const IFF_UP: u32 = 1;
/// The kernel's first interface.
const LOOPBACK: u32 = 1;

/// Does ahead what costs the kernel most when a card comes up: the card gets its receive buffers, and IPv6, of which
/// most networks have none, is off. The cards are down again then.
///
/// # Errors
/// The kernel's.
pub fn make_ready() -> Result<()> {
    // No protocol is the first one, NETLINK_ROUTE. A kernel without a network has no cards.
    let Ok(socket) = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None) else {
        return Ok(());
    };
    let mut batch = Batch::default();
    for number in 0.. {
        let name = format!("eth{number}");
        let Ok(index) = sys::interface_index(&socket, name.as_bytes()) else { break };
        set_ipv6(&name, false)?;
        batch.link(index, None);
        batch.link_down(index);
    }
    if batch.0.is_empty() {
        return Ok(());
    }
    send(&socket, &batch.0, SendFlags::empty())?;
    first_error(&socket)
}

/// Switches IPv6 of an interface on or off. A kernel that has none is one where it is off.
fn set_ipv6(name: &str, on: bool) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match open(path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) if !on => Ok(()),
        file => write(&file?, if on { b"0" } else { b"1" }).map(drop),
    }
}

/// Brings up the loopback and these; `ready` says that [`make_ready`] has been called. A kernel without a network has no
/// interfaces, and then nobody may ask for one.
///
/// An interface that has no address of IPv6 has no IPv6 at all, as with Docker: else the kernel would give it one, and
/// ask the network for routers, which takes longer than all else here.
///
/// # Errors
/// The kernel's: there is no such interface, or an address makes no sense.
pub fn configure(interfaces: &[Interface], ready: bool) -> Result<()> {
    let socket = match socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Err(_) if interfaces.is_empty() => return Ok(()),
        other => other?,
    };
    let mut batch = Batch::default();
    batch.link(LOOPBACK, None);
    for one in interfaces {
        let index = sys::interface_index(&socket, one.name.as_str().as_bytes())?;
        let ipv6 = has_ipv6(one);
        if ipv6 || !ready {
            set_ipv6(one.name.as_str(), ipv6)?;
        }
        batch.interface(index, one);
    }
    send(&socket, &batch.0, SendFlags::empty())?;
    first_error(&socket)
}

/// Gives cards that are down other addresses: the first is `eth0`'s.
///
/// # Errors
/// The kernel's: there is no such interface, or it is up.
pub fn set_addresses(macs: &[[u8; 6]]) -> Result<()> {
    if macs.is_empty() {
        return Ok(());
    }
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let mut batch = Batch::default();
    for (number, mac) in macs.iter().enumerate() {
        let index = sys::interface_index(&socket, format!("eth{number}").as_bytes())?;
        batch.mac(index, mac);
    }
    send(&socket, &batch.0, SendFlags::empty())?;
    first_error(&socket)
}

/// Gives interfaces that are up other identities: card, addresses and routes.
///
/// # Errors
/// The kernel's: there is no such interface, or an address makes no sense.
pub fn reconnect(network: &[Reconnected]) -> Result<()> {
    if network.is_empty() {
        return Ok(());
    }
    let socket = || socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None);
    let (away, anew) = (socket()?, socket()?);
    let (mut leave, mut come) = (Batch::default(), Batch::default());
    for one in network {
        let index = sys::interface_index(&anew, one.interface.name.as_str().as_bytes())?;
        one.former.iter().for_each(|former| leave.former_address(index, former.address, former.prefix));
        set_ipv6(one.interface.name.as_str(), has_ipv6(&one.interface))?;
        // Routes and neighbours go as it goes down.
        come.link_down(index);
        come.mac(index, &one.mac);
        come.interface(index, &one.interface);
    }
    if !leave.0.is_empty() {
        // The container may have removed some itself.
        send(&away, &leave.0, SendFlags::empty())?;
    }
    send(&anew, &come.0, SendFlags::empty())?;
    first_error(&anew)
}

fn has_ipv6(interface: &Interface) -> bool {
    interface.addresses.iter().any(|address| address.address.is_ipv6())
}

/// The kernel has done everything by now; it answers only what failed.
fn first_error(socket: &OwnedFd) -> Result<()> {
    let mut answer = [0; 256];
    match recv(socket, &mut answer, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => match answer {
            // A `struct nlmsghdr`, then the error, negated.
            [_, _, _, _, k0, k1, _, _, _, _, _, _, _, _, _, _, e0, e1, e2, e3, ..]
                if u16::from_ne_bytes([k0, k1]) == NLMSG_ERROR =>
            {
                match i32::from_ne_bytes([e0, e1, e2, e3]).checked_neg() {
                    Some(error @ 1..=4095) => Err(Errno::from_raw_os_error(error)),
                    _ => Ok(()),
                }
            }
            _ => Err(Errno::PROTO),
        },
    }
}

/// Messages behind each other.
#[derive(Default)]
struct Batch(Vec<u8>);

impl Batch {
    /// Brings it up, with all that is its own.
    fn interface(&mut self, index: u32, one: &Interface) {
        self.link(index, one.mtu);
        one.addresses.iter().for_each(|address| self.address(index, address.address, address.prefix));
        one.gateways.iter().for_each(|gateway| self.default_route(index, *gateway));
    }

    fn link_down(&mut self, index: u32) {
        let body = [[0; 4], index.to_ne_bytes(), [0; 4], IFF_UP.to_ne_bytes()].concat();
        self.message(RTM_NEWLINK, 0, &body, core::iter::empty());
    }

    fn former_address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let body = [[family(address), prefix, 0, 0], index.to_ne_bytes()].concat();
        self.message(RTM_DELADDR, 0, &body, core::iter::once((IFA_LOCAL, &octets(address)[..])));
    }

    fn link(&mut self, index: u32, mtu: Option<u32>) {
        // A `struct ifinfomsg`: family, type, index, flags, which of them to change.
        let body = [[0; 4], index.to_ne_bytes(), IFF_UP.to_ne_bytes(), IFF_UP.to_ne_bytes()].concat();
        let mtu = mtu.map(u32::to_ne_bytes);
        self.message(RTM_NEWLINK, 0, &body, mtu.iter().map(|mtu| (IFLA_MTU, &mtu[..])));
    }

    fn mac(&mut self, index: u32, mac: &[u8; 6]) {
        let body = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
        self.message(RTM_NEWLINK, 0, &body, core::iter::once((IFLA_ADDRESS, &mac[..])));
    }

    fn address(&mut self, index: u32, address: IpAddr, prefix: u8) {
        let (family, flags) = (family(address), if address.is_ipv6() { IFA_F_NODAD } else { 0 });
        // A `struct ifaddrmsg`: family, prefix, flags, scope, index.
        let body = [[family, prefix, flags, 0], index.to_ne_bytes()].concat();
        let octets = octets(address);
        let broadcast = match address {
            IpAddr::V4(address) if prefix < 31 => {
                let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                Some((address.to_bits() | host_bits).to_be_bytes())
            }
            _ => None,
        };
        let attributes = [(IFA_LOCAL, &octets[..]), (IFA_ADDRESS, &octets[..])].into_iter();
        self.message(
            RTM_NEWADDR,
            NLM_F_SET,
            &body,
            attributes.chain(broadcast.iter().map(|address| (IFA_BROADCAST, &address[..]))),
        );
    }

    fn default_route(&mut self, index: u32, gateway: IpAddr) {
        // A `struct rtmsg`: family, lengths of destination and source, type of service, table, protocol, scope, type;
        // flags.
        let body =
            [[family(gateway), 0, 0, 0], [RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST], RTNH_F_ONLINK.to_ne_bytes()];
        let attributes = [(RTA_GATEWAY, &octets(gateway)[..]), (RTA_OIF, &index.to_ne_bytes()[..])];
        self.message(RTM_NEWROUTE, NLM_F_SET, &body.concat(), attributes.into_iter());
    }

    fn message<'a>(&mut self, kind: u16, flags: u16, body: &[u8], attributes: impl Iterator<Item = (u16, &'a [u8])>) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        self.0.extend_from_slice(&[0; 8]);
        self.0.extend_from_slice(body);
        for (kind, value) in attributes {
            // No value is longer than an address.
            let length = u16::try_from(4 + value.len()).unwrap_or(4);
            self.0.extend_from_slice(&length.to_ne_bytes());
            self.0.extend_from_slice(&kind.to_ne_bytes());
            self.0.extend_from_slice(value);
            // Everything starts at a multiple of four.
            self.0.resize(self.0.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(self.0.len() - start).unwrap_or(0);
        if let Some(place) = self.0.get_mut(start..start + 4) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    u8::try_from(family.as_raw()).unwrap_or(0)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_kernel_s_layout() {
        let mut batch = Batch::default();
        batch.address(2, "10.1.2.3".parse().unwrap(), 24);
        assert_eq!(batch.0.len(), 16 + 8 + 3 * 8);
        assert_eq!(batch.0.get(..8), Some(&[48, 0, 0, 0, 20, 0, 1, 5][..]));
        assert_eq!(batch.0.get(16..24), Some(&[2, 24, 0, 0, 2, 0, 0, 0][..]));
        assert_eq!(batch.0.get(40..), Some(&[8, 0, 4, 0, 10, 1, 2, 255][..]));
        let mut other = Batch::default();
        other.mac(3, &[2, 0, 0, 0, 0, 9]);
        assert_eq!(other.0.get(..4), Some(&[44, 0, 0, 0][..]));
        assert_eq!(other.0.get(32..), Some(&[10, 0, 1, 0, 2, 0, 0, 0, 0, 9, 0, 0][..]));
        batch.default_route(2, "fe80::1".parse().unwrap());
        assert_eq!(batch.0.get(48..56), Some(&[56, 0, 0, 0, 24, 0, 1, 5][..]));
        assert_eq!(batch.0.len(), 48 + 16 + 12 + 20 + 8);
        assert_eq!(batch.0.get(64..76), Some(&[10, 0, 0, 0, 254, 3, 0, 1, 4, 0, 0, 0][..]));
    }
}
