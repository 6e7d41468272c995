// SPDX-License-Identifier: Apache-2.0
//! Attaching containers to networks, and cleaning up after them.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::{IpNet, Ipv4Net};

use super::dns::{NameServer, Resolvers};
use super::model::{DEFAULT, Lease, Network};
use super::namespace::NetworkNamespace;
use super::passt::{Passt, Plan};
use super::ports::{self, Listener, Proxy, Publish, Published};
use super::store::{Locked, Store};
use super::{host, ipam, manage, passt};
use crate::failure::Failure;
use crate::vmm::devices::virtio::net::{FRAME_STREAM_MTU, MacAddress, NetBackend, NetConfig, Tap};

/// A container that is to be attached to a network.
#[derive(Clone, Debug)]
pub struct Request {
    /// The network, by name or ID.
    pub network: String,
    /// The container's ID.
    pub container: String,
    /// Names by which others find it, the container's own first, then aliases and its short ID.
    pub names: Vec<String>,
    /// The address that it is to have, where it matters.
    pub address: Option<Ipv4Addr>,
    /// The address of its card, where it matters.
    pub mac: Option<MacAddress>,
    /// Ports to publish.
    pub ports: Vec<Publish>,
    /// Where it lives, if it has no VM.
    pub namespace: Option<NetworkNamespace>,
    /// It is a microVM that waits: it comes into the network with [`Attachment::hand_over`].
    pub spare: bool,
}

/// A container's connection to a network, which ends when this is dropped, or the process ends.
#[derive(Debug)]
pub struct Attachment {
    /// What the guest's card is to be connected to.
    pub backend: NetBackend,
    /// The card's address.
    pub mac: MacAddress,
    /// Addresses for the container's interface, with prefix lengths; IPv4 comes first.
    pub addresses: Vec<IpNet>,
    /// Where its default routes lead; none in an internal network.
    pub gateways: Vec<IpAddr>,
    /// Its name servers.
    pub nameservers: Vec<IpAddr>,
    /// Domains that it completes names with.
    pub search: Vec<String>,
    /// Largest packet in bytes.
    pub mtu: u16,
    /// Its ports on the host.
    pub ports: Vec<Published>,
    container: String,
    network: String,
    namespace: Option<NetworkNamespace>,
    /// The number of its TAP.
    tap_index: Option<u32>,
    store: Store,
    // The order is that in which they end: nothing comes in any more before the network goes.
    proxy: Option<Proxy>,
    names: Option<NameServer>,
    passt: Option<Passt>,
    life: Option<File>,
}

impl Attachment {
    /// The network's name.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// How the VMM is to connect the guest's card.
    pub fn config(&self) -> NetConfig {
        NetConfig { backend: self.backend.clone(), mac: Some(self.mac) }
    }

    /// The network namespace of a container without a VM, as others find it while this is there.
    pub fn namespace(&self) -> Option<PathBuf> {
        self.namespace.as_ref().map(NetworkNamespace::path)
    }

    /// Gives what a spare has to the container that it was waiting for.
    ///
    /// # Errors
    /// The network is not what it was, a port is in use, or the kernel refuses; the spare is detached.
    pub fn hand_over(mut self, request: &Request) -> Result<Self, Failure> {
        let what = format!("cannot attach the container to network `{}`", request.network);
        let listeners = ports::bind(&request.ports)?;
        self.ports = listeners.iter().map(|listener| listener.published).collect();
        let store = self.store.clone();
        let locked = store.lock()?;
        let taken = self.take_over(&locked, request, &what);
        // As in `attach_in`.
        drop(locked);
        let (address, gateway) = taken?;
        self.search = Resolvers::read().search;
        self.serve(listeners, address, gateway)?;
        Ok(self)
    }

