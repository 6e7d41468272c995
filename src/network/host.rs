// SPDX-License-Identifier: Apache-2.0
//! Makes the host fit the networks that are up: bridges, TAPs, rules, forwarding.
//!
//! There is one way, [`fit`], whatever has changed: it compares what should be there with what is, so that what a killed
//! process left behind, or someone else took away, is mended by whoever comes next.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use sha2::{Digest as _, Sha256};

use super::ipam;
use super::model::{Lease, Network};
use super::namespace::{self, NetworkNamespace};
use super::netlink::{Change, Link, Netlink};
use super::nft;
use super::store::Locked;
use crate::failure::Failure;
use crate::vmm::devices::virtio::net::Tap;

/// How long the host waits for an answer before it asks again where an address is, in milliseconds.
const NEIGHBOUR_MS: &str = "50";
const WHAT: &str = "cannot set up the container's network";

/// Bridges, TAPs and rules of one store of networks, told apart from those of others on this host.
#[derive(Clone, Debug)]
pub struct Marks {
    /// The alias of each interface.
    pub alias: String,
    /// The name of the nftables tables.
    pub table: String,
    /// The name of the default network's bridge.
    pub default_bridge: String,
}

impl Marks {
    /// Those of the store in this directory.
    pub fn of(root: &Path) -> Self {
        let alias = format!("coracle {}", root.display());
        if root == Path::new("/var/lib/coracle/networks") {
            return Self { alias, table: "coracle".to_owned(), default_bridge: "coracle0".to_owned() };
        }
        let hash = short_hash(&[&root.display().to_string()]);
        let hash = hash.get(..8).unwrap_or(&hash);
        Self { alias, table: format!("coracle_{hash}"), default_bridge: format!("cor0-{hash}") }
    }
}

/// The name of the TAP of a container in a network: at most 15 bytes, the same each time.
pub fn tap_name(network: &Network, container: &str) -> String {
    format!("cor{}", short_hash(&[&network.id, container]))
}

/// The name of a bridge, by its network's ID.
pub fn bridge_name(id: &str) -> String {
    format!("cor-{}", id.get(..8).unwrap_or(id))
}

/// Twelve hexadecimal digits.
fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(6).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Makes the host fit `networks`, which are all that there are in this store.
///
/// # Errors
/// No right to, or the kernel lacks something.
pub fn fit(locked: &Locked, networks: &[Network]) -> Result<(), Failure> {
    let marks = Marks::of(locked.store().root());
    let mut netlink = Netlink::open().map_err(failed("opening rtnetlink"))?;
    let links = netlink.links().map_err(failed("listing interfaces"))?;
    let up = || networks.iter().filter(|network| network.is_up());
    let wanted: HashSet<&str> = up()
        .flat_map(|network| {
            let taps = network.leases.values().filter(|lease| lease.attached).map(|lease| lease.tap.as_str());
            std::iter::once(network.bridge.as_str()).chain(taps)
        })
        .collect();
    // What its maker was killed over may have no alias yet, but the files say its name.
    let named: HashSet<&str> = networks
        .iter()
        .flat_map(|network| {
            let taps = network.leases.values().map(|lease| lease.tap.as_str());
            std::iter::once(network.bridge.as_str()).chain(taps)
        })
        .collect();
    let ours = |link: &&Link| link.alias.as_ref() == Some(&marks.alias) || named.contains(link.name.as_str());
    for link in links.iter().filter(ours).filter(|link| !wanted.contains(link.name.as_str())) {
        remove(&mut netlink, link)?;
    }
    // Rules come before the guests that they are for.
    let is_there = |network: &Network| links.iter().any(|link| link.name == network.bridge);
    fit_rules(locked, &nft::rules(&marks.table, networks), up().next().is_some(), up().all(is_there))?;
    for network in up() {
        let bridge = raise_bridge(&mut netlink, &marks, network, &links)?;
        for lease in network.leases.values().filter(|lease| lease.attached) {
            raise_tap(&mut netlink, &marks, network, lease, bridge, &links)?;
        }
    }
    if up().any(|network| !network.internal) {
        forward_ipv4()?;
    }
    if up().any(|network| !network.internal && network.ipv6.is_some()) {
        forward_ipv6()?;
    }
    Ok(())
}

