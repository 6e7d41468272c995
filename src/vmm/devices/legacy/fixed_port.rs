// SPDX-License-Identifier: Apache-2.0
//! Ports that kernels touch out of habit.

use crate::vmm::bus::BusDevice;

/// Ports that always read the same and swallow what is written.
///
/// An empty bus reads as all ones, and that keeps some kernels busy: the PIT calibration of Linux polls its counter
/// 50,000 times while it reads 0xff, and gives up at once where it reads 0.
#[derive(Clone, Copy, Debug)]
pub struct FixedPort(
    /// What each byte reads as.
    pub u8,
);

impl FixedPort {
    /// First port of the interval timer (8254), where there is none: four ports.
    pub const PIT: u64 = 0x40;
    /// POST code port; writes to it are I/O delays.
    pub const POST: u64 = 0x80;
}

impl BusDevice for FixedPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_the_same_whatever_was_written() {
        let port = FixedPort(0x5a);
        port.write(0, &[1, 2]);
        let mut data = [0; 2];
        port.read(3, &mut data);
        assert_eq!(data, [0x5a; 2]);
    }
}
