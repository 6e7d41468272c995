// SPDX-License-Identifier: Apache-2.0
//! State in which the first vCPU enters a kernel: long mode for the Linux 64-bit boot protocol, flat 32-bit protected
//! mode for PVH. The other vCPUs wait for INIT and SIPI, which the in-kernel local APIC does.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::vmm::boot::{EntryPoint, Protocol};
use crate::vmm::layout::{BOOT_GDT, BOOT_PML4, BOOT_STACK};
use crate::vmm::memory::Ram;

const CR0_PE: u64 = 1;
/// Extension type: always one on every processor in use.
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

/// Page-table bits: present, writable, and (in a page directory) a 2 MiB page.
const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Selectors as the 64-bit boot protocol wants them: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Why the entry state could not be set.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Descriptor or page tables do not fit into guest memory.
    #[error("cannot write the boot tables: {0}")]
    Memory(#[from] GuestMemoryError),
    /// KVM refused the registers.
    #[error("cannot set the boot registers: {0}")]
    Kvm(#[from] kvm_ioctls::Error),
}

fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: (!long).into(),
        s: 1,
        l: long.into(),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// A segment as its descriptor (Intel SDM vol. 3 §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags =
        u64::from(segment.avl) | u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    limit & 0xffff
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Puts the first vCPU at the kernel's entry, with the tables that this needs.
///
/// # Errors
/// See [`EntryError`].
pub fn enter(vcpu: &VcpuFd, ram: &Ram, entry: &EntryPoint) -> Result<(), EntryError> {
    let long = entry.protocol == Protocol::Linux64;
    let code = segment(CODE_SELECTOR, 0xb, long);
    let data = kvm_segment { l: 0, db: 1, ..segment(DATA_SELECTOR, 3, false) };
    // The task segment is a system segment with a byte limit: VM entry checks it even where no kernel uses it.
    let task = kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..segment(TASK_SELECTOR, 0xb, false) };
    let mut sregs = vcpu.get_sregs()?;
    write_gdt(ram, &mut sregs, [&code, &data, &task])?;
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if long {
        write_page_tables(ram)?;
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = BOOT_PML4;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)?;
    let mut regs = kvm_regs { rip: entry.address.0, rflags: RFLAGS, ..Default::default() };
    match entry.protocol {
        Protocol::Linux64 => (regs.rsi, regs.rsp, regs.rbp) = (entry.params.0, BOOT_STACK, BOOT_STACK),
        Protocol::Pvh => regs.rbx = entry.params.0,
    }
    Ok(vcpu.set_regs(&regs)?)
}

fn write_gdt(ram: &Ram, sregs: &mut kvm_sregs, segments: [&kvm_segment; 3]) -> Result<(), GuestMemoryError> {
    let [code, data, task] = segments.map(descriptor);
    // Two unused entries put the selectors at their place.
    for (slot, entry) in (0u64..).zip([0, 0, code, data, task, 0]) {
        ram.write_obj(entry, GuestAddress(BOOT_GDT + 8 * slot))?;
    }
    sregs.gdt.base = BOOT_GDT;
    sregs.gdt.limit = 6 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    Ok(())
}

/// Maps the first GiB onto itself with 2 MiB pages: the protocol asks for kernel, zero page and command line, and the
/// kernel builds its own tables before it looks further.
fn write_page_tables(ram: &Ram) -> Result<(), GuestMemoryError> {
    let (directories, pages) = (BOOT_PML4 + 0x1000, BOOT_PML4 + 0x2000);
    ram.write_obj(directories | PRESENT_WRITABLE, GuestAddress(BOOT_PML4))?;
    ram.write_obj(pages | PRESENT_WRITABLE, GuestAddress(directories))?;
    let mut table = [0; 4096];
    for (entry, page) in table.chunks_exact_mut(8).zip(0u64..) {
        entry.copy_from_slice(&(page << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes());
    }
    ram.write_slice(&table, GuestAddress(pages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_match_the_manual() {
        assert_eq!(descriptor(&segment(CODE_SELECTOR, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(CODE_SELECTOR, 0xb, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(DATA_SELECTOR, 3, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn the_first_gib_is_mapped_onto_itself() {
        let ram = crate::vmm::memory::allocate(16 << 20).unwrap();
        write_page_tables(&ram).unwrap();
        let entry = |table: u64, slot: u64| ram.read_obj::<u64>(GuestAddress(table + 8 * slot)).unwrap();
        let address = 0x3fe0_0000u64;
        let directory = entry(BOOT_PML4, 0) & !0xfff;
        let pages = entry(directory, 0) & !0xfff;
        assert_eq!(entry(pages, address >> 21), address | PRESENT_WRITABLE | LARGE);
    }
}
