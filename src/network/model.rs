// SPDX-License-Identifier: Apache-2.0
//! What a network is, as it is kept on the disk.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ports::Published;
use crate::vmm::devices::virtio::net::MacAddress;

/// The network that containers are in unless they name another; it is there without having been created.
pub const DEFAULT: &str = "bridge";

/// Bytes of the largest packet in a network that does not say otherwise: Ethernet's.
pub const DEFAULT_MTU: u16 = 1500;

/// A network of containers on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hexadecimal digits, made at random.
    pub id: String,
    /// Its name, which is also that of its file.
    pub name: String,
    /// When it was created, as RFC 3339 has it.
    pub created: String,
    /// The bridge's name on the host, while there is one.
    pub bridge: String,
    /// Its containers reach each other only, not the world outside.
    pub internal: bool,
    /// IPv4 addresses.
    pub ipv4: Ipv4Pool,
    /// IPv6 addresses, where it has any.
    pub ipv6: Option<Ipv6Pool>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Options as the user gave them (`-o`).
    pub options: BTreeMap<String, String>,
    /// Who has, or last had, which addresses: by the container's ID.
    pub leases: BTreeMap<String, Lease>,
}

/// The IPv4 addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv4Pool {
    /// All of them.
    pub subnet: Ipv4Net,
    /// That of the host's end.
    pub gateway: Ipv4Addr,
    /// The part of them that containers get without asking, where not all.
    pub range: Option<Ipv4Net>,
    /// Chosen by Coracle, which may choose another while nobody is attached.
    pub automatic: bool,
}

/// The IPv6 addresses of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipv6Pool {
    /// All of them.
    pub subnet: Ipv6Net,
    /// That of the host's end.
    pub gateway: Ipv6Addr,
}

/// What a container has in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Names by which the others find it: the container's name comes first.
    pub names: Vec<String>,
    /// The address of its network card.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address, in a network with IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// The interface on the host.
    pub tap: String,
    /// That is one end of a pair, whose other end is in a network namespace, and not a TAP.
    #[serde(default)]
    pub pair: bool,
    /// A microVM that waits for a container has it, and not a container.
    #[serde(default)]
    pub spare: bool,
    /// It is attached, or its monitor died before it could detach; else only its addresses are kept for it.
    pub attached: bool,
    /// When it was attached or detached, in seconds since 1970.
    pub since: u64,
    /// Its ports on the host, while it is attached.
    pub ports: Vec<Published>,
}

impl Lease {
    /// Whether another container may have its addresses, where there is no other way.
    pub fn gives_way(&self) -> bool {
        !self.attached || self.spare
    }
}

impl Network {
    /// The containers that are attached, as far as the file says: by their IDs.
    pub fn containers(&self) -> impl Iterator<Item = (&String, &Lease)> {
        self.leases.iter().filter(|(_, lease)| lease.attached && !lease.spare)
    }

    /// Whether a container is attached, or a microVM waits to be one, as far as the file says.
    pub fn is_up(&self) -> bool {
        self.leases.values().any(|lease| lease.attached)
    }

    /// The host's end of the network, with prefix lengths.
    pub fn gateways(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(self.ipv4.gateway, self.ipv4.subnet.prefix_len()).into();
        let v6 = self.ipv6.as_ref().map(|pool| Ipv6Net::new_assert(pool.gateway, pool.subnet.prefix_len()).into());
        std::iter::once(v4).chain(v6).collect()
    }

    /// The networks' address ranges.
    pub fn subnets(&self) -> Vec<IpNet> {
        let v6 = self.ipv6.as_ref().map(|pool| pool.subnet.into());
        std::iter::once(self.ipv4.subnet.into()).chain(v6).collect()
    }

    /// The addresses of `lease`, with prefix lengths.
    pub fn addresses(&self, lease: &Lease) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(lease.ipv4, self.ipv4.subnet.prefix_len()).into();
        let v6 = self.ipv6.as_ref().zip(lease.ipv6);
        let v6 = v6.map(|(pool, address)| Ipv6Net::new_assert(address, pool.subnet.prefix_len()).into());
        std::iter::once(v4).chain(v6).collect()
    }

    /// The address of the container that has this name here. Names are compared as DNS does, without case.
    pub fn find(&self, name: &str) -> Option<&Lease> {
        let has = |lease: &&Lease| lease.attached && lease.names.iter().any(|other| other.eq_ignore_ascii_case(name));
        self.leases.values().find(has)
    }

    /// The container that has this address.
    pub fn owner(&self, address: IpAddr) -> Option<&Lease> {
        let has = |lease: &&Lease| match address {
            IpAddr::V4(address) => lease.ipv4 == address,
            IpAddr::V6(address) => lease.ipv6 == Some(address),
        };
        self.leases.values().find(|lease| lease.attached && has(lease))
    }

    /// Whether an address belongs to this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.subnets().iter().any(|subnet| subnet.contains(&address))
    }
}
