// SPDX-License-Identifier: Apache-2.0
//! What the host's side brings: clients, their handshakes, events of their sockets, and the passing of time.

use std::io;
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::super::DeviceError;
use super::io::receive_bytes;
use super::packet::Ports;
use super::stream::{Fate, Phase, Stream};
use super::table::{Id, MAX_STREAMS};
use super::{FIRST_HOST_PORT, Vsock};

/// Token of the listening socket in the device's epoll set; no stream has it.
pub(super) const LISTENER: u64 = u64::MAX;
/// Token of the timer.
pub(super) const TIMER: u64 = u64::MAX - 1;

/// Clients that are accepted before others have a turn.
const ACCEPT_BATCH: usize = 16;
/// Longest first line of a client, with its end.
const MAX_GREETING: usize = 32;

impl Vsock {
    /// Takes what has happened on the host's side. What is left over makes the epoll set ready again at once.
    pub(super) fn serve_host(&mut self) -> Result<(), DeviceError> {
        let mut events = [EpollEvent::default(); 64];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other.map_err(|source| DeviceError::Host { what: "waiting for vsock connections", source })?,
        };
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accept_clients(),
                TIMER => self.tick(),
                data => self.stream_event(Id::unpack(data), event.event_set()),
            }
        }
        Ok(())
    }

    fn accept_clients(&mut self) {
        for _ in 0..ACCEPT_BATCH {
            match self.endpoint.accept() {
                Ok(None) => return,
                Ok(Some(socket)) => {
                    // Beyond the bound the client sees its connection closed.
                    let Ok(id) = self.streams.insert(Stream::greeting(socket)) else {
                        self.counters.refused += 1;
                        continue;
                    };
                    let fate = if self.watch(id) { Fate::Live } else { self.turn_away() };
                    self.settle(id, fate);
                }
                Err(_) => {
                    // No descriptors left, as a rule: asked again at once, the answer would be the same.
                    self.accept_paused = true;
                    self.watch_listener(EventSet::empty());
                    return self.start_ticking();
                }
            }
        }
    }

    pub(super) fn watch_listener(&mut self, events: EventSet) {
        let listener = std::os::fd::AsRawFd::as_raw_fd(&*self.endpoint);
        // It fails only for a descriptor that is not in the set, and the listener is from start to end.
        let _ = self.epoll.ctl(ControlOperation::Modify, listener, EpollEvent::new(events, LISTENER));
    }

    fn ctl(&self, operation: ControlOperation, id: Id, fd: i32, room: bool) -> io::Result<()> {
        let mut events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        events.set(EventSet::OUT, room);
        self.epoll.ctl(operation, fd, EpollEvent::new(events, id.pack()))
    }

    /// Starts to watch a new stream's socket; `false` where the kernel will not.
    pub(super) fn watch(&mut self, id: Id) -> bool {
        let fd = self.streams.get_mut(id).and_then(|stream| stream.raw_fd());
        fd.is_some_and(|fd| self.ctl(ControlOperation::Add, id, fd, false).is_ok())
    }

    /// Watches for room in the socket exactly while something waits for it: every read of the peer's is an event.
    pub(super) fn watch_room(&mut self, id: Id) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let wanted = stream.has_backlog();
        if stream.watches_room != wanted
            && let Some(fd) = stream.raw_fd()
        {
            stream.watches_room = wanted;
            if self.ctl(ControlOperation::Modify, id, fd, wanted).is_err() {
                self.streams.remove(id);
            }
        }
    }

    fn stream_event(&mut self, id: Id, events: EventSet) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let gone = events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        let fate = match stream.host_event(events.contains(EventSet::READ_HANG_UP), gone) {
            Fate::Live if stream.phase == Phase::Greeting => self.greet(id),
            fate => fate,
        };
        self.settle(id, fate);
    }

    /// Reads a client's first line, which says the port that it wants, and nothing behind it.
    fn greet(&mut self, id: Id) -> Fate {
        let Some(stream) = self.streams.get_mut(id) else { return Fate::Live };
        let Some(socket) = stream.socket() else { return Fate::Over };
        let mut line = [0; MAX_GREETING];
        let count = match receive_bytes(socket, &mut line, true) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Fate::Live,
            Ok(count) if count > 0 => count,
            _ => return self.turn_away(),
        };
        let seen = line.get(..count).unwrap_or_default();
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            let hopeless = count == MAX_GREETING || stream.has_ended();
            return if hopeless { self.turn_away() } else { Fate::Live };
        };
        let port = seen.get(..end).and_then(parse_greeting);
        let taken = line.get_mut(..=end).map(|line| receive_bytes(socket, line, false));
        let (Some(guest), Some(Ok(_))) = (port, taken) else {
            return self.turn_away();
        };
        let Some(host) = self.free_host_port(guest) else {
            return self.turn_away();
        };
        let ports = Ports { host, guest };
        self.streams.bind(ports, id);
        if let Some(stream) = self.streams.get_mut(id) {
            stream.request(ports);
        }
        self.counters.from_host += 1;
        Fate::Live
    }

    fn turn_away(&mut self) -> Fate {
        self.counters.refused += 1;
        Fate::Over
    }

    /// A host port that has no connection to this guest port. One more try than there are streams finds one.
    fn free_host_port(&mut self, guest: u32) -> Option<u32> {
        (0..=MAX_STREAMS).find_map(|_| {
            let host = self.next_host_port;
            // The highest number stands for "any port" in the guest.
            self.next_host_port = if host >= u32::MAX - 1 { FIRST_HOST_PORT } else { host + 1 };
            self.streams.find(Ports { host, guest }).is_none().then_some(host)
        })
    }

    fn tick(&mut self) {
        // Nothing to read would mean that it was read already.
        let _ = self.timer.wait();
        if std::mem::take(&mut self.accept_paused) {
            self.watch_listener(EventSet::IN);
        }
        let now = Instant::now();
        for id in self.streams.ids() {
            let due = self.streams.get_mut(id).filter(|stream| stream.deadline.is_some_and(|deadline| deadline <= now));
            if let Some(stream) = due {
                let fate = stream.expire();
                self.settle(id, fate);
            }
        }
        let ids = self.streams.ids();
        let waiting =
            ids.into_iter().any(|id| self.streams.get_mut(id).is_some_and(|stream| stream.deadline.is_some()));
        if !waiting && self.telling.is_none() && self.timer.clear().is_ok() {
            self.ticking = false;
        }
    }
}

/// The port in `CONNECT PORT`.
fn parse_greeting(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if verb.eq_ignore_ascii_case("connect") && digits && words.next().is_none() { port.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greetings() {
        for (line, port) in [
            ("CONNECT 1024", Some(1024)),
            ("connect 0\r", Some(0)),
            ("CONNECT 4294967295", Some(u32::MAX)),
            ("CONNECT 4294967296", None),
            ("CONNECT -1", None),
            ("CONNECT +1", None),
            ("CONNECT 1 2", None),
            ("CONNECT", None),
            ("GET / HTTP/1.1", None),
            ("", None),
        ] {
            assert_eq!(parse_greeting(line.as_bytes()), port, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in prop::collection::vec(any::<u8>(), 0..40)) {
            parse_greeting(&line);
        }
    }
}
