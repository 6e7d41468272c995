// SPDX-License-Identifier: Apache-2.0
//! Virtio 1.3 devices over MMIO, modern interface only.
//!
//! A device implements [`VirtioDevice`] and is driven by a [`mmio::Transport`]: what a driver has set up lives in a
//! [`Session`], made at `DRIVER_OK` and dropped at reset, so that no device ever sees a half-configured queue.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod queue;
pub mod registers;
pub mod rng;
pub mod state;
#[cfg(any(test, feature = "fake-driver"))]
pub mod testing;
pub mod vhost_user;
pub mod vsock;
mod walk;

use std::os::fd::RawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::super::memory::Ram;
pub use chain::{Chain, ChainError};
pub use interrupt::Interrupt;
pub use queue::{Queue, QueueError, QueueSize};
pub use registers::{Window, Windows};
pub use state::{DeviceState, RestoreError};

/// Device types (virtio 1.3 §5).
pub mod device_type {
    /// Network card.
    pub const NET: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const RNG: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Host-guest sockets.
    pub const VSOCK: u32 = 19;
    /// File system.
    pub const FS: u32 = 26;
    /// Persistent memory.
    pub const PMEM: u32 = 27;
}

/// Why a device can serve its driver no longer. The transport sets `DEVICE_NEEDS_RESET`; nothing else is affected.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of a ring.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The driver sent a chain that cannot hold what it claims.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The host side of the device failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The driver broke a rule of this device type.
    #[error("driver error: {0}")]
    Driver(&'static str),
}

/// A host descriptor that the event loop watches while a driver is active.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// The descriptor; the device keeps it open.
    pub fd: RawFd,
    /// The device's own number for it.
    pub id: u16,
    /// What to wait for. With `EDGE_TRIGGERED` the device must read until it would block, or remember to go on later.
    pub events: EventSet,
}

/// What a driver has set up, from `DRIVER_OK` to reset.
pub struct Session {
    /// Guest memory.
    pub memory: Arc<Ram>,
    /// Feature bits that driver and device agreed on.
    pub features: u64,
    /// The device's queues, all of [`VirtioDevice::queue_sizes`] in order; one that the driver left unready is `None`.
    pub queues: Vec<Option<Queue>>,
    /// For configuration changes; queues carry their own.
    pub interrupt: Interrupt,
}

impl Session {
    /// Whether feature bit number `bit` was agreed on.
    pub fn has(&self, bit: u32) -> bool {
        self.features & (1 << bit) != 0
    }

    /// The queue with this number.
    ///
    /// # Errors
    /// The driver never made it ready.
    pub fn queue(&mut self, number: usize) -> Result<&mut Queue, DeviceError> {
        self.queues
            .get_mut(number)
            .and_then(Option::as_mut)
            .ok_or(DeviceError::Driver("a queue that is used was never made ready"))
    }
}

/// A virtio device, without its transport.
///
/// Calls come from the event-loop thread and from vCPU threads, one at a time. None may block for long: another
/// device, or a vCPU, waits behind it.
pub trait VirtioDevice: Send {
    /// Device type (virtio 1.3 §5), see [`device_type`].
    fn device_type(&self) -> u32;

    /// A short name for messages: `block`, `net`, ...
    fn name(&self) -> &str;

    /// Device-specific feature bits that are offered. The transport adds `VERSION_1` and those of rings.
    fn features(&self) -> u64;

    /// Whether the driver may leave out notifications that its device does not need, which not every device can do
    /// without.
    fn event_idx(&self) -> bool {
        true
    }

    /// Largest size of each queue.
    fn queue_sizes(&self) -> &[QueueSize];

    /// Reads device configuration space; bytes beyond its end stay zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes device configuration space; devices without writable fields ignore it.
    fn write_config(&mut self, _offset: usize, _data: &[u8], _session: Option<&mut Session>) {}

    /// A driver is ready: queues are live from here on.
    ///
    /// # Errors
    /// The driver has set up something that the device cannot work with; it gets `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Ends the session. On return no host I/O may touch guest memory any more: cancel it or wait for it.
    fn reset(&mut self, _session: &mut Session) {}

    /// Brings the device to rest, for a snapshot of a guest that stands still: on return no host I/O is in flight, and
    /// every chain that was taken is given back or put back. It goes on from there without being told.
    ///
    /// # Errors
    /// See [`DeviceError`]; the session is unusable afterwards.
    fn rest(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        Ok(())
    }

    /// What a snapshot has to hold beyond the queues of a device at rest.
    fn state(&self) -> DeviceState {
        DeviceState::Plain
    }

    /// Takes up what a device of the same type left. With a session this comes after [`VirtioDevice::activate`], with
    /// queues that are where they were.
    ///
    /// # Errors
    /// See [`RestoreError`].
    fn restore(&mut self, state: &DeviceState, _session: Option<&mut Session>) -> Result<(), RestoreError> {
        match state {
            DeviceState::Plain => Ok(()),
            _ => Err(RestoreError::Nonsense("it is that of another device")),
        }
    }

    /// The driver has put chains into queue number `queue`.
    ///
    /// # Errors
    /// See [`DeviceError`]; the session is unusable afterwards.
    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError>;

    /// Host descriptors to watch while a session lasts.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Something happened on the host descriptor with this number.
    ///
    /// # Errors
    /// See [`DeviceError`]; the session is unusable afterwards.
    fn source_event(&mut self, _id: u16, _events: EventSet, _session: &mut Session) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Counters for the control socket's `metrics`: `(name, value)`.
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Copies `config` from `offset` into `data`, as `read_config` wants it: what lies beyond the end stays as it is.
pub fn copy_config(config: &[u8], offset: usize, data: &mut [u8]) {
    if let Some(rest) = config.get(offset..) {
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }
}
