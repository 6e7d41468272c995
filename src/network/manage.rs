// SPDX-License-Identifier: Apache-2.0
//! Creating, finding and removing networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustix::rand::GetRandomFlags;

use super::attach::settled;
use super::dns::Resolvers;
use super::model::{DEFAULT, DEFAULT_MTU, Ipv4Pool, Ipv6Pool, Network};
use super::store::{Locked, Store};
use super::{host, ipam};
use crate::failure::Failure;

/// Docker's name for the option that sets the largest packet.
const MTU_OPTION: &str = "com.docker.network.driver.mtu";
/// Names that mean something else where a network is named.
const RESERVED: [&str; 4] = ["none", "host", "default", "container"];
/// What IPv4 hosts must take (RFC 791), and what a TAP can have.
const MTUS: std::ops::RangeInclusive<u16> = 576..=65521;

/// A network to be created.
#[derive(Clone, Debug, Default)]
pub struct New {
    /// Its name.
    pub name: String,
    /// Its subnets, at most one of each IP version; an IPv4 one is chosen where there is none.
    pub subnets: Vec<IpNet>,
    /// The host's ends, each in one of the subnets; the first address where there is none.
    pub gateways: Vec<IpAddr>,
    /// The part of the IPv4 subnet that containers get addresses from without asking.
    pub range: Option<Ipv4Net>,
    /// No way out.
    pub internal: bool,
    /// With IPv6, in a random unique local subnet unless one is given.
    pub ipv6: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// What was done about a network that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its name.
    pub name: String,
}

/// Creates a network. The default one can be created anew, with other addresses, while nobody is attached to it.
///
/// # Errors
/// There is one of that name, or addresses that are no good.
pub fn create(store: &Store, new: &New) -> Result<Network, Failure> {
    let what = format!("cannot create network `{}`", new.name);
    if !is_name(&new.name) || RESERVED.contains(&new.name.as_str()) {
        let why = "that cannot be a network's name";
        return Err(Failure::new(what, why, "letters, digits, `_`, `.` and `-`, the first a letter or digit"));
    }
    let locked = store.lock()?;
    let mut others = settled(&locked)?;
    if let Some(at) = others.iter().position(|other| other.name == new.name) {
        let other = others.swap_remove(at);
        if new.name != DEFAULT {
            return Err(Failure::new(
                what,
                "there is a network of that name",
                format!("`coracle network rm {}`", new.name),
            ));
        }
        refuse_in_use(&other, &what)?;
        if other.is_up() {
            // The bridge of a microVM that waits, and its addresses.
            host::fit(&locked, &others)?;
        }
    }
    let mut network = build(new, &others, &what)?;
    if network.name == DEFAULT {
        network.bridge = host::Marks::of(store.root()).default_bridge;
    }
    locked.save(&network)?;
    Ok(network)
}

