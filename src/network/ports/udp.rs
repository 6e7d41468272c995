// SPDX-License-Identifier: Apache-2.0
//! A published UDP port: each client gets a socket towards the container, so that answers find their way back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::proxy::Token;
use crate::network::worker::Poller;

/// Clients of a port at once; one more takes the place of the one that was quiet longest.
const MAX_SESSIONS: usize = 1024;
/// How long a client may be quiet and is still remembered (Docker's value).
const IDLE: Duration = Duration::from_secs(90);
/// Datagrams for one event.
const BATCH: usize = 64;
/// The longest datagram that IP can carry fits.
const DATAGRAM: usize = 64 << 10;

/// One published UDP port.
pub(super) struct Relay {
    socket: UdpSocket,
    target: SocketAddr,
    source: Option<IpAddr>,
    sessions: HashMap<u32, Session>,
    by_client: HashMap<SocketAddr, u32>,
    /// When idle clients are looked for next.
    sweep: Option<Instant>,
}

struct Session {
    client: SocketAddr,
    socket: UdpSocket,
    used: Instant,
}

impl Relay {
    pub fn new(socket: UdpSocket, target: SocketAddr, source: Option<IpAddr>) -> Self {
        Self { socket, target, source, sessions: HashMap::new(), by_client: HashMap::new(), sweep: None }
    }

    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Passes on what clients sent. `next` is the number of the next session.
    pub fn pass_in(&mut self, poller: &Poller, next: &mut u32) {
        let mut datagram = [0; DATAGRAM];
        for _ in 0..BATCH {
            let (count, client) = match self.socket.recv_from(&mut datagram) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An earlier answer could not be delivered; or a signal.
                Err(_) => continue,
            };
            let Some(session) = self.session(client, poller, next) else { continue };
            session.used = Instant::now();
            // Like any network, this one may lose datagrams: those for which there is no room.
            let _ = session.socket.send(datagram.get(..count).unwrap_or_default());
        }
    }

    fn session(&mut self, client: SocketAddr, poller: &Poller, next: &mut u32) -> Option<&mut Session> {
        if let Some(number) = self.by_client.get(&client) {
            return self.sessions.get_mut(number);
        }
        if self.sessions.len() >= MAX_SESSIONS {
            let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used).map(|(number, _)| *number);
            oldest.into_iter().for_each(|number| self.forget(number));
        }
        let number = *next;
        *next = next.wrapping_add(1);
        let open = || -> std::io::Result<UdpSocket> {
            let family = if self.target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
            if let Some(source) = self.source {
                rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
            }
            rustix::net::connect(&socket, &self.target)?;
            poller.add_readable(&socket, Token::Session(number).number())?;
            Ok(UdpSocket::from(socket))
        };
        match open() {
            Ok(socket) => {
                let used = Instant::now();
                self.sweep.get_or_insert(used + IDLE);
                self.by_client.insert(client, number);
                self.sessions.insert(number, Session { client, socket, used });
                self.sessions.get_mut(&number)
            }
            Err(error) => {
                log::debug!("no socket for a client of a published port: {error}");
                None
            }
        }
    }

    /// Passes on what the container sent to the client with this number; `false` where it has none.
    pub fn pass_out(&mut self, number: u32) -> bool {
        let Some(session) = self.sessions.get_mut(&number) else { return false };
        let mut datagram = [0; DATAGRAM];
        for _ in 0..BATCH {
            match session.socket.recv(&mut datagram) {
                Ok(count) => {
                    session.used = Instant::now();
                    let _ = self.socket.send_to(datagram.get(..count).unwrap_or_default(), session.client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody listens in the container (yet), which a client is not told by datagrams that vanish.
                Err(_) => {}
            }
        }
        true
    }

    fn forget(&mut self, number: u32) {
        if let Some(session) = self.sessions.remove(&number) {
            self.by_client.remove(&session.client);
        }
    }

    /// Lets go of clients that have been quiet for too long.
    pub fn forget_idle(&mut self, now: Instant) {
        if self.sweep.is_none_or(|sweep| sweep > now) {
            return;
        }
        let idle = |session: &Session| now.saturating_duration_since(session.used) >= IDLE;
        let gone: Vec<u32> =
            self.sessions.iter().filter(|(_, session)| idle(session)).map(|(number, _)| *number).collect();
        gone.into_iter().for_each(|number| self.forget(number));
        self.sweep = self.sessions.values().map(|session| session.used + IDLE).min();
    }

    /// How long until there may be such clients.
    pub fn next_idle(&self, now: Instant) -> Option<Duration> {
        self.sweep.map(|sweep| sweep.saturating_duration_since(now))
    }
}
