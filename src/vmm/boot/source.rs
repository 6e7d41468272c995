// SPDX-License-Identifier: Apache-2.0
//! Where a kernel's bytes come from: a file, or memory that it was unpacked into.
//!
//! A file is read at offsets by its descriptor. Its position is never used, so a descriptor that someone else also
//! holds does no harm, and each segment costs one system call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::vmm::memory::Ram;

/// Bytes that can be read at any offset and copied into guest memory.
#[derive(Debug)]
pub(super) enum Source {
    /// A regular file and its length when it was opened.
    File { file: File, length: u64 },
    /// An image in this process's memory.
    Memory(Vec<u8>),
}

impl Source {
    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// Reads exactly `length` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the range is not all there, or what the system says. Nothing is allocated for a range that
    /// goes beyond the end.
    pub fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length()).ok_or(io::ErrorKind::UnexpectedEof)?;
        match self {
            Self::File { file, .. } => {
                let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes)
            }
            Self::Memory(bytes) => {
                let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
                let found = range.and_then(|(start, end)| bytes.get(start..end));
                found.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    /// Reads up to `length` bytes from the start: fewer only where the source itself is shorter.
    pub fn head(&self, length: u64) -> io::Result<Vec<u8>> {
        self.read(0, length.min(self.length()))
    }

    /// Copies `length` bytes at `offset` to guest address `address`, straight from the page cache for a file.
    ///
    /// # Errors
    /// `UnexpectedEof` if the source became shorter, `InvalidInput` if the range is not inside one region of RAM, or
    /// what the system says.
    pub fn copy_to(&self, offset: u64, length: u64, ram: &Ram, address: GuestAddress) -> io::Result<()> {
        let count = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        match self {
            Self::File { file, .. } => copy_file(file, offset, count, ram, address),
            Self::Memory(bytes) => {
                let start = usize::try_from(offset).ok();
                let range = start.and_then(|start| Some(start..start.checked_add(count)?));
                let found = range.and_then(|range| bytes.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
                ram.write_slice(found, address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            }
        }
    }
}

/// Reads `count` bytes of `file` at `offset` into guest memory.
///
/// # Errors
/// As [`Source::copy_to`].
pub(super) fn copy_file(file: &File, offset: u64, count: usize, ram: &Ram, address: GuestAddress) -> io::Result<()> {
    let mut slice =
        ram.get_slice(address, count).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    match (FileAt { file, offset }).read_exact_volatile(&mut slice) {
        Ok(()) => Ok(()),
        Err(VolatileMemoryError::IOError(error)) => Err(error),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidInput, error)),
    }
}

/// A file read from a given offset on, without moving its position.
struct FileAt<'a> {
    file: &'a File,
    offset: u64,
}

impl ReadVolatile for FileAt<'_> {
    fn read_volatile<B: BitmapSlice>(&mut self, slice: &mut VolatileSlice<B>) -> Result<usize, VolatileMemoryError> {
        let offset =
            i64::try_from(self.offset).map_err(|_| VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into()))?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: the guard keeps `slice.len()` bytes at its pointer mapped and writable until it is dropped. The system
        // call writes at most that many, and no Rust reference to them exists.
        let read = unsafe { libc::pread64(self.file.as_raw_fd(), guard.as_ptr().cast(), slice.len(), offset) };
        // A negative count is the only one that does not convert.
        let Ok(read) = usize::try_from(read) else {
            return Err(VolatileMemoryError::IOError(io::Error::last_os_error()));
        };
        slice.bitmap().mark_dirty(0, read);
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn both(bytes: &[u8]) -> [Source; 2] {
        [Source::File { file: file(bytes), length: bytes.len() as u64 }, Source::Memory(bytes.to_vec())]
    }

    #[test]
    fn reads_only_what_is_there() {
        for source in both(b"0123456789") {
            assert_eq!(source.read(3, 4).unwrap(), b"3456");
            assert_eq!(source.head(100).unwrap(), b"0123456789");
            for (offset, length) in [(0, 11), (10, 1), (u64::MAX, 1), (1, u64::MAX)] {
                let error = source.read(offset, length).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset} {length}");
            }
        }
    }

    #[test]
    fn copies_into_guest_memory() {
        let ram = crate::vmm::memory::allocate(4 << 20).unwrap();
        for (n, source) in (0..).zip(both(b"0123456789")) {
            let address = GuestAddress(0x1000 + n * 0x1000);
            source.copy_to(2, 5, &ram, address).unwrap();
            let mut found = [0; 6];
            ram.read_slice(&mut found, address).unwrap();
            assert_eq!(&found, b"23456\0");
            let beyond = source.copy_to(8, 5, &ram, address).unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            let outside = source.copy_to(0, 10, &ram, GuestAddress((4 << 20) - 5)).unwrap_err();
            assert_eq!(outside.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn a_file_that_shrank_is_an_error() {
        let file = file(b"0123456789");
        file.set_len(4).unwrap();
        let source = Source::File { file, length: 10 };
        let ram = crate::vmm::memory::allocate(4 << 20).unwrap();
        assert_eq!(source.read(0, 10).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(source.copy_to(0, 10, &ram, GuestAddress(0)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
