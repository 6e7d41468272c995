// SPDX-License-Identifier: Apache-2.0
//! Two files of an image, of which the host has one in its page cache: laid out here, and told apart here, by mincore(2)
//! or by the time that reading takes.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};

use super::catalogue::Seen;

/// Names in the image.
pub const KEPT: &str = "kept";
/// The one that is not in memory.
pub const DROPPED: &str = "dropped";
/// Bytes of each.
pub const SIZE: usize = 1 << 20;
/// Pages that are timed, and bytes between them: more than the kernel reads ahead of random reads.
const PAGES: u64 = 8;
const APART: u64 = (SIZE as u64) / PAGES;
const PAGE: usize = 4096;
/// Reads that differ by less are not told apart.
const RATIO: u128 = 4;

/// Brings one file into the page cache and the other out of it: as files of a mounted disk, and as parts of the disk.
///
/// # Errors
/// They cannot be read.
pub fn lay_out(directory: &Path, disk: &Path) -> io::Result<()> {
    let heads = [KEPT, DROPPED].map(|name| -> io::Result<[u8; 64]> {
        let mut head = [0; 64];
        File::open(directory.join(name))?.read_exact(&mut head)?;
        Ok(head)
    });
    let [kept, dropped] = heads;
    let disk = File::open(disk)?;
    // Looking for them brings them in, so both are found before one is dropped.
    let places = [find(&disk, &kept?)?, find(&disk, &dropped?)?];
    for (name, place) in [KEPT, DROPPED].iter().zip(places) {
        fadvise(&File::open(directory.join(name))?, 0, None, Advice::DontNeed)?;
        if let Some(offset) = place {
            fadvise(&disk, offset, std::num::NonZeroU64::new(SIZE as u64), Advice::DontNeed)?;
        }
    }
    if let [Some(offset), _] = places {
        disk.read_exact_at(&mut vec![0; SIZE], offset)?;
    }
    fs::read(directory.join(KEPT)).map(drop)
}

/// Where on a disk a block begins with these bytes.
fn find(mut disk: &File, head: &[u8]) -> io::Result<Option<u64>> {
    let mut block = vec![0; 1 << 20];
    let mut offset = 0_u64;
    disk.seek(SeekFrom::Start(0))?;
    loop {
        let count = disk.read(&mut block)?;
        if count == 0 {
            return Ok(None);
        }
        let blocks = block.get(..count).unwrap_or_default().chunks(512);
        if let Some(at) = blocks.clone().position(|part| part.starts_with(head)) {
            return Ok(Some(offset + 512 * u64::try_from(at).unwrap_or(0)));
        }
        offset += u64::try_from(count).unwrap_or(0);
    }
}

/// Tells the two apart, if that can be done.
///
/// # Errors
/// They cannot be read.
pub fn look(directory: &Path) -> io::Result<Seen> {
    let [kept, dropped] = [KEPT, DROPPED].map(|name| File::open(directory.join(name)));
    let (kept, dropped) = (kept?, dropped?);
    let resident = [resident(&kept), resident(&dropped)];
    if let [Ok(more), Ok(less)] = resident
        && more > 2 * less
    {
        return Ok(Seen::Done(format!("mincore: {more} pages against {less}")));
    }
    let (quick, slow) = (time(&kept)?, time(&dropped)?);
    let text = format!("a page takes {} µs against {} µs", quick / 1000, slow / 1000);
    Ok(if slow > RATIO * quick.max(1) { Seen::Done(text) } else { Seen::Missing(text) })
}

/// Pages of a file in memory, as mincore(2) tells.
fn resident(file: &File) -> io::Result<usize> {
    let mut pages = vec![0_u8; SIZE / PAGE];
    // SAFETY: a new mapping of an open file, at an address of the kernel's choice, to be asked about and unmapped; none of
    // its bytes is read.
    unsafe {
        let map = libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let result = libc::mincore(map, SIZE, pages.as_mut_ptr());
        let error = io::Error::last_os_error();
        libc::munmap(map, SIZE);
        if result != 0 {
            return Err(error);
        }
    }
    Ok(pages.iter().filter(|page| **page & 1 == 1).count())
}

/// Median time of reading a page, in ns.
fn time(file: &File) -> io::Result<u128> {
    fadvise(file, 0, None, Advice::Random)?;
    let mut times = Vec::new();
    for page in 0..PAGES {
        let start = Instant::now();
        file.read_exact_at(&mut [0; PAGE], page * APART)?;
        times.push(start.elapsed().as_nanos());
    }
    times.sort_unstable();
    Ok(times.get(times.len() / 2).copied().unwrap_or(0))
}
