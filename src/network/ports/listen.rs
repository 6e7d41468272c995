// SPDX-License-Identifier: Apache-2.0
//! The host's end of published ports. That a port is in use is found here, by binding it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{MAX_PUBLISHED, Protocol, Publish, Published};
use crate::failure::Failure;

/// A port of the host that is taken.
#[derive(Debug)]
pub struct Listener {
    /// Which one, and for which of the container's.
    pub published: Published,
    pub(super) socket: Socket,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Takes ports of the host, all or none of them.
///
/// # Errors
/// One is in use, is for root only, or has an address that this host has not.
pub fn bind(ports: &[Publish]) -> Result<Vec<Listener>, Failure> {
    if ports.len() > MAX_PUBLISHED {
        let what = format!("cannot publish {} ports", ports.len());
        return Err(Failure::new(what, format!("a container has at most {MAX_PUBLISHED}"), "fewer of them"));
    }
    ports.iter().map(take).collect()
}

/// Takes any free port of the loopback.
///
/// # Errors
/// The kernel's.
pub fn reserve(protocol: Protocol) -> io::Result<Listener> {
    let (socket, host) = open(SocketAddr::new(Publish::LOOPBACK, 0), protocol)?;
    Ok(Listener { published: Published { host, container: 0, protocol }, socket })
}

fn take(port: &Publish) -> Result<Listener, Failure> {
    let (first, last) = port.host;
    let mut problem = io::Error::from(io::ErrorKind::AddrInUse);
    for host in first..=last {
        match open(SocketAddr::new(port.address, host), port.protocol) {
            Ok((socket, host)) => {
                let published = Published { host, container: port.container, protocol: port.protocol };
                return Ok(Listener { published, socket });
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => problem = error,
            Err(error) => {
                problem = error;
                break;
            }
        }
    }
    Err(explain(port, &problem))
}

fn open(address: SocketAddr, protocol: Protocol) -> io::Result<(Socket, SocketAddr)> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        // [::] is IPv6 alone: 0.0.0.0 has a `-p` of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // Connections that are still closing are no reason to wait; a listener still is.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    match protocol {
        Protocol::Tcp => {
            rustix::net::listen(&socket, 1024)?;
            let listener = TcpListener::from(socket);
            let address = listener.local_addr()?;
            Ok((Socket::Tcp(listener), address))
        }
        Protocol::Udp => {
            let socket = UdpSocket::from(socket);
            let address = socket.local_addr()?;
            Ok((Socket::Udp(socket), address))
        }
    }
}

fn explain(port: &Publish, error: &io::Error) -> Failure {
    let Publish { address, host: (first, last), container, protocol } = port;
    let shown = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let ports = if first == last { first.to_string() } else { format!("{first}-{last}") };
    let what = format!("cannot publish port {shown}:{ports}->{container}/{protocol}");
    let letter = if *protocol == Protocol::Tcp { "t" } else { "u" };
    match error.kind() {
        io::ErrorKind::AddrInUse if first == last => Failure::new(
            what,
            format!("port {first} of the host is in use"),
            format!("`ss -l{letter}np sport = :{first}` shows by whom; -p {container} takes any free port"),
        ),
        io::ErrorKind::AddrInUse => {
            Failure::new(what, "all of these ports of the host are in use", format!("-p {container}: any free port"))
        }
        io::ErrorKind::PermissionDenied => Failure::new(
            what,
            format!("{error}: ports below net.ipv4.ip_unprivileged_port_start are for root"),
            format!("a higher port: -p 8080:{container}"),
        ),
        io::ErrorKind::AddrNotAvailable => Failure::new(
            what,
            format!("this host does not have the address {shown}"),
            "`ip address` lists those it has",
        ),
        _ => Failure::new(what, error, format!("-p {container}: any free port")),
    }
}
