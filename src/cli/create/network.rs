// SPDX-License-Identifier: Apache-2.0
//! Flags that say how a container is connected.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use coracle::failure::Failure;
use coracle::network::{DEFAULT, PortError, Publish};
use coracle::supervisor::NetworkUse;
use coracle::vmm::devices::virtio::net::MacAddress;

// How a container is connected.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// The network: bridge, none, or one made with `network create`
    #[arg(long, alias = "net", value_name = "NETWORK", default_value = DEFAULT)]
    network: String,
    /// Publish a port: [[IP:]HOST:]CONTAINER[/PROTOCOL], on 127.0.0.1 unless an address is given
    #[arg(short, long, value_name = "PORT", value_parser = ports)]
    publish: Vec<Ports>,
    /// Publish all ports that the image exposes, wherever there is room
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Note a port that the program serves, for --publish-all
    #[arg(long, value_name = "PORT", value_parser = exposed)]
    expose: Vec<Ports>,
    /// The container's address
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// That of its network card
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<MacAddress>,
    /// Another name that others find it by
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// Name server instead of the network's, which knows the other containers
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Domain that names are completed with
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the resolver, such as ndots:2
    #[arg(long, alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
}

/// What is said now, or else what was then.
fn kept<T: Clone>(now: Vec<T>, then: &[T]) -> Vec<T> {
    if now.is_empty() { then.to_vec() } else { now }
}

/// What one word says.
#[derive(Clone, Debug)]
struct Ports {
    ports: Vec<Publish>,
    /// Whether an address of the host was among what was said.
    address_given: bool,
}

fn ports(text: &str) -> Result<Ports, PortError> {
    let ports = Publish::parse(text)?;
    // [[ADDRESS:]HOST:]CONTAINER, and an address of IPv6 has colons of its own, in brackets.
    let address_given = text.starts_with('[') || text.matches(':').count() > 1 && !text.starts_with(':');
    Ok(Ports { ports, address_given })
}

fn exposed(text: &str) -> Result<Ports, PortError> {
    Ok(Ports { ports: Publish::exposed(text)?, address_given: true })
}

impl NetworkArgs {
    /// Where ports are published that were given no address: for this host only, which not everybody expects.
    pub fn unspoken_ports(&self) -> Vec<String> {
        let ports = self.publish.iter().filter(|ports| !ports.address_given).flat_map(|ports| &ports.ports);
        let place = |port: &Publish| match port.host {
            (0, 0) => format!("{}:…->{}/{}", port.address, port.container, port.protocol),
            (host, _) => format!("{}:{host}->{}/{}", port.address, port.container, port.protocol),
        };
        ports.map(place).collect()
    }

    /// What they say of a container that goes on from a snapshot of one that was connected as `then`. Published ports are
    /// not taken over: the other container may still have them.
    ///
    /// # Errors
    /// It had no network, which it cannot get now, or had one, which it cannot lose.
    pub fn reconnect(&self, then: Option<&NetworkUse>, what: &str) -> Result<Option<NetworkUse>, Failure> {
        let (Some(now), Some(then)) = (self.read(&[], what)?, then) else {
            let asked = self.network != DEFAULT || !self.publish.is_empty();
            return match then {
                None if !asked => Ok(None),
                None => {
                    let why = "the container in the snapshot has no network card";
                    Err(Failure::new(what, why, "the same without -p and --network"))
                }
                Some(then) => {
                    let why = format!("the container in the snapshot has a network card, in network {}", then.name);
                    Err(Failure::new(what, why, "the same without --network, or with another network"))
                }
            };
        };
        let name = if self.network == DEFAULT { then.name.clone() } else { now.name };
        Ok(Some(NetworkUse {
            name,
            dns: kept(now.dns, &then.dns),
            search: kept(now.search, &then.search),
            options: kept(now.options, &then.options),
            ..now
        }))
    }

    /// What they say; `of_image` are the ports that the image exposes.
    ///
    /// # Errors
    /// They contradict each other.
    pub fn read(&self, of_image: &[String], what: &str) -> Result<Option<NetworkUse>, Failure> {
        let mut ports: Vec<Publish> = self.publish.iter().flat_map(|ports| ports.ports.clone()).collect();
        match self.network.as_str() {
            "none" if ports.is_empty() && self.ip.is_none() => return Ok(None),
            "none" if ports.is_empty() => {
                let why = "it is in no network, and so can have no address";
                return Err(Failure::new(
                    what,
                    why,
                    "the same without --ip, or with `--network` and the network's name",
                ));
            }
            "none" => {
                let why = "it is in no network, and so has no ports to publish";
                return Err(Failure::new(what, why, "the same without -p, or without `--network none`"));
            }
            "host" => {
                let why = "a VM cannot share the host's network interfaces";
                return Err(Failure::new(what, why, "-p for the ports that others are to reach"));
            }
            _ => {}
        }
        if self.publish_all {
            let of_image = of_image.iter().map(|text| Publish::exposed(text)).collect::<Result<Vec<_>, _>>();
            let of_image = of_image.map_err(|error| Failure::new(what, error, "-p instead of -P"))?;
            let exposed =
                of_image.into_iter().flatten().chain(self.expose.iter().flat_map(|ports| ports.ports.clone()));
            for port in exposed {
                let same = |other: &Publish| (other.container, other.protocol) == (port.container, port.protocol);
                if !ports.iter().any(same) {
                    ports.push(port);
                }
            }
        }
        Ok(Some(NetworkUse {
            name: if self.network == "default" { DEFAULT.to_owned() } else { self.network.clone() },
            address: self.ip,
            mac: self.mac_address,
            aliases: self.network_alias.clone(),
            ports,
            dns: self.dns.clone(),
            search: self.dns_search.clone(),
            options: self.dns_option.clone(),
        }))
    }
}