/// Gives the kernel these rules, unless they are there: to replace them takes longer than all else. `old` is whether the
/// bridges are those of last time, and not of before the host was started.
fn fit_rules(locked: &Locked, rules: &str, any: bool, old: bool) -> Result<(), Failure> {
    let noted = locked.rules();
    if !any && noted.is_none() {
        return Ok(());
    }
    let generation = nft::generation().inspect_err(|error| log::debug!("no generation of rules: {error}")).ok();
    let note = |generation: u32| format!("# {generation}\n{rules}");
    if any && old && noted.is_some() && noted == generation.map(note) {
        return Ok(());
    }
    locked.note_rules("")?;
    nft::apply(rules, locked.file())?;
    match generation {
        _ if !any => locked.forget_rules(),
        // If somebody else has changed some meanwhile, it is another.
        Some(before) => locked.note_rules(&note(before.wrapping_add(1))),
        None => Ok(()),
    }
}

/// Takes an interface away, if it is there.
///
/// # Errors
/// The kernel's.
pub fn take_away(name: &str) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(failed("opening rtnetlink"))?;
    let links = netlink.links().map_err(failed("listing interfaces"))?;
    links.iter().filter(|link| link.name == name).try_for_each(|link| remove(&mut netlink, link))
}

/// Makes the pair of interfaces of a container without a VM, whose other end is in its namespace.
///
/// # Errors
/// The kernel's.
pub fn make_pair(lease: &Lease, namespace: &NetworkNamespace) -> Result<(), Failure> {
    let mut netlink = Netlink::open().map_err(failed("opening rtnetlink"))?;
    // One of its last life, whose namespace somebody still has.
    let links = netlink.links().map_err(failed("listing interfaces"))?;
    if let Some(old) = links.iter().find(|link| link.name == lease.tap) {
        remove(&mut netlink, old)?;
    }
    let made = netlink.add_pair(&lease.tap, namespace::CARD, lease.mac.bytes(), namespace.descriptor());
    made.map_err(failed("making a pair of interfaces (veth)"))
}

/// Whether this process may make bridges and TAPs.
pub fn may_change() -> bool {
    let may = |sets: rustix::thread::CapabilitySets| sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN);
    rustix::thread::capabilities(None).is_ok_and(may)
}

/// Subnets that this host has routes to, other than through `except`.
///
/// # Errors
/// The kernel's.
pub fn routed(except: Option<&str>) -> Result<Vec<IpNet>, Failure> {
    let mut netlink = Netlink::open().map_err(failed("opening rtnetlink"))?;
    let links = netlink.links().map_err(failed("listing interfaces"))?;
    let own = except.and_then(|name| links.iter().find(|link| link.name == name)).map(|link| link.index);
    let routes = netlink.routes().map_err(failed("listing routes"))?;
    Ok(routes.into_iter().filter(|route| own.is_none() || route.link != own).map(|route| route.to).collect())
}

fn remove(netlink: &mut Netlink, link: &Link) -> Result<(), Failure> {
    match netlink.remove(link.index) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        result => result.map_err(failed(&format!("removing interface {}", link.name))),
    }
}

fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, Failure> {
    let links = netlink.links().map_err(failed("listing interfaces"))?;
    let missing = || io::Error::other("it has gone again");
    links.iter().find(|link| link.name == name).map(|link| link.index).ok_or_else(missing).map_err(failed(name))
}

