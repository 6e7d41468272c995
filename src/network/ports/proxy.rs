// SPDX-License-Identifier: Apache-2.0
//! Carries what comes to published ports to the container and back: one thread, however many connections there are.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::listen::{Listener, Socket};
use super::tcp::{Connection, Progress};
use super::udp::Relay;
use crate::network::worker::{Poller, STOP, Worker};

/// TCP connections at once, over all ports; more wait in the kernel's queues until one ends.
const MAX_CONNECTIONS: usize = 4096;
/// Connections that are taken for one event, so that those that are there get their turn.
const ACCEPT_BATCH: usize = 64;
/// How long no connections are taken where the host is out of file descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

/// What a number given to the poller stands for: the kind in the upper half, which one in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A listener.
    Port(u32),
    /// Either socket of a connection.
    Connection(u32),
    /// A client's socket towards the container.
    Session(u32),
}

impl Token {
    pub fn number(self) -> u64 {
        let (kind, which) = match self {
            Self::Port(which) => (0, which),
            Self::Connection(which) => (1, which),
            Self::Session(which) => (2, which),
        };
        kind << 32 | u64::from(which)
    }

    pub fn of(number: u64) -> Option<Self> {
        let which = u32::try_from(number & u64::from(u32::MAX)).ok()?;
        match number >> 32 {
            0 => Some(Self::Port(which)),
            1 => Some(Self::Connection(which)),
            2 => Some(Self::Session(which)),
            _ => None,
        }
    }
}

/// Published ports at work; they are free again when this is dropped.
#[derive(Debug)]
pub struct Proxy {
    _worker: Worker,
}

impl Proxy {
    /// Starts to lead each port to its target. Datagrams go there with the address `source`, where it matters.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(ports: Vec<(Listener, SocketAddr)>, source: Option<IpAddr>) -> io::Result<Self> {
        let worker = Worker::start("ports", move |poller| {
            let mut service = Service::new(poller, ports, source);
            if let Err(error) = service.run() {
                log::error!("published ports do not work any more: {error}");
            }
        })?;
        Ok(Self { _worker: worker })
    }
}

enum Port {
    Tcp(TcpListener, SocketAddr),
    Udp(Relay),
}

struct Service {
    poller: Poller,
    ports: Vec<Port>,
    connections: HashMap<u32, Connection>,
    next: u32,
    /// Connections that had more to do than one turn allows.
    busy: Vec<u32>,
    /// When to take connections again, while none are taken.
    paused: Option<Instant>,
}

impl Service {
    fn new(poller: Poller, ports: Vec<(Listener, SocketAddr)>, source: Option<IpAddr>) -> Self {
        let port = |(listener, target): (Listener, SocketAddr)| match listener.socket {
            Socket::Tcp(listener) => Port::Tcp(listener, target),
            Socket::Udp(socket) => Port::Udp(Relay::new(socket, target, source)),
        };
        let ports = ports.into_iter().map(port).collect();
        Self { poller, ports, connections: HashMap::new(), next: 0, busy: Vec::new(), paused: None }
    }

    fn run(&mut self) -> io::Result<()> {
        for (which, port) in (0..).zip(&self.ports) {
            let token = Token::Port(which).number();
            match port {
                Port::Tcp(listener, _) => self.poller.add_readable(listener, token)?,
                Port::Udp(relay) => self.poller.add_readable(relay.socket(), token)?,
            }
        }
        loop {
            for number in self.poller.wait(self.timeout())? {
                match Token::of(number) {
                    _ if number == STOP => return Ok(()),
                    Some(Token::Port(which)) => self.port(which),
                    Some(Token::Connection(which)) => self.connection(which),
                    Some(Token::Session(which)) => self.session(which),
                    None => {}
                }
            }
            for which in std::mem::take(&mut self.busy) {
                self.connection(which);
            }
            let now = Instant::now();
            for port in &mut self.ports {
                if let Port::Udp(relay) = port {
                    relay.forget_idle(now);
                }
            }
            if self.paused.is_some_and(|until| until <= now) {
                self.pause(None);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.busy.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let idle = self.ports.iter().filter_map(|port| match port {
            Port::Udp(relay) => relay.next_idle(now),
            Port::Tcp(..) => None,
        });
        idle.chain(self.paused.map(|until| until.saturating_duration_since(now))).min()
    }

    fn port(&mut self, which: u32) {
        let Some(port) = usize::try_from(which).ok().and_then(|at| self.ports.get_mut(at)) else { return };
        match port {
            Port::Tcp(..) => self.accept(which),
            Port::Udp(relay) => relay.pass_in(&self.poller, &mut self.next),
        }
    }

    fn accept(&mut self, which: u32) {
        for _ in 0..ACCEPT_BATCH {
            let Some(Port::Tcp(listener, target)) = usize::try_from(which).ok().and_then(|at| self.ports.get(at))
            else {
                return;
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                return self.pause(Some(Instant::now() + PAUSE));
            }
            let client = match listener.accept() {
                Ok((client, _)) => client,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The client has gone before we came to it.
                Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => {
                    log::warn!("cannot take a connection to a published port: {error}");
                    return self.pause(Some(Instant::now() + PAUSE));
                }
            };
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            match Connection::open(client, *target, &self.poller, Token::Connection(number).number()) {
                Ok(connection) => _ = self.connections.insert(number, connection),
                Err(error) => log::debug!("no connection to {target}: {error}"),
            }
        }
    }

    /// Takes no TCP connections until then, or again.
    fn pause(&mut self, until: Option<Instant>) {
        if until.is_some() == self.paused.is_some() {
            return;
        }
        self.paused = until;
        for (which, port) in (0..).zip(&self.ports) {
            if let Port::Tcp(listener, _) = port
                && let Err(error) = self.poller.set_readable(listener, Token::Port(which).number(), until.is_none())
            {
                log::warn!("cannot wait for connections to a published port: {error}");
            }
        }
    }

    fn connection(&mut self, which: u32) {
        match self.connections.get_mut(&which).map(Connection::advance) {
            None | Some(Progress::Waits) => {}
            Some(Progress::More) => self.busy.push(which),
            Some(Progress::Ended) => _ = self.connections.remove(&which),
        }
    }

    fn session(&mut self, which: u32) {
        let relays = self.ports.iter_mut().filter_map(|port| match port {
            Port::Udp(relay) => Some(relay),
            Port::Tcp(..) => None,
        });
        for relay in relays {
            if relay.pass_out(which) {
                return;
            }
        }
    }
}
