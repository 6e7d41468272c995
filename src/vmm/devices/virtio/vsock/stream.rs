// SPDX-License-Identifier: Apache-2.0
//! One connection: a unix socket on the host, a pair of ports in the guest's eyes, and what is in between.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::super::Chain;
use super::super::chain::Reader;
use super::credit::{BUFFER_SIZE, Credit};
use super::io::{self as socket_io, MAX_VECTORS};
use super::packet::{Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use crate::vmm::devices::virtio::DeviceError;

/// How long a host client may take to say its port, and a guest to answer it.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the guest may take to end a connection that the host has closed (Linux: at once, with nothing unread).
pub const LINGER: Duration = Duration::from_secs(2);
/// How long a host reader may take nothing of what a guest left behind on closing.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the guest may leave us without credit before it is asked for some. Linux never needs to be asked, and
/// asking a slow guest too early costs it more than it gives.
pub const CREDIT_PATIENCE: Duration = Duration::from_millis(100);

/// Buffers of the guest that one turn of a stream fills at most: 128 KiB with the 4 KiB that Linux posts.
const MAX_BATCH: usize = 32;
/// Most data in one packet, as Linux has it.
const MAX_PACKET: usize = 64 << 10;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A host client has connected and not yet said which port it wants.
    Greeting,
    /// The guest has not yet answered the request.
    Requested,
    /// Data may flow.
    Established,
    /// The host side is closed; the guest has to say that it is done.
    Closing,
    /// The guest side is closed; what it left behind waits for the host reader.
    Draining,
}

/// What is left of a stream after something happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It lives on.
    Live,
    /// It is over; the guest knows, or never knew of it.
    Over,
    /// It is over, and the guest has to be told.
    Reset,
}

/// A connection.
#[derive(Debug)]
pub struct Stream {
    /// Its ports; without meaning in [`Phase::Greeting`].
    pub ports: Ports,
    /// See [`Phase`].
    pub phase: Phase,
    /// See [`Credit`].
    pub credit: Credit,
    /// When something has to have happened.
    pub deadline: Option<Instant>,
    /// Whether it waits for its turn to send to the guest.
    pub queued: bool,
    socket: Option<OwnedFd>,
    /// Guest data that the host reader has not taken yet.
    backlog: VecDeque<u8>,
    /// Whether the socket is watched for room to write.
    pub watches_room: bool,
    connect_due: Option<Op>,
    credit_update_due: bool,
    credit_request_due: bool,
    credit_requested: bool,
    /// Shutdown flags that the guest is to be told, and those that it has been.
    shutdown_due: u32,
    shutdown_told: u32,
    /// Shutdown flags that the guest has told.
    guest_shutdown: u32,
    /// The socket may have something to read.
    readable: bool,
    /// The peer writes no more, so that a short read does not mean that the socket is empty.
    ended: bool,
    /// The peer has closed.
    gone: bool,
    /// The end of the host's data has been read.
    finished: bool,
    /// The peer reads no more.
    deaf: bool,
    batch: usize,
}

impl Stream {
    fn new(socket: OwnedFd, ports: Ports, phase: Phase, connect_due: Option<Op>) -> Self {
        Self {
            ports,
            phase,
            credit: Credit::default(),
            deadline: None,
            queued: false,
            socket: Some(socket),
            backlog: VecDeque::new(),
            watches_room: false,
            connect_due,
            credit_update_due: false,
            credit_request_due: false,
            credit_requested: false,
            shutdown_due: 0,
            shutdown_told: 0,
            guest_shutdown: 0,
            readable: false,
            ended: false,
            gone: false,
            finished: false,
            deaf: false,
            batch: 1,
        }
    }

    /// A host client that has just connected.
    pub fn greeting(socket: OwnedFd) -> Self {
        let mut stream = Self::new(socket, Ports { host: 0, guest: 0 }, Phase::Greeting, None);
        stream.deadline = Some(Instant::now() + HANDSHAKE_TIMEOUT);
        stream
    }

    /// A connection that the guest asked for and the host has accepted.
    pub fn accepted(socket: OwnedFd, ports: Ports) -> Self {
        Self::new(socket, ports, Phase::Established, Some(Op::Response))
    }

