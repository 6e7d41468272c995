// SPDX-License-Identifier: Apache-2.0
//! One TCP connection to a published port, and the one to the container that belongs to it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::network::worker::Poller;

/// Bytes that are read at once, and so the most that is kept for a side that does not take them.
const CHUNK: usize = 64 << 10;
/// Reads for one turn: the others wait meanwhile.
const TURN: u32 = 16;

/// Where a connection stands after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on when one of its sockets changes.
    Waits,
    /// It could go on at once.
    More,
    /// Both directions are through, or it broke.
    Ended,
}

/// Two sockets, and what is on its way between them.
pub(super) struct Connection {
    client: TcpStream,
    container: TcpStream,
    connected: bool,
    to_container: Flow,
    to_client: Flow,
}

/// One direction.
#[derive(Default)]
struct Flow {
    /// What was read and not taken yet. Nothing more is read before it is: that is the back-pressure.
    pending: Vec<u8>,
    /// Bytes of it that were taken.
    taken: usize,
    /// The sender has said that it is done.
    ended: bool,
    /// The receiver has been told so.
    closed: bool,
}

impl Connection {
    /// Begins to connect to the container.
    ///
    /// # Errors
    /// The kernel's; the client's connection is reset then.
    pub fn open(client: TcpStream, target: SocketAddr, poller: &Poller, token: u64) -> io::Result<Self> {
        // Reset unless both directions end in order: a client must not take a broken answer for a whole one.
        sockopt::set_socket_linger(&client, Some(std::time::Duration::ZERO))?;
        client.set_nonblocking(true)?;
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let container = TcpStream::from(socket);
        sockopt::set_socket_linger(&container, Some(std::time::Duration::ZERO))?;
        for socket in [&client, &container] {
            socket.set_nodelay(true)?;
            // Whoever vanished without a word is noticed some time.
            sockopt::set_socket_keepalive(socket, true)?;
            poller.add_changes(socket, token)?;
        }
        let (to_container, to_client) = (Flow::default(), Flow::default());
        Ok(Self { client, container, connected: false, to_container, to_client })
    }

    /// Carries on as far as both sockets allow, for one turn.
    pub fn advance(&mut self) -> Progress {
        match self.turn() {
            Ok(true) => Progress::More,
            Ok(false) if self.to_container.closed && self.to_client.closed => {
                for socket in [&self.client, &self.container] {
                    // In order: what is still in the sockets' buffers is to arrive.
                    let _ = sockopt::set_socket_linger(socket, None);
                }
                Progress::Ended
            }
            Ok(false) => Progress::Waits,
            Err(error) => {
                log::debug!("a connection to a published port broke: {error}");
                Progress::Ended
            }
        }
    }

    /// `true` where there may be more to do at once.
    fn turn(&mut self) -> io::Result<bool> {
        if !self.connected {
            if let Some(error) = self.container.take_error()? {
                return Err(error);
            }
            match self.container.peer_addr() {
                Ok(_) => self.connected = true,
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let up = self.to_container.pump(&self.client, &self.container)?;
        let down = self.to_client.pump(&self.container, &self.client)?;
        Ok(up || down)
    }
}

impl Flow {
    /// `true` where the turn ended before the work did.
    fn pump(&mut self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        for _ in 0..TURN {
            while let Some(rest) = self.pending.get(self.taken..).filter(|rest| !rest.is_empty()) {
                match to.write(rest) {
                    Ok(count) => self.taken += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            // Most connections are idle most of the time: they keep no buffer.
            (self.pending, self.taken) = (Vec::new(), 0);
            if self.ended {
                if !self.closed {
                    self.closed = true;
                    match to.shutdown(Shutdown::Write) {
                        // The other end has closed altogether, and does not want to hear it.
                        Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error),
                        _ => {}
                    }
                }
                return Ok(false);
            }
            match from.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    let read = chunk.get(..count).unwrap_or_default();
                    let written = match to.write(read) {
                        Ok(written) => written,
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                        Err(error) => return Err(error),
                    };
                    self.pending = read.get(written..).unwrap_or_default().to_vec();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
