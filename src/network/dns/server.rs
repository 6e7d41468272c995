// SPDX-License-Identifier: Apache-2.0
//! The name server's thread.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use super::client::Messages;
use super::forward::{Asker, Forwarded};
use super::message::{self, Bad, Code, MAX_QUERY};
use super::names;
use super::state::State;
use crate::network::worker::{Poller, STOP};

/// Seconds that clients may keep an answer about a container, which may get another address.
const TTL: u32 = 10;
/// Queries that others are asked about at once; more are refused.
const MAX_FORWARDED: usize = 256;
/// Of one client.
const MAX_FORWARDED_EACH: usize = 64;
/// Connections at once; more wait in the kernel's queue.
const MAX_CLIENTS: usize = 64;
/// How long a connection may be quiet (RFC 7766 §6.2.3 says: seconds).
const IDLE: Duration = Duration::from_secs(10);
/// Datagrams, or messages of a connection, for one event.
const BATCH: usize = 64;

const UDP: u64 = 0;
const TCP: u64 = 1;
const CLIENT: u64 = 1 << 32;
const FORWARDED: u64 = 2 << 32;

struct Client {
    messages: Messages,
    address: IpAddr,
    due: Instant,
}

pub(super) struct Server {
    poller: Poller,
    udp: UdpSocket,
    tcp: TcpListener,
    state: State,
    clients: HashMap<u32, Client>,
    forwarded: HashMap<u32, Forwarded>,
    next: u32,
    accepting: bool,
}

impl Server {
    pub fn new(poller: Poller, udp: UdpSocket, tcp: TcpListener, state: State) -> Self {
        let (clients, forwarded) = (HashMap::new(), HashMap::new());
        Self { poller, udp, tcp, state, clients, forwarded, next: 0, accepting: true }
    }

