// SPDX-License-Identifier: Apache-2.0
//! One epoll set that everything but the vCPUs waits in.
//!
//! vCPU threads add and remove descriptors (a device's, when its driver starts or resets it); one thread waits.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What a descriptor belongs to; travels through epoll's 64 bits of user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The machine's own descriptors: control socket, serial input, exit notice.
    Machine(u32),
    /// A notification of the driver on `queue` of device `device`.
    Queue {
        /// Number of the device, in bus order.
        device: u16,
        /// Number of the queue in that device.
        queue: u16,
    },
    /// A host descriptor of a device, with a number of the device's own.
    Device {
        /// Number of the device, in bus order.
        device: u16,
        /// The device's own number for it.
        source: u16,
    },
}

impl Token {
    fn pack(self) -> u64 {
        match self {
            Token::Machine(what) => u64::from(what),
            Token::Queue { device, queue } => 1 << 32 | u64::from(device) << 16 | u64::from(queue),
            Token::Device { device, source } => 2 << 32 | u64::from(device) << 16 | u64::from(source),
        }
    }

    fn unpack(data: u64) -> Self {
        let [a, b, c, d, kind, ..] = data.to_le_bytes();
        let (low, high) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        match kind {
            1 => Token::Queue { device: high, queue: low },
            2 => Token::Device { device: high, source: low },
            _ => Token::Machine(u32::from_le_bytes([a, b, c, d])),
        }
    }
}

/// The epoll set. Shared by reference: adding and removing need no lock.
#[derive(Debug)]
pub struct EventLoop {
    epoll: Epoll,
}

impl EventLoop {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's refusal (out of descriptors).
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()? })
    }

    /// Watches `fd` for `events` until it is removed or closed.
    ///
    /// # Errors
    /// `EEXIST` where it is watched already, `EPERM` where it cannot be (a regular file).
    pub fn add(&self, fd: RawFd, events: EventSet, token: Token) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token.pack()))
    }

    /// Changes what is watched on `fd`.
    ///
    /// # Errors
    /// `ENOENT` where it is not watched.
    pub fn change(&self, fd: RawFd, events: EventSet, token: Token) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Modify, fd, EpollEvent::new(events, token.pack()))
    }

    /// Watches `fd` no more; one that is not watched is no error.
    pub fn remove(&self, fd: RawFd) {
        // Closing removes it as well, so a failure here means that there is nothing left to do.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Waits for at least one event and hands each to `handle`; waits at most `timeout_ms` (-1: for ever).
    ///
    /// # Errors
    /// The kernel's, except `EINTR`, which waits again.
    pub fn wait(&self, timeout_ms: i32, mut handle: impl FnMut(Token, EventSet)) -> io::Result<()> {
        let mut events = [EpollEvent::default(); 32];
        let count = loop {
            match self.epoll.wait(timeout_ms, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        for event in events.iter().take(count) {
            handle(Token::unpack(event.data()), event.event_set());
        }
        Ok(())
    }
}

impl AsRawFd for EventLoop {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn tokens_survive_packing() {
        for token in [
            Token::Machine(7),
            Token::Queue { device: 3, queue: 9 },
            Token::Device { device: u16::MAX, source: 0x8001 },
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn an_event_reaches_its_token_until_removed() {
        let (set, fd) = (EventLoop::new().unwrap(), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let token = Token::Device { device: 1, source: 2 };
        set.add(fd.as_raw_fd(), EventSet::IN, token).unwrap();
        fd.write(1).unwrap();
        let mut seen = Vec::new();
        set.wait(0, |token, _| seen.push(token)).unwrap();
        set.remove(fd.as_raw_fd());
        set.wait(0, |token, _| seen.push(token)).unwrap();
        assert_eq!(seen, [token]);
    }
}
