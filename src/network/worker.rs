// SPDX-License-Identifier: Apache-2.0
//! A thread that waits for many sockets at once, and ends when its owner wants.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

/// What [`Poller::wait`] gives when the thread is to end.
pub const STOP: u64 = u64::MAX;

/// Events that are taken at once.
const BATCH: usize = 128;

/// The sockets that a thread waits for, each with a number to tell it by.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    _stop: Arc<OwnedFd>,
    kept: Vec<OwnedFd>,
}

/// A thread that is told to end, and waited for, when this is dropped.
#[derive(Debug)]
pub struct Worker {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    fn new(stop: Arc<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*stop, EventData::new_u64(STOP), EventFlags::IN)?;
        Ok(Self { epoll, _stop: stop, kept: Vec::new() })
    }

    /// Waits for `socket` to be readable, each time until it has been read dry.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_readable(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// As [`Poller::add_readable`], for a descriptor that nobody else needs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_owned(&mut self, fd: OwnedFd, token: u64) -> io::Result<()> {
        self.add_readable(&fd, token)?;
        self.kept.push(fd);
        Ok(())
    }

    /// Waits for `socket` to become readable or writable, or to end. Told once for each change.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_changes(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Goes on, or stops, waiting for `socket` to be readable.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_readable(&self, socket: impl AsFd, token: u64, wanted: bool) -> io::Result<()> {
        let flags = if wanted { EventFlags::IN } else { EventFlags::empty() };
        Ok(epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags)?)
    }

    /// Waits until something happens, at most this long; gives the numbers of the sockets that it happened to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<u64>> {
        // Rounded up: waking just before something is due would turn in circles until it is.
        let timeout = timeout.map(|timeout| timeout.saturating_add(Duration::from_millis(1)));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut events = Vec::with_capacity(BATCH);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().map(|event| event.data.u64()).collect())
    }
}

impl Worker {
    /// Starts a thread that runs `work` until that returns, which it does after [`STOP`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(name: &str, work: impl FnOnce(Poller) + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let poller = Poller::new(Arc::clone(&stop))?;
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(poller))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Writing to an eventfd that nobody has filled does not fail.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}
