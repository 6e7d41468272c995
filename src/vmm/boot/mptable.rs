// SPDX-License-Identifier: Apache-2.0
//! The MP configuration table, by which a kernel without ACPI finds its CPUs and interrupts (MultiProcessor Specification
//! 1.4, chapter 4).

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::vmm::layout::{EBDA_START, IOAPIC, LAPIC};
use crate::vmm::memory::Ram;

/// The table lies in the last KiB of base memory, one of the three places where it is looked for (§4).
const ROOM: usize = 1024;
/// Most CPUs whose entries fit beside the interrupts'.
pub const CPUS_MAX: u8 = 32;
/// I/O APIC pins of the in-kernel interrupt controller.
const PINS: u8 = 24;
/// Version that KVM's APICs report.
const APIC_VERSION: u8 = 0x14;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types of table 4-11.
const INTERRUPT_VECTORED: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTERNAL: u8 = 3;

/// Writes the floating pointer and the table for `cpus` CPUs.
///
/// All pins belong to one ISA bus and carry the interrupt of the same number, edge triggered and active high: this is
/// how KVM wires them, and it makes interrupts 16 to 23 usable for virtio-mmio too.
///
/// # Errors
/// The table does not fit: no CPU, or more than [`CPUS_MAX`].
pub fn write_mp_table(ram: &Ram, cpus: u8) -> Result<(), BootError> {
    if !(1..=CPUS_MAX).contains(&cpus) {
        return Err(BootError::Cpus { cpus, limit: CPUS_MAX });
    }
    let bytes = mp_table(cpus);
    debug_assert!(bytes.len() <= ROOM);
    ram.write_slice(&bytes, GuestAddress(EBDA_START)).map_err(|_| BootError::Write("MP table"))
}

fn mp_table(cpus: u8) -> Vec<u8> {
    let table = configuration_table(cpus);
    let mut bytes = Vec::with_capacity(ROOM);
    // §4.1, floating pointer: signature, table address, length in paragraphs, revision, checksum, features (a table is
    // present; virtual wire mode).
    bytes.extend_from_slice(b"_MP_");
    bytes.extend_from_slice(&low_half(EBDA_START + 16));
    bytes.extend_from_slice(&[1, 4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut bytes, 10);
    bytes.extend_from_slice(&table);
    bytes
}

fn configuration_table(cpus: u8) -> Vec<u8> {
    let io_apic_id = cpus;
    let mut entries = Vec::new();
    for id in 0..cpus {
        // Enabled; the first one is the bootstrap processor (§4.3.1). Features: FPU and APIC on chip.
        let flags = if id == 0 { 3 } else { 1 };
        entries.extend_from_slice(&[ENTRY_PROCESSOR, id, APIC_VERSION, flags, 0, 6, 0, 0, 1, 2, 0, 0]);
        entries.extend_from_slice(&[0; 8]);
    }
    entries.extend_from_slice(&[ENTRY_BUS, 0]);
    entries.extend_from_slice(b"ISA   ");
    entries.extend_from_slice(&[ENTRY_IO_APIC, io_apic_id, APIC_VERSION, 1]);
    entries.extend_from_slice(&low_half(IOAPIC));
    for pin in 0..PINS {
        entries.extend_from_slice(&[ENTRY_IO_INTERRUPT, INTERRUPT_VECTORED, 0, 0, 0, pin, io_apic_id, pin]);
    }
    // LINT0 of the first CPU takes the legacy controller's interrupts, LINT1 of all CPUs is the NMI (§4.3.5).
    entries.extend_from_slice(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXTERNAL, 0, 0, 0, 0, 0, 0]);
    entries.extend_from_slice(&[ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0, 0, 0, 0xff, 1]);

    // CPUs, bus, I/O APIC, pins, two local interrupts.
    let count = u16::from(cpus) + 1 + 1 + u16::from(PINS) + 2;
    let length = u16::try_from(44 + entries.len()).unwrap_or(u16::MAX);
    let mut table = Vec::with_capacity(ROOM);
    // §4.2, header.
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[4, 0]);
    table.extend_from_slice(b"CORACLE microvm     ");
    table.extend_from_slice(&[0; 6]);
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&low_half(LAPIC));
    table.extend_from_slice(&[0; 4]);
    table.extend_from_slice(&entries);
    set_checksum(&mut table, 7);
    table
}

/// Addresses in this table have 32 bits.
fn low_half(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}

/// Sets the byte at `offset` so that all bytes sum up to 0.
fn set_checksum(bytes: &mut [u8], offset: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(offset) {
        *byte = byte.wrapping_sub(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn a_kernel_can_walk_the_table() {
        for cpus in 1..=CPUS_MAX {
            let ram = memory::allocate(4 << 20).unwrap();
            write_mp_table(&ram, cpus).unwrap();
            let mut bytes = vec![0; ROOM];
            ram.read_slice(&mut bytes, GuestAddress(0x9_fc00)).unwrap();
            assert_eq!(&bytes[..8], b"_MP_\x10\xfc\x09\0");
            assert_eq!(sum(&bytes[..16]), 0);
            let table = &bytes[16..];
            let length = usize::from(u16::from_le_bytes([table[4], table[5]]));
            assert_eq!((&table[..4], sum(&table[..length])), (&b"PCMP"[..], 0));
            let count = u16::from_le_bytes([table[34], table[35]]);
            // Sizes of table 4-3: 20 bytes for a processor, 8 for every other entry.
            let (mut at, mut seen, mut interrupts) = (44, [0u16; 5], Vec::new());
            for _ in 0..count {
                let kind = usize::from(table[at]);
                if kind == 3 {
                    interrupts.push((table[at + 5], table[at + 7]));
                }
                seen[kind] += 1;
                at += if kind == 0 { 20 } else { 8 };
            }
            assert_eq!(at, length);
            assert_eq!(seen, [u16::from(cpus), 1, 1, 24, 2]);
            assert!(interrupts.iter().copied().eq((0..24).map(|pin| (pin, pin))));
        }
    }

    #[test]
    fn impossible_cpu_counts_are_refused() {
        let ram = memory::allocate(4 << 20).unwrap();
        for cpus in [0, CPUS_MAX + 1, 255] {
            assert!(matches!(write_mp_table(&ram, cpus), Err(BootError::Cpus { .. })));
        }
    }
}
