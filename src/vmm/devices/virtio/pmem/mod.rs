// SPDX-License-Identifier: Apache-2.0
//! Persistent memory (virtio 1.3 §5.19): a file of the host that the guest reads as memory, without copying it.
//!
//! Read-only, three times over: the memslot, the mapping and the descriptor. The device cannot say so to the driver;
//! a store of the guest ends as an access that no device answers, and changes nothing. Mount it `ro`.

mod image;

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Chain, DeviceError, DeviceState, QueueSize, RestoreError, Session, VirtioDevice, copy_config, device_type,
};
pub use image::{GRANULE, PmemError, PmemProblem, ReadOnlyMapping};

/// Linux sends one request at a time.
const QUEUES: [QueueSize; 1] = [QueueSize::new(16).unwrap()];
/// Request type (virtio 1.3 §5.19.6).
const FLUSH: u32 = 0;
/// Answers.
const OK: u32 = 0;
const EIO: u32 = 1;

/// A region of persistent memory, as its owner asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PmemConfig {
    /// The file; a regular one, and nobody may have it open as a writable disk.
    pub path: PathBuf,
}

/// The persistent-memory device.
#[derive(Debug)]
pub struct Pmem {
    mapping: Arc<ReadOnlyMapping>,
    guest_address: u64,
    flushes: u64,
    rejected: u64,
}

impl Pmem {
    /// Opens, locks and maps the file. The device has no place in the guest yet, see [`Pmem::place`].
    ///
    /// # Errors
    /// See [`PmemError`].
    pub fn open(config: &PmemConfig) -> Result<Self, PmemError> {
        Ok(Self::new(ReadOnlyMapping::open(&config.path)?))
    }

    /// A device for what is mapped already.
    pub fn new(mapping: ReadOnlyMapping) -> Self {
        Self { mapping: Arc::new(mapping), guest_address: 0, flushes: 0, rejected: 0 }
    }

    /// What a memslot with `KVM_MEM_READONLY` has to show. Whoever makes the memslot keeps this as long as it exists.
    pub fn mapping(&self) -> Arc<ReadOnlyMapping> {
        Arc::clone(&self.mapping)
    }

    /// Tells the device where in the guest its memslot is: a multiple of [`crate::vmm::layout::PMEM_ALIGN`].
    pub fn place(&mut self, guest_address: u64) {
        self.guest_address = guest_address;
    }

    fn answer(&mut self, chain: &Chain) -> Result<u32, DeviceError> {
        let request = u32::from_le(chain.reader().read_obj()?);
        // Nothing was written, so nothing is lost.
        let answer = if request == FLUSH { OK } else { EIO };
        let count = if request == FLUSH { &mut self.flushes } else { &mut self.rejected };
        *count += 1;
        chain.writer().write_obj(answer.to_le())?;
        Ok(4)
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> u32 {
        device_type::PMEM
    }

    fn name(&self) -> &str {
        "pmem"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let mut config = [0; 16];
        let fields = [self.guest_address, self.mapping.length() as u64];
        for (place, field) in config.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        copy_config(&config, offset, data);
    }

    fn state(&self) -> DeviceState {
        DeviceState::Pmem {
            guest_address: self.guest_address,
            length: self.mapping.length() as u64,
            file: self.mapping.identity(),
        }
    }

    fn restore(&mut self, state: &DeviceState, _session: Option<&mut Session>) -> Result<(), RestoreError> {
        let DeviceState::Pmem { guest_address, length, file } = state else {
            return Err(RestoreError::Nonsense("it is not that of persistent memory"));
        };
        if (*guest_address, *length) != (self.guest_address, self.mapping.length() as u64) {
            return Err(RestoreError::File("the persistent memory is larger or smaller than it was".into()));
        }
        match file {
            Some(then) => self.mapping.check_identity(then),
            None => Ok(()),
        }
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        session.queue(queue)?.serve(|chain| self.answer(chain))
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![("bytes", self.mapping.length() as u64), ("flushes", self.flushes), ("rejected_requests", self.rejected)]
    }
}

#[cfg(test)]
#[path = "pmem_test.rs"]
mod tests;