    pub fn run(&mut self) -> io::Result<()> {
        self.poller.add_readable(&self.udp, UDP)?;
        self.poller.add_readable(&self.tcp, TCP)?;
        loop {
            for number in self.poller.wait(self.timeout())? {
                let which = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
                match number {
                    STOP => return Ok(()),
                    UDP => self.datagrams(),
                    TCP => self.accept()?,
                    CLIENT..FORWARDED => self.client(which),
                    _ => self.answered(which),
                }
            }
            self.expire()?;
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let clients = self.clients.values().map(|client| client.due);
        let next = clients.chain(self.forwarded.values().map(|forwarded| forwarded.due)).min();
        next.map(|due| due.saturating_duration_since(Instant::now()))
    }

    fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    fn datagrams(&mut self) {
        let mut buffer = [0; MAX_QUERY];
        for _ in 0..BATCH {
            match self.udp.recv_from(&mut buffer) {
                Ok((count, from)) => {
                    let packet = buffer.get(..count).unwrap_or_default();
                    if let Some(answer) = self.handle(packet, Asker::Udp(from)) {
                        // Datagrams may be lost; the client asks again.
                        let _ = self.udp.send_to(&answer, from);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    /// The answer, where it can be given at once.
    fn handle(&mut self, packet: &[u8], asker: Asker) -> Option<Vec<u8>> {
        let network = self.state.network();
        // Only for this network: not for whoever finds a way to this address.
        if network.is_some_and(|network| !network.contains(asker.address())) {
            return None;
        }
        let query = match message::parse(packet) {
            Ok(query) => query,
            Err(Bad::NoQuery) => return None,
            Err(Bad::Query(id, code)) => return Some(message::refusal(id, code)),
        };
        let Some(network) = network else { return Some(message::answer(&query, Code::Failed, &[], 0)) };
        if let Some((code, records)) = names::answer(network, &query) {
            let mut answer = message::answer(&query, code, &records, TTL);
            if let Asker::Udp(_) = asker {
                message::truncate(&mut answer, &query);
            }
            return Some(answer);
        }
        // Names can carry data out of a network that is to have no way out.
        if network.internal {
            return Some(message::answer(&query, Code::Refused, &[], 0));
        }
        let own: Vec<IpAddr> = network.gateways().iter().map(ipnet::IpNet::addr).collect();
        let servers: Vec<IpAddr> =
            self.state.resolvers().servers.iter().filter(|server| !own.contains(server)).copied().collect();
        let of_client = || self.forwarded.values().filter(|other| other.asker.address() == asker.address()).count();
        if self.forwarded.len() >= MAX_FORWARDED || of_client() >= MAX_FORWARDED_EACH {
            return Some(message::answer(&query, Code::Refused, &[], 0));
        }
        let number = self.number();
        let mut forwarded = Forwarded::new(asker, query, packet, servers);
        if !forwarded.ask(&self.poller, FORWARDED | u64::from(number)) {
            return Some(message::answer(&forwarded.query, Code::Failed, &[], 0));
        }
        self.forwarded.insert(number, forwarded);
        None
    }

    /// Something came from a server that was asked.
    fn answered(&mut self, number: u32) {
        let Some(forwarded) = self.forwarded.get_mut(&number) else { return };
        match forwarded.receive() {
            Ok(None) => {}
            Ok(Some(answer)) => self.finish(number, answer),
            Err(error) => {
                log::debug!("a name server does not answer: {error}");
                self.retry(number);
            }
        }
    }

    fn retry(&mut self, number: u32) {
        let Some(forwarded) = self.forwarded.get_mut(&number) else { return };
        if !forwarded.ask(&self.poller, FORWARDED | u64::from(number)) {
            let answer = message::answer(&forwarded.query, Code::Failed, &[], 0);
            self.finish(number, answer);
        }
    }

    fn finish(&mut self, number: u32, mut answer: Vec<u8>) {
        let Some(forwarded) = self.forwarded.remove(&number) else { return };
        match forwarded.asker {
            Asker::Udp(to) => {
                message::truncate(&mut answer, &forwarded.query);
                let _ = self.udp.send_to(&answer, to);
            }
            Asker::Tcp(client, _) => self.send(client, &answer),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            if self.clients.len() >= MAX_CLIENTS {
                return self.set_accepting(false);
            }
            match self.tcp.accept() {
                Ok((stream, from)) => {
                    let number = self.number();
                    let ready = stream
                        .set_nonblocking(true)
                        .and_then(|()| self.poller.add_changes(&stream, CLIENT | u64::from(number)));
                    if ready.is_ok() {
                        let (messages, due) = (Messages::new(stream, MAX_QUERY), Instant::now() + IDLE);
                        self.clients.insert(number, Client { messages, address: from.ip(), due });
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(error) => {
                    log::warn!("the name server cannot take a connection: {error}");
                    // Until a connection ends; where there is none, trying again is all there is.
                    return if self.clients.is_empty() { Ok(()) } else { self.set_accepting(false) };
                }
            }
        }
        Ok(())
    }

    fn set_accepting(&mut self, wanted: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.accepting, wanted) != wanted {
            self.poller.set_readable(&self.tcp, TCP, wanted)?;
        }
        Ok(())
    }

    fn client(&mut self, number: u32) {
        // More than one batch at once is more than any resolver sends: the connection ends.
        for _ in 0..BATCH {
            let Some(client) = self.clients.get_mut(&number) else { return };
            let received = client.messages.flush().and_then(|()| client.messages.receive());
            let address = client.address;
            match received {
                Ok(None) => return,
                Ok(Some(packet)) => {
                    client.due = Instant::now() + IDLE;
                    if let Some(answer) = self.handle(&packet, Asker::Tcp(number, address)) {
                        self.send(number, &answer);
                    }
                }
                Err(_) => break,
            }
        }
        self.clients.remove(&number);
    }

    fn send(&mut self, number: u32, answer: &[u8]) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        client.due = Instant::now() + IDLE;
        if client.messages.send(answer).is_err() {
            self.clients.remove(&number);
        }
    }

    /// Ends connections that were quiet for too long, and asks other servers where one was.
    fn expire(&mut self) -> io::Result<()> {
        let now = Instant::now();
        self.clients.retain(|_, client| client.due > now);
        let late: Vec<u32> =
            self.forwarded.iter().filter(|(_, forwarded)| forwarded.due <= now).map(|(number, _)| *number).collect();
        late.into_iter().for_each(|number| self.retry(number));
        if !self.accepting && self.clients.len() < MAX_CLIENTS {
            self.set_accepting(true)?;
        }
        Ok(())
    }
}
