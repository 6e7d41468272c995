// SPDX-License-Identifier: Apache-2.0
//! The host's time of day, for a guest that has been restored: however long it took to come to ask, what it reads is
//! now.

use std::sync::{Mutex, PoisonError};

use crate::vmm::bus::BusDevice;
use crate::vmm::clock::realtime_ns;

/// Eight ports, of which a guest may read one at a time: the time in nanoseconds since 1970, little-endian. The first
/// one takes the time, which the others then give the rest of.
#[derive(Debug, Default)]
pub struct HostClock(Mutex<[u8; 8]>);

impl HostClock {
    /// Number of ports.
    pub const LENGTH: u64 = 8;
}

impl BusDevice for HostClock {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            *taken = realtime_ns().to_le_bytes();
        }
        let from = usize::try_from(offset).ok().and_then(|offset| taken.get(offset..)).unwrap_or_default();
        data.iter_mut().zip(from).for_each(|(place, byte)| *place = *byte);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_one_time_fit_together() {
        let clock = HostClock::default();
        let before = realtime_ns();
        let mut bytes = [0; 8];
        for (offset, byte) in (0..).zip(&mut bytes) {
            clock.read(offset, std::slice::from_mut(byte));
        }
        let after = realtime_ns();
        assert!((before..=after).contains(&u64::from_le_bytes(bytes)));
        let mut half = [0; 4];
        clock.read(4, &mut half);
        assert_eq!(half, bytes[4..], "no other time than was taken");
    }

    #[test]
    fn beyond_the_end_there_is_nothing() {
        let mut data = [7; 4];
        HostClock::default().read(9, &mut data);
        assert_eq!(data, [7; 4]);
    }
}