    fn take_over(&mut self, locked: &Locked, request: &Request, what: &str) -> Result<(Ipv4Addr, Ipv4Addr), Failure> {
        let changed = || Failure::new(what, "it has changed while a microVM waited", "`coracle network inspect`");
        let mut networks = settled(locked)?;
        let at = manage::position(&networks, &request.network, what)?;
        let network = networks.get_mut(at).filter(|network| network.name == self.network).ok_or_else(changed)?;
        ensure_free_subnet(network, what)?;
        let lease = network.leases.get(&self.container).ok_or_else(changed)?;
        // One of that name that was made anew is not what the VM has open.
        let same = lease.attached
            && Tap::index(&lease.tap) == self.tap_index
            && lease.mac == self.mac
            && network.addresses(lease) == self.addresses
            && network.mtu == self.mtu
            && gateways(network) == self.gateways
            && self.nameservers == [IpAddr::from(network.ipv4.gateway)];
        let lease = Lease {
            names: request.names.clone(),
            ports: self.ports.clone(),
            spare: false,
            since: now(),
            ..Some(lease.clone()).filter(|_| same).ok_or_else(changed)?
        };
        let life = locked.claim_life(&request.container, &self.network)?.ok_or_else(|| attached_already(what))?;
        let spare = std::mem::replace(&mut self.container, request.container.clone());
        // That of the spare ends here.
        self.life = Some(life);
        network.leases.remove(&spare);
        network.leases.insert(request.container.clone(), lease.clone());
        locked.save(network)?;
        locked.end_life(&spare, &self.network)?;
        let gateway = network.ipv4.gateway;
        host::fit(locked, &networks)?;
        Ok((lease.ipv4, gateway))
    }

    /// Ends it, and says what did not work.
    ///
    /// # Errors
    /// The network's file cannot be written, or the kernel refuses; the next command tries again.
    pub fn detach(mut self) -> Result<(), Failure> {
        self.end(true)
    }

    /// As [`Attachment::detach`], for a container that is no more: its addresses are not kept for it. Its interface and
    /// rules, at which nobody is any more, stay until [`reconcile`], or whoever is attached next.
    ///
    /// # Errors
    /// As [`Attachment::detach`].
    pub fn forget(mut self) -> Result<(), Failure> {
        self.end(false)
    }

    fn end(&mut self, keep: bool) -> Result<(), Failure> {
        self.proxy = None;
        self.names = None;
        self.passt = None;
        let Some(life) = self.life.take() else { return Ok(()) };
        let locked = self.store.lock()?;
        let mut networks = locked.store().list()?;
        let left = match keep {
            true => leave(&locked, &mut networks, &self.container, Some(&self.network)),
            false => forget_lease(&locked, &mut networks, &self.container),
        };
        let ended = locked.end_life(&self.container, &self.network);
        drop(life);
        left.and(ended)?;
        if keep { host::fit(&locked, &networks) } else { Ok(()) }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(failure) = self.end(true) {
            log::warn!("{failure}");
        }
    }
}

/// Attaches a container to a network of this user. It stays attached until the result is dropped.
///
/// # Errors
/// There is no such network or address, a port is in use, the rights are missing, or the kernel refuses.
pub fn attach(request: &Request) -> Result<Attachment, Failure> {
    attach_in(&Store::open()?, request)
}

