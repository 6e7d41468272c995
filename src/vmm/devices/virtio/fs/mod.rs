// SPDX-License-Identifier: Apache-2.0
//! File system (virtio 1.3 §5.11): a directory of the host's, served by the program `virtiofsd` over vhost-user.
//!
//! Its queues are the back end's: it takes requests from guest memory and raises the interrupt itself. What goes through
//! here are the driver's notifications, so that it is known which requests the back end has. Should it die, each of them
//! is answered with EIO, as is every later one: a FUSE client waits for its answers without end.

mod in_flight;

use std::os::fd::AsRawFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::vhost_user::{Backend, Served, VhostUserError};
use super::{Chain, DeviceError, QueueSize, Session, Source, VirtioDevice, copy_config, device_type};
use in_flight::InFlight;

/// One for what must not wait, and one for requests: virtiofsd has no more.
const QUEUES: [QueueSize; 2] = [QueueSize::DEFAULT; 2];
const REQUEST_QUEUES: u32 = 1;
/// Bytes of a tag (virtio 1.3 §5.11.4).
pub const MAX_TAG: usize = 36;

/// Operations without an answer (`linux/fuse.h`).
const FUSE_FORGET: u32 = 2;
const FUSE_BATCH_FORGET: u32 = 42;
/// Bytes of `fuse_out_header`.
const ANSWER: u32 = 16;

/// A file system, as its owner asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest calls it when it mounts it; 1 to [`MAX_TAG`] bytes.
    pub tag: String,
    /// Where virtiofsd listens.
    pub socket: PathBuf,
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag cannot be one.
    #[error("a tag has 1 to {MAX_TAG} bytes, and no zero among them")]
    Tag,
    /// The back end is of no use.
    #[error(transparent)]
    Backend(#[from] VhostUserError),
    /// No eventfd.
    #[error(transparent)]
    System(#[from] std::io::Error),
}

/// The file-system device.
pub struct Fs {
    tag: String,
    config: [u8; MAX_TAG + 4],
    /// `None` once it has died.
    backend: Option<Backend>,
    kicks: Vec<EventFd>,
    /// One for each queue while a driver is active.
    in_flight: Vec<InFlight>,
    notifications: u64,
    refused: u64,
}

impl Fs {
    /// Connects to virtiofsd.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn open(config: &FsConfig) -> Result<Self, FsError> {
        Self::new(&config.tag, Backend::connect(&config.socket)?)
    }

    fn new(tag: &str, backend: Backend) -> Result<Self, FsError> {
        if !(1..=MAX_TAG).contains(&tag.len()) || tag.contains('\0') {
            return Err(FsError::Tag);
        }
        let mut config = [0; MAX_TAG + 4];
        let fields = tag.bytes().chain(std::iter::repeat(0)).take(MAX_TAG).chain(REQUEST_QUEUES.to_le_bytes());
        config.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let kick = |_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let kicks = QUEUES.iter().map(kick).collect::<Result<_, _>>()?;
        let (tag, in_flight) = (tag.to_owned(), Vec::new());
        Ok(Self { tag, config, backend: Some(backend), kicks, in_flight, notifications: 0, refused: 0 })
    }

    fn hand_over(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.in_flight.clear();
        let call = session.interrupt.line().as_raw_fd();
        let mut served = Vec::with_capacity(QUEUES.len());
        for (number, kick) in self.kicks.iter().enumerate() {
            let rings = session.queue(number)?.rings();
            self.in_flight.push(InFlight::new(rings));
            served.push(Served { rings, kick: kick.as_raw_fd(), call });
        }
        let Some(backend) = &mut self.backend else { return Ok(()) };
        match backend.start(&session.memory, session.features, &served) {
            Ok(()) => Ok(()),
            Err(error) => self.lose(&error, session),
        }
    }

    /// The back end is no more: what it has is answered for it, and what comes later.
    fn lose(&mut self, error: &VhostUserError, session: &mut Session) -> Result<(), DeviceError> {
        let tag = &self.tag;
        log::error!(
            "virtiofsd of file system `{tag}` is lost: {error}; the guest gets I/O errors from there from now on"
        );
        self.backend = None;
        for (number, mut in_flight) in self.in_flight.drain(..).enumerate() {
            in_flight
                .look(&session.memory)
                .map_err(virtio_queue::Error::GuestMemory)
                .map_err(super::QueueError::from)?;
            if !in_flight.is_exact() {
                log::error!("some requests to file system `{tag}` may never end: there were too many to know all");
            }
            let queue = session.queue(number)?;
            let (available, used) = in_flight.position();
            queue.resume(available, used);
            for head in in_flight.heads() {
                let written = refuse(&queue.taken(head)?)?;
                queue.push(head, written)?;
                self.refused += 1;
            }
            queue.notify_driver()?;
            // Chains may have come meanwhile.
            queue.reschedule();
        }
        // For what it had done and not told yet.
        session.interrupt.raise();
        Ok(())
    }
}

/// Answers a FUSE request with EIO, where it takes an answer.
fn refuse(chain: &Chain) -> Result<u32, DeviceError> {
    // `fuse_in_header`: length, operation, number of the request, and more.
    let [_, operation, low, high] = chain.reader().read_obj::<[u32; 4]>()?.map(u32::from_le);
    if matches!(operation, FUSE_FORGET | FUSE_BATCH_FORGET) {
        return Ok(0);
    }
    let error = u32::from_ne_bytes((-libc::EIO).to_ne_bytes());
    chain.writer().write_obj([ANSWER, error, low, high].map(u32::to_le))?;
    Ok(ANSWER)
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        device_type::FS
    }

    fn name(&self) -> &str {
        "fs"
    }

    fn features(&self) -> u64 {
        0
    }

    /// Each notification has to come here, or chains would be missed.
    fn event_idx(&self) -> bool {
        false
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.hand_over(session)
    }

    fn reset(&mut self, _session: &mut Session) {
        self.in_flight.clear();
        let Some(backend) = &mut self.backend else { return };
        if let Err(error) = (0..).zip(QUEUES).try_for_each(|(number, _)| backend.stop(number)) {
            log::error!("virtiofsd of file system `{}` is lost: {error}", self.tag);
            // It ends with the connection.
            self.backend = None;
        }
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        if self.backend.is_none() {
            let refused = &mut self.refused;
            return session.queue(queue)?.serve(|chain| {
                *refused += 1;
                refuse(chain)
            });
        }
        self.notifications += 1;
        if let (Some(in_flight), Some(kick)) = (self.in_flight.get_mut(queue), self.kicks.get(queue)) {
            in_flight
                .look(&session.memory)
                .map_err(virtio_queue::Error::GuestMemory)
                .map_err(super::QueueError::from)?;
            // Fails only when the counter is full, and then the back end has been told already.
            let _ = kick.write(1);
        }
        Ok(())
    }

    fn sources(&self) -> Vec<Source> {
        self.backend.iter().map(|backend| Source { fd: backend.socket(), id: 0, events: EventSet::IN }).collect()
    }

    fn source_event(&mut self, _id: u16, _events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        // It is asked nothing now, so that it has nothing to say.
        if self.backend.is_some() { self.lose(&VhostUserError::Gone, session) } else { Ok(()) }
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let lost = u64::from(self.backend.is_none());
        vec![("notifications", self.notifications), ("refused", self.refused), ("backend_lost", lost)]
    }
}

#[cfg(test)]
#[path = "fs_test.rs"]
mod tests;