fn build(new: &New, others: &[Network], what: &str) -> Result<Network, Failure> {
    let fail = |why: String, next: &str| Failure::new(what, why, next);
    let mtu = mtu(&new.options, what)?;
    let id = random_id(what)?;
    let bridge = host::bridge_name(&id);
    let taken: Vec<IpNet> = others.iter().flat_map(Network::subnets).collect();
    let routed = host::routed(None)?;
    for (at, subnet) in new.subnets.iter().enumerate() {
        if *subnet != subnet.trunc() {
            return Err(fail(format!("{subnet} is an address in a subnet"), &format!("--subnet {}", subnet.trunc())));
        }
        if new.subnets.iter().take(at).any(|other| other.addr().is_ipv4() == subnet.addr().is_ipv4()) {
            return Err(fail("there are two subnets of one IP version".to_owned(), "one --subnet for each version"));
        }
        if let Some(other) = others.iter().find(|other| other.subnets().iter().any(|own| ipam::overlap(own, subnet))) {
            return Err(fail(format!("{subnet} overlaps with network {}", other.name), "`coracle network inspect`"));
        }
        if let Some(route) = routed.iter().find(|route| ipam::overlap(route, subnet)) {
            return Err(fail(format!("this host has a route to {route}, which overlaps with {subnet}"), "`ip route`"));
        }
    }
    let v4 = new.subnets.iter().find_map(|subnet| match subnet {
        IpNet::V4(subnet) => Some(*subnet),
        IpNet::V6(_) => None,
    });
    let v6 = new.subnets.iter().find_map(|subnet| match subnet {
        IpNet::V6(subnet) => Some(*subnet),
        IpNet::V4(_) => None,
    });
    let subnet = match v4 {
        Some(subnet) if subnet.prefix_len() > 30 => {
            return Err(fail(
                format!("{subnet} has no room for a container"),
                "--subnet with a prefix of 30 bits or less",
            ));
        }
        Some(subnet) => subnet,
        None => {
            let taken = [taken, routed].concat();
            ipam::free_subnet(&taken, &Resolvers::read().servers)
                .map_err(|error| fail(error.to_string(), "--subnet with one that is free"))?
        }
    };
    let v6 = match v6 {
        Some(v6) if u32::from(v6.prefix_len()) + 32 - u32::from(subnet.prefix_len()) > 128 => {
            return Err(fail(format!("{v6} has fewer addresses than {subnet}"), "a --subnet with a shorter prefix"));
        }
        None if new.ipv6 => Some(unique_local(what)?),
        v6 => v6,
    };
    let ipv6 = v6.map(|subnet| Ipv6Pool { subnet, gateway: Ipv6Addr::from(u128::from(subnet.network()) | 1) });
    let ipv4 = Ipv4Pool { subnet, gateway: ipam::first_host(subnet), range: new.range, automatic: v4.is_none() };
    let mut network = Network {
        id,
        name: new.name.clone(),
        created: jiff::Timestamp::now().to_string(),
        bridge,
        internal: new.internal,
        ipv4,
        ipv6,
        mtu,
        labels: new.labels.clone(),
        options: new.options.clone(),
        leases: BTreeMap::new(),
    };
    for gateway in &new.gateways {
        set_gateway(&mut network, *gateway, what)?;
    }
    if let Some(range) = new.range.filter(|range| !network.ipv4.subnet.contains(range)) {
        let why = format!("{range} is not in {}", network.ipv4.subnet);
        return Err(fail(why, "--ip-range with a part of --subnet"));
    }
    Ok(network)
}

fn set_gateway(network: &mut Network, gateway: IpAddr, what: &str) -> Result<(), Failure> {
    let fits = match gateway {
        IpAddr::V4(address) => {
            let subnet = network.ipv4.subnet;
            network.ipv4.gateway = address;
            subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
        }
        IpAddr::V6(address) => network.ipv6.as_mut().is_some_and(|pool| {
            pool.gateway = address;
            pool.subnet.contains(&address) && address != pool.subnet.network()
        }),
    };
    if fits {
        return Ok(());
    }
    let why = format!("{gateway} is not an address for a host in any of the network's subnets");
    Err(Failure::new(what, why, "--gateway with an address of --subnet"))
}

fn mtu(options: &BTreeMap<String, String>, what: &str) -> Result<u16, Failure> {
    let mut mtu = DEFAULT_MTU;
    for (name, value) in options {
        if name != MTU_OPTION {
            return Err(Failure::new(what, format!("option `{name}` is not known"), format!("-o {MTU_OPTION}=1400")));
        }
        mtu = value.parse().ok().filter(|mtu| MTUS.contains(mtu)).ok_or_else(|| {
            let why = format!("`{value}` is no size of packets in bytes");
            Failure::new(what, why, format!("-o {MTU_OPTION}= a number from {} to {}", MTUS.start(), MTUS.end()))
        })?;
    }
    Ok(mtu)
}

/// Docker's rule for names, which also makes them good for files.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len())
        && name.bytes().all(fits)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

fn random<const N: usize>(what: &str) -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    match rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Failure::new(what, format!("no random numbers: {error}"), "the same again")),
    }
}

