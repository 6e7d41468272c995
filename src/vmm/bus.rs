// SPDX-License-Identifier: Apache-2.0
//! Address ranges and the devices behind them: one bus for I/O ports, one for memory-mapped I/O.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device's registers. Calls come from any vCPU thread, at once.
pub trait BusDevice: Send + Sync {
    /// Reads at `offset` from the start of the range; `data` is zero before.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Range {
    base: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// Routes accesses to devices. Built before the first vCPU runs, and fixed from then on.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, without overlaps.
    ranges: Vec<Range>,
    unclaimed: AtomicU64,
}

impl Bus {
    /// Adds a device.
    ///
    /// # Panics
    /// Where its range is empty or overlaps another: the layout is ours, not the guest's.
    pub fn insert(&mut self, base: u64, length: u64, device: Arc<dyn BusDevice>) {
        let at = self.ranges.partition_point(|range| range.base < base);
        let free_before = at == 0 || self.ranges[at - 1].base + self.ranges[at - 1].length <= base;
        let free_after = self.ranges.get(at).is_none_or(|next| base + length <= next.base);
        assert!(length > 0 && free_before && free_after, "bus range {base:#x}+{length:#x} is taken");
        self.ranges.insert(at, Range { base, length, device });
    }

    fn find(&self, address: u64, size: usize) -> Option<(&dyn BusDevice, u64)> {
        let at = self.ranges.partition_point(|range| range.base <= address).checked_sub(1)?;
        let range = self.ranges.get(at)?;
        let offset = address - range.base;
        let end = offset.checked_add(size as u64)?;
        (end <= range.length).then(|| (range.device.as_ref(), offset))
    }

    /// Reads; an address without a device gives all ones, as an empty bus would.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => {
                data.fill(0);
                device.read(offset, data);
            }
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
                data.fill(0xff);
            }
        }
    }

    /// Writes; an address without a device swallows it.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.write(offset, data),
            None => {
                self.unclaimed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Accesses so far that no device answered.
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;
    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = u8::try_from(offset).unwrap();
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn accesses_reach_their_device_and_no_other() {
        let mut bus = Bus::default();
        bus.insert(0x20, 4, Arc::new(Echo));
        bus.insert(0x10, 8, Arc::new(Echo));
        let read = |address, size| {
            let mut data = vec![0xee; size];
            bus.read(address, &mut data);
            data
        };
        assert_eq!(read(0x17, 1), [7]);
        assert_eq!(read(0x22, 2), [2, 0]);
        for (address, size) in [(0x18, 1), (0x16, 4), (0, 1), (0x24, 1), (u64::MAX, 8)] {
            assert!(read(address, size).iter().all(|byte| *byte == 0xff), "{address:#x}");
        }
        assert_eq!(bus.unclaimed(), 5);
    }

    #[test]
    #[should_panic(expected = "is taken")]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x10, 8, Arc::new(Echo));
        bus.insert(0x17, 1, Arc::new(Echo));
    }
}
