// SPDX-License-Identifier: Apache-2.0
//! Queries that the host's name servers have been asked.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::rand::GetRandomFlags;

use super::client::Messages;
use super::message::{self, Query};
use crate::network::worker::Poller;

/// How long one server may take. Clients give up after five seconds, as a rule.
const PATIENCE: Duration = Duration::from_secs(2);
/// Servers that are asked for one query, the same one again where there is one only.
const ATTEMPTS: usize = 3;
/// The longest answer.
const MAX_ANSWER: usize = u16::MAX as usize;

/// Who wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// Someone who sent a datagram.
    Udp(SocketAddr),
    /// A connection, by number, of a client with this address.
    Tcp(u32, IpAddr),
}

impl Asker {
    /// The client's address.
    pub fn address(self) -> IpAddr {
        match self {
            Self::Udp(address) => address.ip(),
            Self::Tcp(_, address) => address,
        }
    }
}

/// A query under way.
pub(super) struct Forwarded {
    /// Who wants to know.
    pub asker: Asker,
    /// What.
    pub query: Query,
    /// When the server that is asked has taken too long.
    pub due: Instant,
    packet: Vec<u8>,
    id: u16,
    servers: Vec<IpAddr>,
    attempt: usize,
    channel: Option<Channel>,
}

enum Channel {
    Udp(UdpSocket),
    Tcp(Box<Messages>),
}

impl Forwarded {
    /// A query that came as `packet`, for the servers there are.
    pub fn new(asker: Asker, query: Query, packet: &[u8], servers: Vec<IpAddr>) -> Self {
        let due = Instant::now();
        Self { asker, query, due, packet: packet.to_vec(), id: 0, servers, attempt: 0, channel: None }
    }

    /// Asks the next server; `false` where none is left.
    pub fn ask(&mut self, poller: &Poller, token: u64) -> bool {
        while self.attempt < ATTEMPTS {
            let server = self.servers.get(self.attempt % self.servers.len().max(1));
            let Some(server) = server.map(|server| SocketAddr::new(*server, super::PORT)) else { return false };
            self.attempt += 1;
            match self.open(server, poller, token) {
                Ok(channel) => {
                    self.channel = Some(channel);
                    self.due = Instant::now() + PATIENCE;
                    return true;
                }
                Err(error) => log::debug!("cannot ask name server {server}: {error}"),
            }
        }
        false
    }

    /// A new socket, and so a port that the kernel picks, and a random number: who cannot see the query cannot answer it.
    fn open(&mut self, server: SocketAddr, poller: &Poller, token: u64) -> io::Result<Channel> {
        let mut random = [0; 2];
        rustix::rand::getrandom(&mut random, GetRandomFlags::empty())?;
        self.id = u16::from_ne_bytes(random);
        message::renumber(&mut self.packet, self.id);
        let family = if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = |kind| -> io::Result<OwnedFd> {
            let socket = rustix::net::socket_with(family, kind, flags, None)?;
            match rustix::net::connect(&socket, &server) {
                Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
                Err(error) => Err(error.into()),
            }
        };
        match self.asker {
            Asker::Udp(_) => {
                let socket = UdpSocket::from(socket(SocketType::DGRAM)?);
                poller.add_changes(&socket, token)?;
                socket.send(&self.packet)?;
                Ok(Channel::Udp(socket))
            }
            // Who asks over TCP wants what does not fit a datagram.
            Asker::Tcp(..) => {
                let mut messages = Messages::new(TcpStream::from(socket(SocketType::STREAM)?), MAX_ANSWER);
                poller.add_changes(messages.stream(), token)?;
                messages.send(&self.packet)?;
                Ok(Channel::Tcp(Box::new(messages)))
            }
        }
    }

    /// The answer, as the client is to get it; `None` where it has not come yet.
    ///
    /// # Errors
    /// This server does not answer.
    pub fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; MAX_ANSWER];
        loop {
            let answer = match &mut self.channel {
                None => return Ok(None),
                Some(Channel::Tcp(messages)) => {
                    messages.flush()?;
                    messages.receive()?
                }
                Some(Channel::Udp(socket)) => match socket.recv(&mut buffer) {
                    Ok(count) => buffer.get(..count).map(<[u8]>::to_vec),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                },
            };
            let Some(mut answer) = answer else { return Ok(None) };
            // What does not fit the question was made by someone else.
            if message::answers(&answer, self.id, &self.query.question) {
                message::renumber(&mut answer, self.query.id);
                return Ok(Some(answer));
            }
        }
    }
}