fn random_id(what: &str) -> Result<String, Failure> {
    Ok(random::<32>(what)?.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
}

fn unique_local(what: &str) -> Result<Ipv6Net, Failure> {
    random::<7>(what).map(ipam::unique_local)
}

/// Makes the default network, where it is not there yet.
pub(super) fn ensure_default(locked: &Locked, networks: &mut Vec<Network>) -> Result<(), Failure> {
    if networks.iter().any(|network| network.name == DEFAULT) {
        return Ok(());
    }
    let new = New { name: DEFAULT.to_owned(), ..New::default() };
    let mut network = build(&new, networks, "cannot make the default network")?;
    network.bridge = host::Marks::of(locked.store().root()).default_bridge;
    locked.save(&network)?;
    networks.push(network);
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(())
}

/// All networks, without containers that are dead, of which nothing is left on the host either.
///
/// # Errors
/// A file cannot be read or written.
pub fn list(store: &Store) -> Result<Vec<Network>, Failure> {
    let locked = store.lock()?;
    let networks = settled(&locked)?;
    if host::may_change()
        && let Err(failure) = host::fit(&locked, &networks)
    {
        log::warn!("{failure}");
    }
    Ok(networks)
}

/// The network with this name, or with an ID that begins so.
///
/// # Errors
/// There is none, or there are several.
pub fn find<'a>(networks: &'a [Network], text: &str, what: &str) -> Result<&'a Network, Failure> {
    position(networks, text, what).and_then(|at| networks.get(at).ok_or_else(|| missing(what)))
}

pub(super) fn position(networks: &[Network], text: &str, what: &str) -> Result<usize, Failure> {
    let text = if text == "default" { DEFAULT } else { text };
    if let Some(at) = networks.iter().position(|network| network.name == text) {
        return Ok(at);
    }
    let mut by_id = networks.iter().enumerate().filter(|(_, network)| !text.is_empty() && network.id.starts_with(text));
    match (by_id.next(), by_id.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => {
            Err(Failure::new(what, format!("several networks have an ID that begins with {text}"), "more digits of it"))
        }
        (None, _) => Err(missing(what)),
    }
}

pub(super) fn missing(what: &str) -> Failure {
    Failure::new(what, "there is no such network", "`coracle network ls`; `coracle network create` makes one")
}

/// Removes a network, by name or ID.
///
/// # Errors
/// There is none, it is the default one, or a container is attached to it.
pub fn remove(store: &Store, text: &str) -> Result<Removed, Failure> {
    let what = format!("cannot remove network `{text}`");
    let locked = store.lock()?;
    let mut networks = settled(&locked)?;
    let at = position(&networks, text, &what)?;
    let network = networks.get(at).ok_or_else(|| missing(&what))?;
    if network.name == DEFAULT {
        let next = format!("`coracle network create --subnet … {DEFAULT}` gives it other addresses");
        return Err(Failure::new(what, "it is the default network", next));
    }
    refuse_in_use(network, &what)?;
    locked.remove(&network.name)?;
    let network = networks.swap_remove(at);
    // A microVM that waits has been no hindrance.
    if network.is_up() {
        host::fit(&locked, &networks)?;
    }
    Ok(Removed { name: network.name })
}

/// Removes all networks, but for the default one, that nobody is attached to and `wanted` says yes to.
///
/// # Errors
/// A file cannot be read or removed.
pub fn prune(store: &Store, wanted: impl Fn(&Network) -> bool) -> Result<Vec<Removed>, Failure> {
    let locked = store.lock()?;
    let unused =
        |network: &Network| network.name != DEFAULT && network.containers().next().is_none() && wanted(network);
    let (gone, kept): (Vec<_>, Vec<_>) = settled(&locked)?.into_iter().partition(unused);
    gone.iter().try_for_each(|network| locked.remove(&network.name))?;
    if gone.iter().any(Network::is_up) {
        host::fit(&locked, &kept)?;
    }
    Ok(gone.into_iter().map(|network| Removed { name: network.name }).collect())
}

fn refuse_in_use(network: &Network, what: &str) -> Result<(), Failure> {
    let names: Vec<&str> = network.containers().map(|(id, lease)| lease.names.first().unwrap_or(id).as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(" ");
    Err(Failure::new(what, format!("containers are attached to it: {names}"), format!("`coracle stop {names}`")))
}