/// As [`attach`], with the networks of another store.
///
/// # Errors
/// As [`attach`].
pub fn attach_in(store: &Store, request: &Request) -> Result<Attachment, Failure> {
    let what = format!("cannot attach the container to network `{}`", request.network);
    if !is_file_name(&request.container) {
        let why = format!("`{}` is no ID of a container", request.container);
        return Err(Failure::new(what, why, "64 hexadecimal digits"));
    }
    // Whatever is in use is found before anything has changed.
    let listeners = ports::bind(&request.ports)?;
    if !host::may_change() {
        return attach_alone(store, request, listeners, &what);
    }
    let published: Vec<Published> = listeners.iter().map(|listener| listener.published).collect();
    let locked = store.lock()?;
    let mut networks = settled(&locked)?;
    let at = manage::position(&networks, &request.network, &what)?;
    let Some(network) = networks.get_mut(at) else { return Err(manage::missing(&what)) };
    let name = network.name.clone();
    let Some(life) = locked.claim_life(&request.container, &name)? else { return Err(attached_already(&what)) };
    ensure_free_subnet(network, &what)?;
    let lease = lease(network, request, &published, &what)?;
    network.leases.insert(request.container.clone(), lease.clone());
    locked.save(network)?;
    let mut attachment = Attachment {
        backend: NetBackend::Tap(lease.tap.clone()),
        mac: lease.mac,
        addresses: network.addresses(&lease),
        gateways: gateways(network),
        nameservers: vec![network.ipv4.gateway.into()],
        search: Resolvers::read().search,
        mtu: network.mtu,
        ports: published,
        container: request.container.clone(),
        network: name,
        namespace: request.namespace.clone(),
        tap_index: None,
        store: store.clone(),
        proxy: None,
        names: None,
        passt: None,
        life: Some(life),
    };
    let gateway = network.ipv4.gateway;
    let pair = request.namespace.as_ref().map_or(Ok(()), |namespace| host::make_pair(&lease, namespace));
    let made = pair.and_then(|()| host::fit(&locked, &networks));
    attachment.tap_index = Tap::index(&lease.tap);
    // What comes next does not change what others see; and dropping the attachment takes the lock.
    drop(locked);
    made?;
    if let Some(namespace) = &attachment.namespace {
        namespace.configure(attachment.mtu, &attachment.addresses, &attachment.gateways)?;
    }
    if !request.spare {
        attachment.serve(listeners, lease.ipv4, gateway)?;
    }
    Ok(attachment)
}

/// Without root: a container alone in a network in user space.
fn attach_alone(store: &Store, request: &Request, listeners: Vec<Listener>, what: &str) -> Result<Attachment, Failure> {
    if request.network != DEFAULT && request.network != "default" {
        let why = "networks of several containers are bridges, which are for root";
        return Err(Failure::new(what, why, format!("as root, or --network {DEFAULT}")));
    }
    if request.address.is_some() {
        let why = "addresses can be chosen only in networks of several containers, which are for root";
        return Err(Failure::new(what, why, "without an address, or as root"));
    }
    let taken = host::routed(None)?;
    let resolvers = Resolvers::read();
    let subnet = ipam::free_subnet(&taken, &resolvers.servers)
        .map_err(|error| Failure::new(what, error, "`ip route`, or --network none"))?;
    let gateway = ipam::first_host(subnet);
    let address = Ipv4Addr::from(u32::from(gateway) + 1);
    let mac = match request.mac {
        Some(mac) => mac,
        None => ipam::mac_for(address).map_err(|error| Failure::new(what, error, "--mac-address 02:42:…"))?,
    };
    let locked = store.lock()?;
    locked.clear_lives(&locked.store().list()?)?;
    let Some(life) = locked.claim_life(&request.container, DEFAULT)? else { return Err(attached_already(what)) };
    let nameservers = resolvers.beyond_loopback();
    if nameservers.is_empty() {
        log::warn!("/etc/resolv.conf has no name server that a container reaches without root: it will find no names");
    }
    let plan = Plan { socket: store.socket(&request.container), address, subnet, gateway };
    let mut attachment = Attachment {
        backend: NetBackend::Passt(plan.socket.clone()),
        mac,
        addresses: vec![Ipv4Net::new_assert(address, subnet.prefix_len()).into()],
        gateways: vec![gateway.into()],
        nameservers,
        search: resolvers.search,
        mtu: FRAME_STREAM_MTU,
        ports: listeners.iter().map(|listener| listener.published).collect(),
        container: request.container.clone(),
        network: DEFAULT.to_owned(),
        namespace: None,
        tap_index: None,
        store: store.clone(),
        proxy: None,
        names: None,
        passt: None,
        life: Some(life),
    };
    // Dropping the attachment takes the lock.
    drop(locked);
    let (passt, doors) = Passt::start(&plan, &attachment.ports)?;
    attachment.passt = Some(passt);
    if !listeners.is_empty() {
        let target = |listener: Listener| {
            let Published { container, protocol, .. } = listener.published;
            doors.get(&(protocol, container)).map(|door| (listener, *door))
        };
        let proxy = Proxy::start(listeners.into_iter().filter_map(target).collect(), passt::outward_address());
        attachment.proxy = Some(proxy.map_err(|error| thread_failed("the container's ports", &error))?);
    }
    Ok(attachment)
}

