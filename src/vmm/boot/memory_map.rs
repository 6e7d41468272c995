// SPDX-License-Identifier: Apache-2.0
//! The memory map that the guest is told, the same for all boot protocols (e820, ACPI 6.5 §15).

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::vmm::layout::{ACPI_START, EBDA_START, HIGH_RAM_START, VMGENID};
use crate::vmm::memory::Ram;

/// What a range of guest memory is, with its number in the e820 map (ACPI 6.5 table 15.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Free for the guest.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
    /// ACPI tables, free once they have been read.
    Acpi = 3,
}

/// A range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Lists all guest memory, lowest address first.
pub fn memory_map(ram: &Ram) -> Vec<MemoryRange> {
    let range = |start, end: u64, kind| MemoryRange { start, size: end.saturating_sub(start), kind };
    let mut map = vec![
        range(0, EBDA_START, MemoryKind::Ram),
        range(EBDA_START, ACPI_START, MemoryKind::Reserved),
        range(ACPI_START, VMGENID, MemoryKind::Acpi),
        range(VMGENID, HIGH_RAM_START, MemoryKind::Reserved),
    ];
    for region in ram.iter() {
        let end = region.start_addr().0 + region.len();
        map.push(range(region.start_addr().0.max(HIGH_RAM_START), end, MemoryKind::Ram));
    }
    map.retain(|range| range.size > 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;
    use MemoryKind::{Acpi, Ram, Reserved};

    fn ranges(size: u64) -> Vec<(u64, u64, MemoryKind)> {
        let ram = memory::allocate(size).unwrap();
        memory_map(&ram).iter().map(|range| (range.start, range.start + range.size, range.kind)).collect()
    }

    #[test]
    fn a_small_guest() {
        let want = [
            (0, 0x9_fc00, Ram),
            (0x9_fc00, 0xe_0000, Reserved),
            (0xe_0000, 0xf_f000, Acpi),
            (0xf_f000, 0x10_0000, Reserved),
            (0x10_0000, 0x800_0000, Ram),
        ];
        assert_eq!(ranges(128 << 20), want);
    }

    #[test]
    fn memory_goes_on_above_the_hole() {
        let map = ranges(5 << 30);
        assert_eq!(map[4..], [(0x10_0000, 0xc000_0000, Ram), (0x1_0000_0000, 0x1_8000_0000, Ram)]);
    }
}
