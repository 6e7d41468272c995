// SPDX-License-Identifier: Apache-2.0
//! The host's time of day in nanoseconds, for a guest whose own clock has stood still in a snapshot.
//!
//! A clock that is told over a socket is late by as long as the telling took, which on a busy host is tenths of a second;
//! one that is read is late by as long as the reading took, and the guest can tell how long that was.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::vmm::bus::BusDevice;
use crate::vmm::clock::realtime_ns;

/// Eight ports: the bytes of a number, the lowest first. Reading the first takes the time, which the others go on with.
#[derive(Debug, Default)]
pub struct HostClock {
    taken: AtomicU64,
}

impl HostClock {
    /// Number of ports.
    pub const LENGTH: u64 = 8;
}

impl BusDevice for HostClock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == 0 {
            self.taken.store(realtime_ns(), Ordering::Relaxed);
        }
        let bytes = self.taken.load(Ordering::Relaxed).to_le_bytes();
        let from = usize::try_from(offset).unwrap_or(bytes.len());
        data.iter_mut().zip(bytes.iter().skip(from)).for_each(|(place, byte)| *place = *byte);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_time_however_it_is_read() {
        let clock = HostClock::default();
        let byte = |offset| {
            let mut data = [0];
            clock.read(offset, &mut data);
            data[0]
        };
        let before = realtime_ns();
        let mut bytes = [0; 8];
        bytes[0] = byte(0);
        std::thread::sleep(std::time::Duration::from_millis(5));
        (1..8).for_each(|offset| bytes[usize::try_from(offset).unwrap()] = byte(offset));
        let time = u64::from_le_bytes(bytes);
        assert!(time >= before && time < before + 5_000_000, "{before} {time}");
        let mut whole = [0; 4];
        clock.read(4, &mut whole);
        assert_eq!(whole, bytes[4..]);
        clock.write(0, &[1, 2, 3]);
        clock.read(7, &mut whole);
        assert_eq!(whole, [bytes[7], bytes[5], bytes[6], bytes[7]], "what is beyond the end is left as it was");
        assert!({
            clock.read(0, &mut bytes);
            u64::from_le_bytes(bytes) > time
        });
    }
}