    /// The host socket, while there is one.
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// The client wants a guest port: the guest is asked.
    pub fn request(&mut self, ports: Ports) {
        self.ports = ports;
        self.phase = Phase::Requested;
        self.connect_due = Some(Op::Request);
        self.deadline = Some(Instant::now() + HANDSHAKE_TIMEOUT);
    }

    /// The guest has accepted: the client hears the host's port and data may flow.
    pub fn accept(&mut self) -> Fate {
        let reply = format!("OK {}\n", self.ports.host);
        let sent = self.socket.as_ref().map(|socket| socket_io::send_bytes(socket, [reply.as_bytes(), &[]]));
        if !matches!(sent, Some(Ok(count)) if count == reply.len()) {
            return Fate::Reset;
        }
        self.phase = Phase::Established;
        self.deadline = None;
        // The client may have sent more behind its request, and that edge is past.
        self.readable = true;
        Fate::Live
    }

    /// Something happened on the host socket.
    pub fn host_event(&mut self, ended: bool, gone: bool) -> Fate {
        self.readable = true;
        self.ended |= ended || gone;
        self.gone |= gone;
        match self.phase {
            Phase::Requested if self.gone && self.connect_due.is_some() => Fate::Over,
            Phase::Requested if self.gone => Fate::Reset,
            Phase::Established | Phase::Draining if !self.backlog.is_empty() => self.flush(),
            Phase::Established => {
                self.settle_host_end();
                Fate::Live
            }
            _ => Fate::Live,
        }
    }

    /// The peer has closed and nothing of its data is wanted any more: only the guest has to finish.
    fn settle_host_end(&mut self) {
        let read_out = self.finished || self.guest_shutdown & SHUTDOWN_RECEIVE != 0;
        if self.phase == Phase::Established && read_out && (self.gone || self.deaf) {
            self.close();
        }
    }

    fn close(&mut self) {
        self.socket = None;
        self.backlog = VecDeque::new();
        self.phase = Phase::Closing;
        self.shutdown_due = SHUTDOWN_BOTH;
        self.credit_update_due = false;
        self.deadline = Some(Instant::now() + LINGER);
    }

