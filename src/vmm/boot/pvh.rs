// SPDX-License-Identifier: Apache-2.0
//! `hvm_start_info` of the PVH boot protocol (Xen `include/public/arch-x86/hvm/start_info.h`, version 1).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Address, GuestAddress};

use super::memory_map::memory_map;
use super::{BootError, InitrdSpan};
use crate::vmm::layout::{COMMAND_LINE, PVH_START_INFO, ZERO_PAGE};
use crate::vmm::memory::Ram;

/// The module list (one entry, the initrd), behind the start info in the same page.
const MODULES: u64 = PVH_START_INFO + 0x100;
/// The memory map, behind the module list in the same page.
const MEMORY_MAP: u64 = PVH_START_INFO + 0x200;

/// Writes `hvm_start_info` with its lists and returns its address, for EBX. The command line is at [`COMMAND_LINE`].
///
/// # Errors
/// Guest memory is too small for it.
pub fn write_start_info(
    ram: &Ram,
    initrd: Option<InitrdSpan>,
    rsdp: Option<GuestAddress>,
) -> Result<GuestAddress, BootError> {
    let failed = |_| BootError::Write("PVH start info");
    let map: Vec<_> = memory_map(ram)
        .iter()
        .map(|range| hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            // Xen numbers the kinds as e820 does.
            type_: range.kind as u32,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(initrd.is_some()),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: rsdp.map_or(0, |address| address.raw_value()),
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).map_err(|_| BootError::Write("PVH start info"))?,
        ..Default::default()
    };
    let address = GuestAddress(PVH_START_INFO);
    let mut params = BootParams::new(&info, address);
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some(span) = initrd {
        let module = hvm_modlist_entry { paddr: span.address.raw_value(), size: span.size, ..Default::default() };
        params.set_modules(&[module], GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram).map_err(failed)?;
    Ok(address)
}

const _: () = assert!(MEMORY_MAP < ZERO_PAGE);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;
    use vm_memory::Bytes;

    #[test]
    fn the_lists_can_be_followed() {
        let ram = memory::allocate(5 << 30).unwrap();
        let initrd = InitrdSpan { address: GuestAddress(0x700_0000), size: 4321 };
        let address = write_start_info(&ram, Some(initrd), Some(GuestAddress(0xe_0000))).unwrap();
        let u32_at = |address| ram.read_obj::<u32>(GuestAddress(address)).unwrap();
        let u64_at = |address| ram.read_obj::<u64>(GuestAddress(address)).unwrap();
        let base = address.0;
        assert_eq!((u32_at(base), u32_at(base + 4), u32_at(base + 12)), (0x336e_c578, 1, 1));
        assert_eq!((u64_at(base + 24), u64_at(base + 32)), (0x2_0000, 0xe_0000));
        let module = u64_at(base + 16);
        assert_eq!((u64_at(module), u64_at(module + 8)), (0x700_0000, 4321));
        let map = u64_at(base + 40);
        assert_eq!(u32_at(base + 48), 6);
        let entry = |n: u64| (u64_at(map + n * 24), u64_at(map + n * 24 + 8), u32_at(map + n * 24 + 16));
        assert_eq!(entry(0), (0, 0x9_fc00, 1));
        assert_eq!(entry(5), (1 << 32, 2 << 30, 1));
        assert!(map + 6 * 24 < ZERO_PAGE);
    }

    #[test]
    fn without_initrd_there_is_no_module() {
        let ram = memory::allocate(64 << 20).unwrap();
        let base = write_start_info(&ram, None, None).unwrap().0;
        assert_eq!(ram.read_obj::<u32>(GuestAddress(base + 12)).unwrap(), 0);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(base + 16)).unwrap(), 0);
        assert_eq!(ram.read_obj::<u64>(GuestAddress(base + 32)).unwrap(), 0);
    }
}