fn raise_bridge(netlink: &mut Netlink, marks: &Marks, network: &Network, links: &[Link]) -> Result<u32, Failure> {
    let name = &network.bridge;
    let (index, is_new) = match links.iter().find(|link| link.name == *name) {
        Some(link) => (link.index, false),
        None => {
            netlink.add_bridge(name).map_err(failed(&format!("making bridge {name}")))?;
            (index_of(netlink, name)?, true)
        }
    };
    let context = format!("setting up bridge {name}");
    // Who asks for a guest that is still starting asks again soon, not after a second.
    set_sysctl(&format!("net/ipv4/neigh/{name}/retrans_time_ms"), NEIGHBOUR_MS).map_err(failed(&context))?;
    if network.ipv6.is_none() {
        // Else guests would reach the host over link-local addresses, which no rule here knows.
        set_sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1").map_err(failed(&context))?;
    }
    // With a fixed address it does not change as ports come and go, and no guest has a stale one.
    let mac = ipam::mac_for(network.ipv4.gateway).ok().map(|mac| mac.bytes());
    let mtu = Some(u32::from(network.mtu));
    let change = Change { mac: mac.filter(|_| is_new), mtu, alias: Some(marks.alias.clone()), ..Change::default() };
    netlink.change(index, &change).map_err(failed(&context))?;
    for address in network.gateways() {
        netlink.add_address(index, address).map_err(failed(&context))?;
    }
    Ok(index)
}

fn raise_tap(
    netlink: &mut Netlink,
    marks: &Marks,
    network: &Network,
    lease: &Lease,
    bridge: u32,
    links: &[Link],
) -> Result<(), Failure> {
    let name = &lease.tap;
    // A guest that is nobody's yet talks to nobody.
    let bridge = Some(bridge).filter(|_| !lease.spare);
    let index = match links.iter().find(|link| link.name == *name) {
        Some(link) if link.bridge == bridge && link.alias.as_ref() == Some(&marks.alias) => return Ok(()),
        Some(link) => link.index,
        // It went with its namespace: there is nobody left to be connected.
        None if lease.pair => return Ok(()),
        None => {
            Tap::create(name).map_err(|error| Failure::new(WHAT, &error, error.try_next()))?;
            index_of(netlink, name)?
        }
    };
    let context = format!("setting up interface {name}");
    // The host talks over the bridge; its ports need no addresses.
    set_sysctl(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1").map_err(failed(&context))?;
    let (mtu, alias) = (Some(u32::from(network.mtu)), Some(marks.alias.clone()));
    let change = Change { mtu, alias, bridge, mac: None, down: lease.spare };
    netlink.change(index, &change).map_err(failed(&context))
}

fn forward_ipv4() -> Result<(), Failure> {
    set_sysctl("net/ipv4/ip_forward", "1").map_err(failed("letting the host forward packets (net.ipv4.ip_forward)"))
}

/// A host that forwards does not listen to routers any more unless told to: without care it would lose its own network.
fn forward_ipv6() -> Result<(), Failure> {
    let context = "letting the host forward packets (net.ipv6.conf.all.forwarding)";
    let all = "net/ipv6/conf/all/forwarding";
    if read_sysctl(all).as_deref() == Some("1") {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let name = format!("net/ipv6/conf/{}/accept_ra", entry.file_name().to_string_lossy());
        if read_sysctl(&name).as_deref() == Some("1") {
            set_sysctl(&name, "2").map_err(failed(context))?;
        }
    }
    set_sysctl(all, "1").map_err(failed(context))
}

fn sysctl_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

fn read_sysctl(name: &str) -> Option<String> {
    fs::read_to_string(sysctl_path(name)).ok().map(|value| value.trim().to_owned())
}

/// Sets it, unless it has that value already, or the kernel does not know it (no IPv6).
fn set_sysctl(name: &str, value: &str) -> io::Result<()> {
    match read_sysctl(name) {
        Some(old) if old != value => fs::write(sysctl_path(name), value),
        _ => Ok(()),
    }
}

/// For `map_err`: makes an error of the kernel a failure.
fn failed(context: &str) -> impl FnOnce(io::Error) -> Failure {
    let context = context.to_owned();
    move |error| {
        let next = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => "as root, or --network none",
            Some(libc::EOPNOTSUPP) => "`modprobe bridge`, or --network none",
            _ => "`ip -d link`, or --network none",
        };
        Failure::new(WHAT, format!("{context}: {error}"), next)
    }
}