    /// Takes `length` bytes of the guest's data from `reader`.
    ///
    /// # Errors
    /// The chain's; a packet that its sender had no right to gives [`Fate::Reset`] instead.
    pub fn take_data(&mut self, reader: &mut Reader<'_>, length: u32) -> Result<Fate, DeviceError> {
        match self.phase {
            Phase::Closing => return Ok(Fate::Live),
            Phase::Established if self.guest_shutdown & SHUTDOWN_SEND == 0 && self.credit.receive(length) => {}
            _ => return Ok(Fate::Reset),
        }
        let mut wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if self.backlog.is_empty() && !self.deaf && wanted > 0 {
            match self.send(reader, wanted)? {
                Ok(sent) => {
                    reader.skip(sent)?;
                    wanted -= sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(self.host_deaf(wanted)),
            }
        }
        if self.deaf {
            self.forward(wanted);
            return Ok(Fate::Live);
        }
        let mut piece = [0; 4096];
        while wanted > 0 {
            let part = piece.get_mut(..wanted.min(4096)).unwrap_or_default();
            reader.read_exact(part)?;
            wanted -= part.len();
            self.backlog.extend(&*part);
        }
        Ok(Fate::Live)
    }

    /// Sends up to `wanted` bytes straight from guest memory, without moving `reader`.
    fn send(&mut self, reader: &Reader<'_>, wanted: usize) -> Result<io::Result<usize>, DeviceError> {
        let mut vectors: Vec<_> = reader.clone().io_vectors(wanted)?.collect();
        let Some(socket) = &self.socket else {
            return Ok(Err(io::ErrorKind::NotConnected.into()));
        };
        // SAFETY: the vectors point into guest memory, which the chain behind `reader` keeps alive.
        let sent = unsafe { socket_io::send(socket, &mut vectors) };
        self.forward(*sent.as_ref().unwrap_or(&0));
        Ok(sent)
    }

    fn forward(&mut self, count: usize) {
        self.credit.forward(u32::try_from(count).unwrap_or(BUFFER_SIZE));
        self.credit_update_due |= self.credit.update_due();
    }

    /// The peer reads no more: the guest is told, and what it has sent already is dropped.
    fn host_deaf(&mut self, unsent: usize) -> Fate {
        if self.phase == Phase::Draining {
            return Fate::Over;
        }
        self.deaf = true;
        self.forward(self.backlog.len() + unsent);
        self.backlog = VecDeque::new();
        self.shutdown_due |= SHUTDOWN_RECEIVE;
        self.settle_host_end();
        Fate::Live
    }

    /// Writes as much of the backlog as the host socket takes.
    pub fn flush(&mut self) -> Fate {
        while !self.backlog.is_empty() {
            let Some(socket) = &self.socket else { break };
            let (first, second) = self.backlog.as_slices();
            match socket_io::send_bytes(socket, [first, second]) {
                Ok(sent) => {
                    self.backlog.drain(..sent.min(self.backlog.len()));
                    self.forward(sent);
                    if self.phase == Phase::Draining {
                        self.deadline = Some(Instant::now() + DRAIN_TIMEOUT);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Live,
                Err(_) => return self.host_deaf(0),
            }
        }
        // A slow reader's memory is given back as soon as it has caught up.
        self.backlog = VecDeque::new();
        if self.phase == Phase::Draining {
            return Fate::Over;
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0
            && let Some(socket) = &self.socket
        {
            socket_io::shut(socket, libc::SHUT_WR);
        }
        self.settle_host_end();
        Fate::Live
    }

    /// Whether the peer writes no more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether guest data waits for room in the host socket.
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The guest has finished one or both directions.
    pub fn guest_shuts(&mut self, flags: u32) -> Fate {
        if !matches!(self.phase, Phase::Established | Phase::Closing) {
            return Fate::Reset;
        }
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.phase == Phase::Closing {
            return if self.guest_shutdown == SHUTDOWN_BOTH { Fate::Reset } else { Fate::Live };
        }
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0
            && let Some(socket) = &self.socket
        {
            socket_io::shut(socket, libc::SHUT_RD);
        }
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The guest is done at once; what it wrote still reaches the reader, under no ports any more.
            return Fate::Reset;
        }
        if self.backlog.is_empty() { self.flush() } else { Fate::Live }
    }

    /// Turns a stream that the guest has closed into one that only drains; `false` where nothing is left to drain.
    pub fn drain(&mut self) -> bool {
        let wanted = self.phase == Phase::Established && self.guest_shutdown == SHUTDOWN_BOTH;
        if !wanted || self.backlog.is_empty() {
            return false;
        }
        self.phase = Phase::Draining;
        self.deadline = Some(Instant::now() + DRAIN_TIMEOUT);
        true
    }

    /// Takes the guest's credit from a packet's header.
    pub fn learn_credit(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.credit.learn(buf_alloc, fwd_cnt);
        if self.credit.available() > 0 {
            self.credit_requested = false;
            self.credit_request_due = false;
            if self.phase == Phase::Established {
                self.deadline = None;
            }
        }
    }

    /// The guest wants to know its credit.
    pub fn credit_wanted(&mut self) {
        self.credit_update_due = self.phase == Phase::Established;
    }

    /// The deadline has passed.
    pub fn expire(&mut self) -> Fate {
        self.deadline = None;
        match self.phase {
            Phase::Greeting | Phase::Draining => Fate::Over,
            Phase::Requested if self.connect_due.is_some() => Fate::Over,
            Phase::Requested | Phase::Closing => Fate::Reset,
            Phase::Established => {
                self.credit_request_due = !self.credit_requested;
                Fate::Live
            }
        }
    }

    /// Whether it has something for the guest, and may send it.
    pub fn wants_turn(&self) -> bool {
        self.control().is_some() || self.wants_data()
    }

    fn wants_data(&self) -> bool {
        self.phase == Phase::Established
            && self.readable
            && !self.finished
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.credit.available() > 0
    }

    /// Starts waiting for credit, where that is all that is missing; `true` where a deadline was set.
    pub fn wait_for_credit(&mut self) -> bool {
        let starved = self.phase == Phase::Established
            && self.readable
            && self.deadline.is_none()
            && !self.credit_requested
            && !self.finished
            && self.credit.available() == 0;
        if starved {
            self.deadline = Some(Instant::now() + CREDIT_PATIENCE);
        }
        starved
    }

    /// The packet without data that is due next, with its flags.
    pub fn control(&self) -> Option<(Op, u32)> {
        let shutdown = self.shutdown_due & !self.shutdown_told;
        if let Some(op) = self.connect_due {
            Some((op, 0))
        } else if self.credit_request_due {
            Some((Op::CreditRequest, 0))
        } else if shutdown != 0 {
            Some((Op::Shutdown, self.shutdown_due))
        } else if self.credit_update_due {
            Some((Op::CreditUpdate, 0))
        } else {
            None
        }
    }

    /// That packet is on its way.
    pub fn control_sent(&mut self, op: Op) {
        // Every packet carries our credit.
        self.credit_update_due = false;
        match op {
            Op::Request | Op::Response => self.connect_due = None,
            Op::CreditRequest => {
                self.credit_request_due = false;
                self.credit_requested = true;
            }
            Op::Shutdown => self.shutdown_told |= self.shutdown_due,
            _ => {}
        }
        if self.shutdown_told == SHUTDOWN_BOTH && self.phase == Phase::Established {
            self.close();
        }
    }

    /// How many of the guest's buffers the next [`Stream::receive`] can use at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Reads from the host socket straight into `chains`, behind room for a header of `header` bytes in each.
    ///
    /// Gives the bytes of data in each chain that is used, in order. None are, where the socket has nothing.
    ///
    /// # Errors
    /// The chains'.
    pub fn receive(&mut self, chains: &[Chain], header: usize) -> Result<Vec<usize>, DeviceError> {
        let mut credit = usize::try_from(self.credit.available()).unwrap_or(usize::MAX);
        let (mut vectors, mut sizes) = (Vec::with_capacity(chains.len()), Vec::with_capacity(chains.len()));
        for chain in chains {
            let size = chain.writable_len().saturating_sub(header).min(MAX_PACKET).min(credit);
            let mut writer = chain.writer();
            writer.skip(header)?;
            let before = vectors.len();
            vectors.extend(writer.io_vectors(size)?);
            if size == 0 || vectors.len() > MAX_VECTORS {
                vectors.truncate(before);
                break;
            }
            sizes.push(size);
            credit -= size;
        }
        let room = sizes.iter().sum::<usize>();
        let Some(socket) = self.socket.as_ref().filter(|_| room > 0) else {
            return Err(DeviceError::Driver("a receive buffer has no room behind the packet header"));
        };
        // SAFETY: the vectors point into guest memory, which `chains` keep alive, and to which no references exist.
        let count = match unsafe { socket_io::receive(socket, &mut vectors) } {
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.readable = false;
                return Ok(Vec::new());
            }
            // As a rule the peer closed without having read everything: there is nothing more to come.
            Err(_) => {
                self.gone = true;
                0
            }
        };
        if count == 0 {
            self.finished = true;
            self.shutdown_due |= SHUTDOWN_SEND;
            self.settle_host_end();
            return Ok(Vec::new());
        }
        // A short read has emptied the socket; what comes later makes a new edge.
        self.readable = count == room || self.ended;
        self.credit.send(u32::try_from(count).unwrap_or(u32::MAX));
        self.credit_update_due = false;
        let mut left = count;
        sizes.retain_mut(|size| {
            *size = left.min(*size);
            left -= *size;
            *size > 0
        });
        // Peers as a rule write pieces of one size, so what one took the next will; and more, where there may be more.
        self.batch = if count == room { MAX_BATCH.min(self.batch * 4) } else { sizes.len() };
        Ok(sizes)
    }

    /// The host socket's number, for epoll.
    pub fn raw_fd(&self) -> Option<i32> {
        self.socket.as_ref().map(AsRawFd::as_raw_fd)
    }
}
