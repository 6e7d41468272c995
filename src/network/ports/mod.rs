// SPDX-License-Identifier: Apache-2.0
//! Ports of containers on the host: `-p [IP:][HOST]:CONTAINER[/PROTOCOL]`, as Docker reads it.

mod listen;
mod proxy;
mod tcp;
mod udp;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use listen::{Listener, bind, reserve};
pub use proxy::Proxy;

/// Ports that one container may publish. Each takes a file descriptor on the host.
pub const MAX_PUBLISHED: usize = 4096;

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address; [`Publish::LOOPBACK`] where none was given.
    pub address: IpAddr,
    /// The host's port: the first free one of these; any free one where both are 0.
    pub host: (u16, u16),
    /// The container's port.
    pub container: u16,
    /// Over which protocol.
    pub protocol: Protocol,
}

/// A port that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The host's address and port.
    pub host: SocketAddr,
    /// The container's port.
    pub container: u16,
    /// Over which protocol.
    pub protocol: Protocol,
}

/// Why a word for `-p` cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// There is no container's port in it.
    #[error("no port of the container in `{0}`")]
    NoPort(String),
    /// Not a number from 1 (or 0, on the host) to 65535, or a range of them.
    #[error("`{0}` is no port or range of ports")]
    Port(String),
    /// Not an address.
    #[error("`{0}` is no IP address of the host (IPv6 addresses stand in brackets: [::1]:8080:80)")]
    Address(String),
    /// Neither TCP nor UDP.
    #[error("protocol `{0}` cannot be published: there are tcp and udp")]
    Protocol(String),
    /// A range here, and one of another length there.
    #[error("`{0}` and `{1}` are ranges of different lengths")]
    Ranges(String, String),
    /// More than [`MAX_PUBLISHED`].
    #[error("more than {MAX_PUBLISHED} ports in `{0}`")]
    TooMany(String),
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Published {
    /// As `docker ps` has it: `127.0.0.1:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host, self.container, self.protocol)
    }
}

impl Publish {
    /// Where ports are published unless an address is given: for this host only.
    pub const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Reads a word for `-p`: one port, or a range of them.
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn parse(text: &str) -> Result<Vec<Self>, PortError> {
        let (rest, protocol) = protocol_of(text)?;
        let (rest, container) = rest.rsplit_once(':').map_or((None, rest), |(rest, port)| (Some(rest), port));
        let (address, host) = match rest {
            None => (None, ""),
            // An address in brackets may have colons, and the port comes after the last.
            Some(rest) => rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host)),
        };
        let address = match address {
            None | Some("") => Self::LOOPBACK,
            Some(address) => read_address(address)?,
        };
        if container.is_empty() {
            return Err(PortError::NoPort(text.to_owned()));
        }
        let (first, last) = range(container).filter(|range| range.0 > 0).ok_or(PortError::Port(container.into()))?;
        let hosts = match host {
            "" => (0, 0),
            host => range(host).ok_or(PortError::Port(host.into()))?,
        };
        if usize::from(last - first) >= MAX_PUBLISHED {
            return Err(PortError::TooMany(text.to_owned()));
        }
        if first == last {
            return Ok(vec![Self { address, host: hosts, container: first, protocol }]);
        }
        if hosts != (0, 0) && hosts.1 - hosts.0 != last - first {
            return Err(PortError::Ranges(host.to_owned(), container.to_owned()));
        }
        let host_of = |offset: u16| if hosts == (0, 0) { 0 } else { hosts.0 + offset };
        let one =
            |offset| Self { address, host: (host_of(offset), host_of(offset)), container: first + offset, protocol };
        Ok((0..=last - first).map(one).collect())
    }

    /// A port that an image exposes (`80/tcp`), to be published on any free port (`-P`).
    ///
    /// # Errors
    /// See [`PortError`].
    pub fn exposed(text: &str) -> Result<Vec<Self>, PortError> {
        if text.contains(':') { Err(PortError::Port(text.to_owned())) } else { Self::parse(text) }
    }
}

fn protocol_of(text: &str) -> Result<(&str, Protocol), PortError> {
    let Some((rest, name)) = text.split_once('/') else { return Ok((text, Protocol::Tcp)) };
    match name.to_ascii_lowercase().as_str() {
        "" | "tcp" => Ok((rest, Protocol::Tcp)),
        "udp" => Ok((rest, Protocol::Udp)),
        _ => Err(PortError::Protocol(name.to_owned())),
    }
}

fn read_address(text: &str) -> Result<IpAddr, PortError> {
    let bad = || PortError::Address(text.to_owned());
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(bad)?.parse().map(IpAddr::V6).map_err(|_| bad()),
        None => text.parse().map(IpAddr::V4).map_err(|_| bad()),
    }
}

/// `80` or `80-90`, in order.
fn range(text: &str) -> Option<(u16, u16)> {
    let number = |digits: &str| {
        // `parse` would take a sign.
        let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| digits.parse::<u16>().ok()).flatten()
    };
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => Some((number(first)?, number(last)?)).filter(|(first, last)| first <= last),
    }
}

#[cfg(test)]
#[path = "ports_test.rs"]
mod tests;