/// Where the default routes of its containers lead.
fn gateways(network: &Network) -> Vec<IpAddr> {
    if network.internal { Vec::new() } else { network.gateways().iter().map(IpNet::addr).collect() }
}

fn attached_already(what: &str) -> Failure {
    Failure::new(what, "it is attached already", "`coracle network inspect`")
}

impl Attachment {
    fn serve(&mut self, listeners: Vec<Listener>, address: Ipv4Addr, gateway: Ipv4Addr) -> Result<(), Failure> {
        match NameServer::start(gateway.into(), self.store.path(&self.network)) {
            Ok(server) => self.names = Some(server),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                // A server on all addresses of the host answers on this one as well, though not for containers.
                log::warn!("a name server of this host has {gateway}:53: containers do not find each other by name");
            }
            Err(error) => return Err(thread_failed("the network's name server", &error)),
        }
        if !listeners.is_empty() {
            let target = |listener: Listener| {
                let target = SocketAddr::new(address.into(), listener.published.container);
                (listener, target)
            };
            let proxy = Proxy::start(listeners.into_iter().map(target).collect(), None);
            self.proxy = Some(proxy.map_err(|error| thread_failed("the container's ports", &error))?);
        }
        Ok(())
    }
}

fn thread_failed(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot serve {what}"), error, "`ulimit -n -u`: threads and open files may be used up")
}

/// Takes a container off every network that it is attached to, if it is. Its addresses are kept for it.
///
/// # Errors
/// A network's file cannot be written, or the kernel refuses.
pub fn detach(container: &str) -> Result<(), Failure> {
    let store = Store::open()?;
    let locked = store.lock()?;
    let mut networks = settled(&locked)?;
    leave(&locked, &mut networks, container, None)?;
    host::fit(&locked, &networks)
}

/// Lets go of the addresses of a container that is no more.
///
/// # Errors
/// A network's file cannot be written, or the kernel refuses.
pub fn forget(container: &str) -> Result<(), Failure> {
    let store = Store::open()?;
    let locked = store.lock()?;
    let mut networks = settled(&locked)?;
    if !networks.iter().any(|network| network.leases.contains_key(container)) {
        return Ok(());
    }
    leave(&locked, &mut networks, container, None)?;
    forget_lease(&locked, &mut networks, container)?;
    host::fit(&locked, &networks)
}

fn forget_lease(locked: &Locked, networks: &mut [Network], container: &str) -> Result<(), Failure> {
    for network in networks {
        if network.leases.remove(container).is_some() {
            locked.save(network)?;
        }
    }
    Ok(())
}

/// Gives a container another name in the networks that it is attached to.
///
/// # Errors
/// A network's file cannot be read or written.
pub fn rename(container: &str, old: &str, new: &str) -> Result<(), Failure> {
    rename_in(&Store::open()?, container, old, new)
}

/// As [`rename`], with the networks of another store.
///
/// # Errors
/// As [`rename`].
pub fn rename_in(store: &Store, container: &str, old: &str, new: &str) -> Result<(), Failure> {
    let locked = store.lock()?;
    for mut network in settled(&locked)? {
        let Some(lease) = network.leases.get_mut(container) else { continue };
        for name in lease.names.iter_mut().filter(|name| *name == old) {
            new.clone_into(name);
        }
        locked.save(&network)?;
    }
    Ok(())
}

/// Removes what dead containers left on the host, and puts back what others took away from those that live.
///
/// # Errors
/// A network's file cannot be read or written, or the kernel refuses.
pub fn reconcile() -> Result<(), Failure> {
    reconcile_in(&Store::open()?)
}

/// As [`reconcile`], with the networks of another store.
///
/// # Errors
/// As [`reconcile`].
pub fn reconcile_in(store: &Store) -> Result<(), Failure> {
    let locked = store.lock()?;
    let networks = settled(&locked)?;
    host::fit(&locked, &networks)
}

