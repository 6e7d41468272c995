// SPDX-License-Identifier: Apache-2.0
//! Guest memory: one memfd, mapped shared, so that other processes (vhost-user) and snapshots can use it.
//!
//! The guest changes it at any time. Nothing here hands out `&[u8]` into it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd};
use std::sync::Arc;

use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::layout::{RAM_HOLE_END, RAM_HOLE_START};

/// Guest RAM as the devices see it.
pub type Ram = GuestMemoryMmap<()>;

/// Least memory that a guest can be given, in bytes: below it no kernel finds room beside its boot structures.
pub const MIN_MEMORY: u64 = 4 << 20;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The asked size cannot be a guest's memory.
    #[error("{size} bytes of guest memory: at least {MIN_MEMORY} and a multiple of 4096 are needed")]
    Size {
        /// Asked size in bytes.
        size: u64,
    },
    /// The kernel refused the memory file.
    #[error("cannot make a memory file of {size} bytes: {source}")]
    File {
        /// Asked size in bytes.
        size: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// The memory file could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Map(#[from] FromRangesError),
    /// The memory file could not be mapped.
    #[error("cannot map guest memory: {0}")]
    Region(#[from] MmapRegionError),
}

/// Splits `size` bytes of RAM around the 32-bit hole: `(guest address, length)`, lowest first.
pub fn ram_ranges(size: u64) -> Vec<(u64, u64)> {
    if size <= RAM_HOLE_START {
        vec![(0, size)]
    } else {
        vec![(0, RAM_HOLE_START), (RAM_HOLE_END, size - RAM_HOLE_START)]
    }
}

/// Makes `size` bytes of zeroed guest RAM, backed by a sealed memfd.
///
/// The file cannot shrink or grow afterwards, so that a process that shares it cannot make our accesses fault.
///
/// # Errors
/// A size that is no multiple of 4096 or under [`MIN_MEMORY`], or a refusal of the kernel.
pub fn allocate(size: u64) -> Result<Arc<Ram>, MemoryError> {
    if size < MIN_MEMORY || !size.is_multiple_of(4096) {
        return Err(MemoryError::Size { size });
    }
    let file = memory_file(size).map_err(|source| MemoryError::File { size, source })?;
    let file = Arc::new(file);
    let mut offset = 0;
    let mut ranges = Vec::with_capacity(2);
    for (start, length) in ram_ranges(size) {
        let too_large = |_| MemoryError::Size { size };
        let length_here = usize::try_from(length).map_err(too_large)?;
        ranges.push((GuestAddress(start), length_here, Some(FileOffset::from_arc(Arc::clone(&file), offset))));
        offset += length;
    }
    Ok(Arc::new(Ram::from_ranges_with_files(ranges)?))
}

fn memory_file(size: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal and the flags are valid; the call has no other preconditions.
    let fd = unsafe { libc::memfd_create(c"coracle-ram".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: F_ADD_SEALS takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// First guest address above all RAM and above the 32-bit hole.
pub fn end_of_ram(ram: &Ram) -> u64 {
    let last = ram.iter().map(|region| region.start_addr().0 + region.len()).max().unwrap_or(0);
    last.max(RAM_HOLE_END)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_ranges(128 << 20), [(0, 128 << 20)]);
        assert_eq!(ram_ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ram_ranges(4 << 30), [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }

    #[test]
    fn memory_beyond_the_hole_is_usable_and_the_hole_is_not() {
        let ram = allocate(4 << 30).unwrap();
        ram.write_obj(7u32, GuestAddress((5 << 30) - 4)).unwrap();
        assert!(ram.write_obj(7u32, GuestAddress(RAM_HOLE_START)).is_err());
        assert!(ram.write_obj(7u32, GuestAddress(RAM_HOLE_START - 2)).is_err());
        assert_eq!(end_of_ram(&ram), 5 << 30);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for size in [0, 4096, 1 << 20, (128 << 20) + 1] {
            assert!(matches!(allocate(size), Err(MemoryError::Size { .. })), "{size}");
        }
    }
}
