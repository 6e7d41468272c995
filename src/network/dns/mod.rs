// SPDX-License-Identifier: Apache-2.0
//! The name server of a network: answers for its containers, and asks the host's servers about everything else.
//!
//! Every container's monitor runs one, all on port 53 of the gateway's address (`SO_REUSEPORT`): the kernel spreads the
//! queries, and whoever gets one answers it from the network's file. So there is no server to start first, and none
//! whose end would matter. Queries come from hostile guests: they are read strictly, and what one client, and all of
//! them, can have under way is bounded.

mod client;
mod forward;
mod message;
mod names;
mod resolvers;
mod server;
mod state;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::worker::Worker;
pub use resolvers::Resolvers;

const PORT: u16 = 53;

/// A name server at work, until it is dropped.
#[derive(Debug)]
pub struct NameServer {
    _worker: Worker,
}

impl NameServer {
    /// Starts to answer at `address` for the network in the file at `path`.
    ///
    /// # Errors
    /// The port is taken by someone who does not share it, or the kernel's.
    pub fn start(address: IpAddr, path: PathBuf) -> io::Result<Self> {
        let address = SocketAddr::new(address, PORT);
        let udp = UdpSocket::from(socket(address, SocketType::DGRAM)?);
        let tcp = socket(address, SocketType::STREAM)?;
        rustix::net::listen(&tcp, 64)?;
        let tcp = TcpListener::from(tcp);
        let worker = Worker::start("names", move |poller| {
            let mut server = server::Server::new(poller, udp, tcp, state::State::new(path));
            if let Err(error) = server.run() {
                log::error!("the name server does not work any more: {error}");
            }
        })?;
        Ok(Self { _worker: worker })
    }
}

fn socket(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    Ok(socket)
}