/// All networks, the default one too, with the dead taken off them.
pub(super) fn settled(locked: &Locked) -> Result<Vec<Network>, Failure> {
    let mut networks = locked.store().list()?;
    manage::ensure_default(locked, &mut networks)?;
    for network in &mut networks {
        let attached: Vec<String> =
            network.leases.iter().filter(|(_, lease)| lease.attached).map(|(id, _)| id.clone()).collect();
        for container in attached {
            // Whoever lives holds this.
            if let Some(life) = locked.claim_life(&container, &network.name)? {
                log::debug!("container {container} died without leaving network {}", network.name);
                retire(network, &container)?;
                locked.save(network)?;
                locked.end_life(&container, &network.name)?;
                drop(life);
            }
        }
    }
    locked.clear_lives(&networks)?;
    Ok(networks)
}

/// Takes a container off one network, or all.
fn leave(locked: &Locked, networks: &mut [Network], container: &str, only: Option<&str>) -> Result<(), Failure> {
    for network in networks.iter_mut().filter(|network| only.is_none_or(|only| network.name == only)) {
        if network.leases.get(container).is_some_and(|lease| lease.attached) {
            retire(network, container)?;
            locked.save(network)?;
            locked.end_life(container, &network.name)?;
        }
    }
    Ok(())
}

fn retire(network: &mut Network, container: &str) -> Result<(), Failure> {
    // Nobody comes back for what a spare had.
    if let Some(lease) = network.leases.get(container).filter(|lease| lease.spare) {
        host::take_away(&lease.tap)?;
        network.leases.remove(container);
    }
    if let Some(lease) = network.leases.get_mut(container) {
        lease.attached = false;
        lease.since = now();
        lease.ports.clear();
    }
    Ok(())
}

fn lease(network: &mut Network, request: &Request, ports: &[Published], what: &str) -> Result<Lease, Failure> {
    let ipv4 = ipam::assign(network, &request.container, request.address).map_err(|error| {
        let subnet = network.ipv4.subnet;
        Failure::new(what, error, format!("another address of {subnet}, or a network with more of them"))
    })?;
    let mac = match request.mac {
        Some(mac) => mac,
        None => ipam::mac_for(ipv4).map_err(|error| Failure::new(what, error, "--mac-address 02:42:…"))?,
    };
    let ipv6 = network.ipv6.as_ref().map(|pool| ipam::ipv6_for(pool, network.ipv4.subnet, ipv4));
    let (names, ports, tap) = (request.names.clone(), ports.to_vec(), host::tap_name(network, &request.container));
    let pair = request.namespace.is_some();
    let spare = request.spare;
    Ok(Lease { names, mac, ipv4, ipv6, tap, pair, spare, attached: true, since: now(), ports })
}

/// A network that goes up must not take addresses that this host reaches elsewhere. One with spares alone is about to.
fn ensure_free_subnet(network: &mut Network, what: &str) -> Result<(), Failure> {
    if network.containers().next().is_some() {
        return Ok(());
    }
    let routed = host::routed(Some(&network.bridge))?;
    let subnets = network.subnets();
    let Some(clash) = routed.iter().find(|route| subnets.iter().any(|subnet| ipam::overlap(subnet, route))) else {
        return Ok(());
    };
    if !network.ipv4.automatic {
        let why = format!("this host has a route to {clash}, which overlaps with the network's subnet");
        return Err(Failure::new(what, why, "`ip route`; a network with another --subnet"));
    }
    let subnet = ipam::free_subnet(&routed, &Resolvers::read().servers)
        .map_err(|error| Failure::new(what, error, "`coracle network create --subnet …`"))?;
    log::info!("network {} moves from {} to {subnet}", network.name, network.ipv4.subnet);
    network.ipv4.gateway = ipam::first_host(subnet);
    network.ipv4.subnet = subnet;
    network.leases.clear();
    // That of spares has the old addresses.
    host::take_away(&network.bridge)
}

/// Whether this can be part of a file's name, beside a network's.
fn is_file_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('.')
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
