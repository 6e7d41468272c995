// SPDX-License-Identifier: Apache-2.0
//! Which container gets which address, and which network which subnet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::model::{Ipv4Pool, Ipv6Pool, Network};
use crate::vmm::devices::virtio::net::MacAddress;

/// Addresses that are kept for containers that do not run; those detached longest ago lose theirs.
const KEPT: usize = 1024;

/// Bits of the subnets that are chosen without being asked for: 4093 containers each.
const PREFIX: u8 = 20;

/// Where subnets are chosen from, in this order: private (RFC 1918), and apart from Docker's and Podman's own first
/// choices (172.17.0.0/16 and 10.88.0.0/16).
const POOLS: [(Ipv4Addr, u8); 3] =
    [(Ipv4Addr::new(10, 209, 0, 0), 16), (Ipv4Addr::new(172, 24, 0, 0), 13), (Ipv4Addr::new(192, 168, 0, 0), 16)];

/// Why there is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address belongs to a container that is attached.
    #[error("all addresses of {0} are in use")]
    Full(Ipv4Net),
    /// The address is not one of this network.
    #[error("{0} is not in {1}")]
    Outside(Ipv4Addr, Ipv4Net),
    /// The address of the network itself, of all its members, or of the host's end.
    #[error("{0} is reserved in {1}")]
    Reserved(Ipv4Addr, Ipv4Net),
    /// Another container is attached with it.
    #[error("container {1} has {0}")]
    Taken(Ipv4Addr, String),
    /// Every subnet that could be chosen overlaps with a route of this host.
    #[error("this host has routes that overlap with every private subnet")]
    NoSubnet,
}

/// Finds the IPv4 address for `container`: the one that is wanted, or that it had, or the lowest that nobody has.
/// Takes addresses that are only kept for others, or a spare's, where there is no other way.
///
/// # Errors
/// See [`IpamError`].
pub fn assign(network: &mut Network, container: &str, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, IpamError> {
    let had = network.leases.get(container).map(|lease| lease.ipv4);
    let address = match wanted.or(had.filter(|&address| is_assignable(network, address))) {
        Some(address) => check(network, container, address)?,
        None => lowest(network)?,
    };
    // Only one may have it; whoever is left had it kept.
    network.leases.retain(|id, lease| id == container || lease.ipv4 != address);
    forget_oldest(network, KEPT);
    Ok(address)
}

fn check(network: &Network, container: &str, address: Ipv4Addr) -> Result<Ipv4Addr, IpamError> {
    let subnet = network.ipv4.subnet;
    if !subnet.contains(&address) {
        return Err(IpamError::Outside(address, subnet));
    }
    if !is_assignable(network, address) {
        return Err(IpamError::Reserved(address, subnet));
    }
    let other =
        network.leases.iter().find(|(id, lease)| !lease.gives_way() && *id != container && lease.ipv4 == address);
    match other {
        Some((id, lease)) => Err(IpamError::Taken(address, lease.names.first().unwrap_or(id).clone())),
        None => Ok(address),
    }
}

fn lowest(network: &mut Network) -> Result<Ipv4Addr, IpamError> {
    let range = network.ipv4.range.unwrap_or(network.ipv4.subnet);
    loop {
        let taken: std::collections::HashSet<_> = network.leases.values().map(|lease| lease.ipv4).collect();
        let free = |address: &Ipv4Addr| is_assignable(network, *address) && !taken.contains(address);
        // At most as many steps as there are leases, and three: `hosts()` is an iterator over numbers.
        if let Some(address) = all(range).find(free) {
            return Ok(address);
        }
        let kept = network.leases.values().filter(|lease| lease.gives_way() && range.contains(&lease.ipv4)).count();
        if kept == 0 {
            return Err(IpamError::Full(range));
        }
        forget_oldest(network, network.leases.values().filter(|lease| lease.gives_way()).count() - 1);
    }
}

fn all(range: Ipv4Net) -> impl Iterator<Item = Ipv4Addr> {
    (u32::from(range.network())..=u32::from(range.broadcast())).map(Ipv4Addr::from)
}

/// Whether a container can have it: not the network's own, the broadcast or a gateway's.
fn is_assignable(network: &Network, address: Ipv4Addr) -> bool {
    let Ipv4Pool { subnet, gateway, .. } = network.ipv4;
    let edges = subnet.prefix_len() < 31 && (address == subnet.network() || address == subnet.broadcast());
    let v6_gateway = network.ipv6.as_ref().is_some_and(|pool| ipv6_for(pool, subnet, address) == pool.gateway);
    subnet.contains(&address) && !edges && address != gateway && !v6_gateway
}

/// Drops what is kept for detached containers, and spares, until only `keep` of it are left.
fn forget_oldest(network: &mut Network, keep: usize) {
    let mut kept: Vec<_> = network.leases.iter().filter(|(_, lease)| lease.gives_way()).collect();
    if kept.len() <= keep {
        return;
    }
    kept.sort_by_key(|(_, lease)| lease.since);
    let gone: Vec<String> = kept.iter().take(kept.len() - keep).map(|(id, _)| (*id).clone()).collect();
    gone.iter().for_each(|id| _ = network.leases.remove(id));
}

/// The IPv6 address that goes with an IPv4 address: as far from the start of its subnet.
pub fn ipv6_for(pool: &Ipv6Pool, subnet: Ipv4Net, address: Ipv4Addr) -> Ipv6Addr {
    let offset = u32::from(address) - u32::from(subnet.network()).min(u32::from(address));
    Ipv6Addr::from(u128::from(pool.subnet.network()) | u128::from(offset))
}

/// The address of a card that has this IPv4 address, as Docker makes it: 02:42 and the four bytes.
pub fn mac_for(address: Ipv4Addr) -> Result<MacAddress, crate::vmm::devices::virtio::net::MacError> {
    let [a, b, c, d] = address.octets();
    MacAddress::new([0x02, 0x42, a, b, c, d])
}

/// The first address of a subnet that is not the subnet's own: the host's end by default.
pub fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) | u32::from(subnet.prefix_len() < 31))
}

/// A private IPv4 subnet that overlaps with none of `taken` and holds none of `avoid`.
///
/// # Errors
/// [`IpamError::NoSubnet`].
pub fn free_subnet(taken: &[IpNet], avoid: &[IpAddr]) -> Result<Ipv4Net, IpamError> {
    let candidates = POOLS.iter().filter_map(|&(address, prefix)| Ipv4Net::new(address, prefix).ok());
    let mut candidates = candidates.filter_map(|pool| pool.subnets(PREFIX).ok()).flatten();
    let free = |subnet: &Ipv4Net| {
        let subnet = IpNet::V4(*subnet);
        !taken.iter().any(|other| overlap(&subnet, other)) && !avoid.iter().any(|address| subnet.contains(address))
    };
    candidates.find(free).ok_or(IpamError::NoSubnet)
}

/// A unique local IPv6 subnet (RFC 4193 §3.2.2) from ten random bytes.
pub fn unique_local(random: [u8; 7]) -> Ipv6Net {
    let [a, b, c, d, e, f, g] = random;
    let address = Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, 0, 0, 0, 0, 0, 0, 0, 0]);
    Ipv6Net::new_assert(address, 64)
}

/// Whether two subnets have an address in common.
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

#[cfg(test)]
#[path = "ipam_test.rs"]
mod tests;
