// SPDX-License-Identifier: Apache-2.0
//! Giving guest memory back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::vmm::memory::Ram;

/// Frees `length` bytes of guest memory from `address` on; the guest reads zeroes there, until it writes again.
///
/// # Errors
/// `NotFound` where the range is not all RAM; else the kernel's refusal.
pub fn discard(ram: &Ram, address: GuestAddress, length: usize) -> io::Result<()> {
    let not_ram = || io::Error::from(io::ErrorKind::NotFound);
    let slice = ram.get_slice(address, length).map_err(|_| not_ram())?;
    let region = ram.find_region(address).ok_or_else(not_ram)?;
    if region.flags() & libc::MAP_PRIVATE != 0 {
        return replace(slice.ptr_guard_mut().as_ptr(), length);
    }
    // MADV_REMOVE frees the pages of the memory file itself; MADV_DONTNEED would only unmap them here.
    // SAFETY: the range is part of a mapping of guest memory, which `ram` keeps alive and to which no Rust reference
    // exists. The content turns to zeroes, as if the guest had written them.
    match unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), length, libc::MADV_REMOVE) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel's code, mapped from its own file.
            error if error.kind() == io::ErrorKind::PermissionDenied => replace(slice.ptr_guard_mut().as_ptr(), length),
            error => Err(error),
        },
    }
}

/// Frees memory that is a private copy of a file, as a snapshot's is. Only unmapped, it would show the file again: it
/// becomes memory without a file.
fn replace(start: *mut u8, length: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is part of a mapping of guest memory that is kept alive, with the same protection, and to which
    // no Rust reference exists. It stays mapped throughout; the content turns to zeroes, as if the guest had written them.
    let mapped = unsafe { libc::mmap(start.cast(), length, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The whole pages of 4 KiB within `length` bytes from `address` on, as `(address, bytes)`.
pub fn whole_pages(address: GuestAddress, length: usize) -> Option<(GuestAddress, usize)> {
    let end = address.0.checked_add(length as u64)? & !0xfff;
    let start = address.0.checked_next_multiple_of(4096)?;
    let bytes = usize::try_from(end.checked_sub(start)?).ok()?;
    (bytes > 0).then_some((GuestAddress(start), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::memory;
    use std::os::unix::fs::MetadataExt;
    use vm_memory::{Bytes, GuestMemoryRegion};

    #[test]
    fn the_memory_file_shrinks_and_its_neighbours_stay() {
        let ram = memory::allocate(16 << 20).unwrap();
        let file = ram.iter().next().unwrap().file_offset().unwrap().arc().clone();
        let kib = || file.metadata().unwrap().blocks() / 2;
        for page in 0..1024 {
            ram.write_obj(page + 1u64, GuestAddress(page << 12)).unwrap();
        }
        assert_eq!(kib(), 4096);
        discard(&ram, GuestAddress(0x10_0000), 0x10_0000).unwrap();
        assert_eq!(kib(), 3072);
        let page = |number: u64| ram.read_obj::<u64>(GuestAddress(number << 12)).unwrap();
        assert_eq!((page(255), page(256), page(511), page(512)), (256, 0, 0, 513));
    }

    #[test]
    fn what_a_clone_gives_back_is_zero_and_the_snapshot_stays() {
        let ram = memory::allocate(16 << 20).unwrap();
        (0..64).for_each(|page| ram.write_obj(page + 1u64, GuestAddress(page << 12)).unwrap());
        let file = tempfile::tempfile().unwrap();
        let print = crate::vmm::snapshot::memory::write(&ram, &file).unwrap();
        let clone = crate::vmm::snapshot::memory::map(file.try_clone().unwrap(), print.size).unwrap();
        clone.write_obj(99u64, GuestAddress(17 << 12)).unwrap();
        discard(&clone, GuestAddress(16 << 12), 8 << 12).unwrap();
        let page = |number: u64| clone.read_obj::<u64>(GuestAddress(number << 12)).unwrap();
        assert_eq!((page(15), page(16), page(17), page(23), page(24)), (16, 0, 0, 0, 25));
        clone.write_obj(5u64, GuestAddress(16 << 12)).unwrap();
        assert_eq!(page(16), 5);
        crate::vmm::snapshot::memory::check(&file, &print).unwrap();
    }

    #[test]
    fn a_range_outside_of_ram_is_refused() {
        let ram = memory::allocate(16 << 20).unwrap();
        for (address, length) in [(16 << 20, 4096), ((16 << 20) - 4096, 8192), (u64::MAX - 4095, 4096)] {
            let error = discard(&ram, GuestAddress(address), length).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{address:#x}");
        }
    }

    #[test]
    fn only_whole_pages_count() {
        let pages = |address, length| whole_pages(GuestAddress(address), length).map(|(start, bytes)| (start.0, bytes));
        assert_eq!(pages(0x1000, 0x2000), Some((0x1000, 0x2000)));
        assert_eq!(pages(0x1001, 0x2fff), Some((0x2000, 0x2000)));
        assert_eq!(pages(0x1001, 0x1ffe), None);
        assert_eq!(pages(0x1fff, 2), None);
        assert_eq!(pages(u64::MAX - 10, 11), None);
        assert_eq!(pages(u64::MAX, 2), None);
    }
}
