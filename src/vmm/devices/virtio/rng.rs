// SPDX-License-Identifier: Apache-2.0
//! Entropy source (virtio 1.3 §5.4): the host's `getrandom(2)`.

use std::io;

use super::{Chain, DeviceError, QueueSize, Session, VirtioDevice, device_type};

/// Bytes for one request; a driver that wants more asks again (virtio 1.3 §5.4.6.1 allows fewer than there is room
/// for). With [`QUEUES`] this bounds what one event costs: 16 requests, 512 KiB.
const MAX_REQUEST: usize = 32 << 10;
const QUEUES: [QueueSize; 1] = [QueueSize::new(8).unwrap()];

/// The entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    requests: u64,
    bytes: u64,
}

impl Rng {
    /// A device that has given nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn fill(&mut self, chain: &Chain) -> Result<u32, DeviceError> {
        let mut writer = chain.writer();
        let mut left = writer.remaining().min(MAX_REQUEST);
        if left == 0 {
            // Giving back nothing would make the driver ask again at once, for ever.
            return Err(DeviceError::Driver("an entropy request has no room for an answer"));
        }
        // By way of a buffer of our own: guest memory is never lent as a slice.
        let mut buffer = [0; 4096];
        while left > 0 {
            let part = buffer.get_mut(..left.min(4096)).unwrap_or_default();
            random(part).map_err(|source| DeviceError::Host { what: "getrandom", source })?;
            writer.write_all(part)?;
            left -= part.len();
        }
        self.requests += 1;
        self.bytes += writer.written() as u64;
        Ok(super::chain::used_length(writer.written()))
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        device_type::RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn queue_event(&mut self, _queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        session.queue(0)?.serve(|chain| self.fill(chain))
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![("requests", self.requests), ("bytes", self.bytes)]
    }
}

/// Fills `buffer` from the kernel's generator.
///
/// # Errors
/// The host has no generator, or forbids its use.
pub fn random(buffer: &mut [u8]) -> io::Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        // SAFETY: the pointer and length are those of a slice that is borrowed mutably.
        let count = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(count) {
            // Fewer than asked for come where a signal falls in between.
            Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "rng_test.rs"]
mod tests;
