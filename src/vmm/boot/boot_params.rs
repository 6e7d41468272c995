// SPDX-License-Identifier: Apache-2.0
//! `boot_params`, the "zero page" of the Linux boot protocol (`Documentation/arch/x86/zero-page.rst`).

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use vm_memory::{Bytes, GuestAddress};

use super::kernel::LoadedKernel;
use super::memory_map::memory_map;
use super::{BootError, InitrdSpan};
use crate::vmm::devices::virtio::rng;
use crate::vmm::layout::{COMMAND_LINE, RNG_SEED, ZERO_PAGE};
use crate::vmm::memory::Ram;

/// `boot_flag` of every boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Boot protocol 2.15, the newest: for an ELF kernel, which brings no header, every field that we set is valid.
const VERSION: u16 = 0x020f;
/// `type_of_loader`: no number assigned.
const LOADER_UNDEFINED: u8 = 0xff;
/// `loadflags`: the kernel lies at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `setup_data.type`: bytes for the random generator (boot.rst, "setup_data").
const SETUP_RNG_SEED: u32 = 9;
/// As many bytes as make the generator ready at once: 256 bits.
const SEED_SIZE: u32 = 32;

/// Writes `boot_params` for a loaded kernel and returns its address, for RSI. The command line is at
/// [`COMMAND_LINE`].
///
/// # Errors
/// Guest memory is too small for it.
pub fn write_boot_params(
    ram: &Ram,
    kernel: &LoadedKernel,
    initrd: Option<InitrdSpan>,
    rsdp: Option<GuestAddress>,
) -> Result<GuestAddress, BootError> {
    let too_small = |_| BootError::Write("boot parameters");
    let mut params = boot_params::default();
    if let Some(header) = &kernel.setup_header {
        params.hdr = header.raw();
    } else {
        params.hdr.boot_flag = BOOT_FLAG;
        params.hdr.header = HEADER_MAGIC;
        params.hdr.version = VERSION;
        params.hdr.cmdline_size = u32::try_from(kernel.cmdline_max).map_err(too_small)?;
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.loadflags |= LOADED_HIGH;
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).map_err(too_small)?;
    if let Some(span) = initrd {
        params.hdr.ramdisk_image = u32::try_from(span.address.0).map_err(too_small)?;
        params.hdr.ramdisk_size = u32::try_from(span.size).map_err(too_small)?;
    }
    params.hdr.setup_data = write_rng_seed(ram)?;
    params.acpi_rsdp_addr = rsdp.map_or(0, |address| address.0);
    let map = memory_map(ram);
    let mut table = params.e820_table;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = u8::try_from(map.len().min(table.len())).map_err(too_small)?;
    let address = GuestAddress(ZERO_PAGE);
    LinuxBootConfigurator::write_bootparams(&BootParams::new(&params, address), ram)
        .map_err(|_| BootError::Write("boot parameters"))?;
    Ok(address)
}

/// Writes a seed where the kernel takes it from before anything in it needs random numbers, and returns its address. A
/// generator that is not ready mixes its whole pool for each early reader. The kernel wipes the seed.
fn write_rng_seed(ram: &Ram) -> Result<u64, BootError> {
    let mut seed = [0; SEED_SIZE as usize];
    rng::random(&mut seed).map_err(|_| BootError::Write("random seed"))?;
    let write = || {
        // struct setup_data: next, type, length, data.
        ram.write_obj(0_u64, GuestAddress(RNG_SEED))?;
        ram.write_obj(SETUP_RNG_SEED, GuestAddress(RNG_SEED + 8))?;
        ram.write_obj(SEED_SIZE, GuestAddress(RNG_SEED + 12))?;
        ram.write_slice(&seed, GuestAddress(RNG_SEED + 16))
    };
    write().map_err(|_| BootError::Write("random seed"))?;
    Ok(RNG_SEED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::boot::kernel::{CMDLINE_MAX, Protocol};
    use crate::vmm::memory;
    use vm_memory::Bytes;

    #[test]
    fn fields_lie_where_the_protocol_says() {
        let ram = memory::allocate(5 << 30).unwrap();
        let kernel = LoadedKernel {
            entry: GuestAddress(0x100_0000),
            protocol: Protocol::Linux64,
            end: 0x200_0000,
            initrd_max: 0xbfff_ffff,
            cmdline_max: CMDLINE_MAX,
            setup_header: None,
        };
        let initrd = InitrdSpan { address: GuestAddress(0xb000_0000), size: 0x1234 };
        let page = write_boot_params(&ram, &kernel, Some(initrd), Some(GuestAddress(0xe_0000))).unwrap();
        assert_eq!(page.0, 0x7000);
        // Offsets from zero-page.rst and boot.rst.
        let u32_at = |offset: u64| ram.read_obj::<u32>(GuestAddress(0x7000 + offset)).unwrap();
        let u64_at = |offset: u64| ram.read_obj::<u64>(GuestAddress(0x7000 + offset)).unwrap();
        assert_eq!(u64_at(0x70), 0xe_0000);
        assert_eq!(u32_at(0x1e8) & 0xff, 6);
        assert_eq!(u32_at(0x1fe) & 0xffff, 0xaa55);
        assert_eq!(u32_at(0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!(u32_at(0x210) & 0xff, 0xff);
        assert_eq!(u32_at(0x218), 0xb000_0000);
        assert_eq!(u32_at(0x21c), 0x1234);
        assert_eq!(u32_at(0x228), 0x2_0000);
        let seed = u64_at(0x250);
        let seed_u32 = |offset: u64| ram.read_obj::<u32>(GuestAddress(seed + offset)).unwrap();
        assert_eq!((seed_u32(0), seed_u32(4), seed_u32(8), seed_u32(12)), (0, 0, 9, 32));
        assert_ne!(ram.read_obj::<[u8; 32]>(GuestAddress(seed + 16)).unwrap(), [0; 32]);
        let last = 0x2d0 + 5 * 20;
        assert_eq!((u64_at(last), u64_at(last + 8), u32_at(last + 16)), (1 << 32, 2 << 30, 1));
    }
}
