// SPDX-License-Identifier: Apache-2.0
//! Memory files that hold only what differs from another, their base: from which the VM was started that they are of.
//!
//! RAM is compared with its base, page by page. What was written, given back or moved has not to be known for that, and a
//! page that is what it was again is left out. A clone of a clone is compared with the same base: there are no chains.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::SnapshotError;
use super::memory::{CHUNK, MemoryPrint, PAGE, Part, check, each_chunk, places, regions, write_parts};
use crate::vmm::memory::{Ram, ram_ranges};

/// Most pieces of a file: each is a mapping of its own, or two, of which a process may have 65530 (`vm.max_map_count`).
const MAX_EXTENTS: usize = 4096;

/// A memory file that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// Where it is.
    pub path: PathBuf,
    /// How it is known.
    pub print: MemoryPrint,
}

/// What a memory file lacks, and where it does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Holds the rest.
    pub whole: Whole,
    /// What it does not hold, in order.
    extents: Vec<Extent>,
}

/// Pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Extent {
    /// Number of the first in the file.
    first: u64,
    /// How many.
    pages: u64,
}

impl Extent {
    /// The page after its last.
    fn end(self) -> Option<u64> {
        self.first.checked_add(self.pages)
    }

    fn part(self) -> Option<Part> {
        let page = PAGE as u64;
        Some(self.first.checked_mul(page)?..self.end()?.checked_mul(page)?)
    }
}

impl Base {
    /// Writes what differs in `ram` from the file `whole`, from which it was mapped, into an empty file.
    ///
    /// # Errors
    /// The system's, such as a full disk.
    pub fn write_difference(whole: Whole, ram: &Ram, file: &File) -> io::Result<(Self, MemoryPrint)> {
        let extents = differences(ram, MAX_EXTENTS)?;
        let parts: Vec<Part> = extents.iter().filter_map(|extent| extent.part()).collect();
        let print = write_parts(ram, file, &parts)?;
        Ok((Self { whole, extents }, print))
    }

    /// Checks what a state file says of it: `size` is that of RAM.
    ///
    /// # Errors
    /// [`SnapshotError::Nonsense`].
    pub fn check(&self, size: u64) -> Result<(), SnapshotError> {
        if self.whole.print.size != size {
            return Err(SnapshotError::Nonsense("its base has another size than its memory"));
        }
        let regions = places(ram_ranges(size).into_iter().map(|(_, length)| length));
        let is_within = |part: &Part| regions.iter().any(|region| region.start <= part.start && part.end <= region.end);
        let mut before = 0;
        for extent in &self.extents {
            let part = extent.part().filter(|part| !part.is_empty() && part.start >= before && is_within(part));
            before = part.ok_or(SnapshotError::Nonsense("what differs in its memory is not in order"))?.end;
        }
        match self.extents.len() > MAX_EXTENTS {
            true => Err(SnapshotError::Nonsense("its memory differs in more places than there may be")),
            false => Ok(()),
        }
    }

    /// Opens the base at `path`, which is as it was.
    ///
    /// # Errors
    /// It is no more, or another.
    pub fn open(&self, path: &Path) -> Result<File, SnapshotError> {
        let failed = |error: SnapshotError| SnapshotError::Base { path: path.to_owned(), why: error.to_string() };
        // The state names it, and may be forged: to open what is no file may wait for ever, or do something.
        let is_file = fs::metadata(path).map_err(|error| failed(error.into()))?.is_file();
        if !is_file {
            return Err(failed(SnapshotError::Memory("it is no file")));
        }
        let file = File::open(path).map_err(|error| failed(error.into()))?;
        check(&file, &self.whole.print).map_err(failed)?;
        Ok(file)
    }

    /// Maps what `file` holds over RAM that is mapped from the base.
    ///
    /// # Errors
    /// The system's.
    pub fn lay_over(&self, ram: &Ram, file: &File) -> io::Result<()> {
        for (region, place) in ram.iter().zip(regions(ram)) {
            let parts = self.extents.iter().filter_map(|extent| extent.part());
            for part in parts.filter(|part| place.contains(&part.start)) {
                let bytes = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
                let from = MemoryRegionAddress(part.start - place.start);
                let target = region.get_slice(from, bytes).map_err(io::Error::other)?;
                map_over(target.ptr_guard_mut().as_ptr(), bytes, file, part.start)?;
            }
        }
        Ok(())
    }
}

fn map_over(start: *mut u8, bytes: usize, file: &File, offset: u64) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the range is part of a mapping of guest memory that nobody uses yet and that is kept alive, with the same
    // protection, and to which no Rust reference exists. It stays mapped throughout.
    let mapped = unsafe { libc::mmap(start.cast(), bytes, protection, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Where RAM differs from the file that it was mapped from, in `most` pieces at most: for that, pages between two of them
/// may be the same.
fn differences(ram: &Ram, most: usize) -> io::Result<Vec<Extent>> {
    let mut all = Vec::new();
    let mut then = vec![0; CHUNK];
    for (region, place) in ram.iter().zip(regions(ram)) {
        let base = region.file_offset().ok_or(io::ErrorKind::Unsupported)?.file();
        let mut extents: Vec<Extent> = Vec::new();
        each_chunk(ram, &[place], |offset, now| {
            let then = then.get_mut(..now.len()).unwrap_or_default();
            base.read_exact_at(then, offset)?;
            // Most of it is the same.
            if now == then {
                return Ok(());
            }
            for (number, (now, then)) in (offset / PAGE as u64..).zip(now.chunks(PAGE).zip(then.chunks(PAGE))) {
                match extents.last_mut() {
                    _ if now == then => {}
                    Some(last) if last.end() == Some(number) => last.pages += 1,
                    _ => extents.push(Extent { first: number, pages: 1 }),
                }
            }
            Ok(())
        })?;
        all.push(extents);
    }
    let mut gap = 1;
    while all.iter().map(Vec::len).sum::<usize>() > most && gap < u64::MAX / 2 {
        all.iter_mut().for_each(|extents| join(extents, gap));
        gap *= 2;
    }
    Ok(all.concat())
}

/// Joins those that have no more than `gap` pages between them.
fn join(extents: &mut Vec<Extent>, gap: u64) {
    extents.dedup_by(|next, before| {
        let end = before.first + before.pages;
        let close = next.first - end <= gap;
        if close {
            before.pages = next.first + next.pages - before.first;
        }
        close
    });
}

#[cfg(test)]
#[path = "difference_test.rs"]
mod tests;
