// SPDX-License-Identifier: Apache-2.0
//! The memory file: all RAM, lowest address first, with holes where it is zero.
//!
//! It is known again by its identity, which costs one system call. Only where that has changed, as in a copy, is it
//! read and its checksum compared.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::SnapshotError;
use crate::vmm::file_identity::FileIdentity;
use crate::vmm::memory::{Ram, ram_ranges};

pub(super) const PAGE: usize = 4096;
/// Bytes that are copied out of the guest at a time.
pub(super) const CHUNK: usize = 256 << 10;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// By what a memory file is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPrint {
    /// Bytes of RAM, and of the file.
    pub size: u64,
    /// Bytes that are not a hole.
    pub data: u64,
    /// CRC-32 of each page that is not all zeroes, with its number before it.
    checksum: u32,
    identity: FileIdentity,
}

/// The checksum of a memory file while it is written or read.
struct Checksum {
    hasher: crc32fast::Hasher,
    data: u64,
}

impl Checksum {
    fn new() -> Self {
        Self { hasher: crc32fast::Hasher::new(), data: 0 }
    }

    /// Takes in the page at `offset`; `false` where it is all zeroes.
    fn add(&mut self, offset: u64, page: &[u8]) -> bool {
        if ZEROES.starts_with(page) {
            return false;
        }
        self.hasher.update(&offset.to_le_bytes());
        self.hasher.update(page);
        self.data += page.len() as u64;
        true
    }
}

/// Writes the RAM of a guest that stands still into an empty file.
///
/// # Errors
/// The system's, such as a full disk.
pub fn write(ram: &Ram, file: &File) -> io::Result<MemoryPrint> {
    write_parts(ram, file, &regions(ram))
}

/// Writes these parts of it.
///
/// # Errors
/// As for [`write`].
pub(super) fn write_parts(ram: &Ram, file: &File, parts: &[Part]) -> io::Result<MemoryPrint> {
    let mut checksum = Checksum::new();
    each_chunk(ram, parts, |offset, chunk| write_chunk(file, offset, chunk, &mut checksum))?;
    let size = regions(ram).last().map_or(0, |last| last.end);
    file.set_len(size)?;
    let Checksum { hasher, data } = checksum;
    Ok(MemoryPrint { size, data, checksum: hasher.finalize(), identity: FileIdentity::of(file)? })
}

/// Part of a memory file: offsets, whole pages, all of one region of RAM.
pub(super) type Part = Range<u64>;

/// Where each region of RAM is in the file.
pub(super) fn regions(ram: &Ram) -> Vec<Part> {
    places(ram.iter().map(GuestMemoryRegion::len))
}

/// Where regions of these lengths are in the file: one after the other.
pub(super) fn places(lengths: impl Iterator<Item = u64>) -> Vec<Part> {
    let places = lengths.scan(0, |end, length| {
        let start = *end;
        *end += length;
        Some(start..*end)
    });
    places.collect()
}

/// Looks at these parts of RAM, at most [`CHUNK`] bytes at a time, with their offset in the file.
pub(super) fn each_chunk(
    ram: &Ram,
    parts: &[Part],
    mut look: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    for (region, place) in ram.iter().zip(regions(ram)) {
        for part in parts.iter().filter(|part| place.contains(&part.start)) {
            let mut offset = part.start;
            while offset < part.end.min(place.end) {
                let left = usize::try_from(part.end - offset).unwrap_or(usize::MAX);
                let chunk = buffer.get_mut(..left.min(CHUNK)).unwrap_or_default();
                // A copy: devices and vCPUs stand still, but what else shares this memory may not.
                let from = MemoryRegionAddress(offset - place.start);
                region.read_slice(chunk, from).map_err(io::Error::other)?;
                look(offset, chunk)?;
                offset += chunk.len() as u64;
            }
        }
    }
    Ok(())
}

/// Writes each run of pages that are not zero.
fn write_chunk(file: &File, offset: u64, chunk: &[u8], checksum: &mut Checksum) -> io::Result<()> {
    let mut run = 0..0;
    for (place, page) in (0..).step_by(PAGE).zip(chunk.chunks(PAGE)) {
        if checksum.add(offset + place as u64, page) {
            if run.end != place {
                run = place..place;
            }
            run.end = place + page.len();
        }
        let ends = run.end != place + page.len() || run.end == chunk.len();
        if ends && !run.is_empty() {
            file.write_all_at(chunk.get(run.clone()).unwrap_or_default(), offset + run.start as u64)?;
            run = 0..0;
        }
    }
    Ok(())
}

/// Checks that `file` is the one that was written with the state.
///
/// # Errors
/// [`SnapshotError::Memory`], or the system's.
pub fn check(file: &File, print: &MemoryPrint) -> Result<(), SnapshotError> {
    let now = FileIdentity::of(file)?;
    if now == print.identity {
        return Ok(());
    }
    if file.metadata()?.len() != print.size {
        return Err(SnapshotError::Memory("it has another size"));
    }
    log::info!("the memory file is a copy, or has been touched: reading it whole");
    let mut checksum = Checksum::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while let Some(start) = next_data(file, offset)? {
        offset = start - start % CHUNK as u64;
        let left = usize::try_from(print.size - offset).unwrap_or(usize::MAX);
        let chunk = buffer.get_mut(..left.min(CHUNK)).unwrap_or_default();
        file.read_exact_at(chunk, offset)?;
        for (place, page) in (offset..).step_by(PAGE).zip(chunk.chunks(PAGE)) {
            checksum.add(place, page);
        }
        offset += chunk.len() as u64;
    }
    match checksum.hasher.finalize() == print.checksum {
        true => Ok(()),
        false => Err(SnapshotError::Memory("it has been changed since")),
    }
}

/// Where the next byte is that is in no hole; `None` at the end.
fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the call takes integers.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, libc::SEEK_DATA) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Maps the file as guest memory of `size` bytes, of which this process alone sees what is written.
///
/// # Errors
/// The system's.
pub fn map(file: File, size: u64) -> Result<Arc<Ram>, SnapshotError> {
    let file = Arc::new(file);
    let mut offset = 0;
    let mut regions = Vec::with_capacity(2);
    for (start, length) in ram_ranges(size) {
        let bytes = usize::try_from(length).map_err(|_| SnapshotError::Nonsense("its memory is too large"))?;
        let mapping = MmapRegionBuilder::new(bytes)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build();
        let mapping = mapping.map_err(|error| SnapshotError::Read(io::Error::other(error)))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(start));
        regions.push(region.ok_or(SnapshotError::Nonsense("its memory is too large"))?);
        offset += length;
    }
    let ram = Ram::from_regions(regions).map_err(|_| SnapshotError::Nonsense("its memory overlaps"))?;
    Ok(Arc::new(ram))
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
