// SPDX-License-Identifier: Apache-2.0
//! The image's file while it is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use super::blocks::Extent;
use super::error::Problem;

const BUFFER: usize = 512 << 10;
static ZEROES: [u8; 4096] = [0; 4096];

/// A file that is written at any place, and fast where places follow each other.
#[derive(Debug)]
pub(super) struct Output<'f> {
    file: &'f File,
    buffer: Box<[u8]>,
    /// Bytes of the buffer that are in use, and where in the file they belong.
    filled: usize,
    at: u64,
    /// Where the file's last written byte ends: behind it, all is zero.
    written: u64,
}

fn cannot_write(source: io::Error) -> Problem {
    Problem::Write { what: "write the image", source }
}

impl<'f> Output<'f> {
    /// Empties the file first, so that what is not written is zero.
    pub(super) fn new(file: &'f mut File) -> Result<Self, Problem> {
        file.set_len(0).map_err(cannot_write)?;
        Ok(Self { file, buffer: vec![0; BUFFER].into(), filled: 0, at: 0, written: 0 })
    }

    /// Room for at most `length` bytes (and at least one, if `length` is not 0) at `offset`, all of which must be filled.
    pub(super) fn room(&mut self, offset: u64, length: u64) -> Result<&mut [u8], Problem> {
        if offset != self.at + self.filled as u64 || self.filled == self.buffer.len() {
            self.flush()?;
            self.at = offset;
        }
        let start = self.filled;
        let free = self.buffer.len() - start;
        let length = usize::try_from(length).map_or(free, |length| length.min(free));
        self.filled += length;
        Ok(&mut self.buffer[start..start + length])
    }

    pub(super) fn write(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), Problem> {
        while !bytes.is_empty() {
            let room = self.room(offset, bytes.len() as u64)?;
            let (now, later) = bytes.split_at(room.len());
            room.copy_from_slice(now);
            bytes = later;
            offset += now.len() as u64;
        }
        Ok(())
    }

    pub(super) fn write_zeroes(&mut self, mut offset: u64, mut length: u64) -> Result<(), Problem> {
        while length > 0 {
            let room = self.room(offset, length)?;
            room.fill(0);
            let done = room.len() as u64;
            offset += done;
            length -= done;
        }
        Ok(())
    }

    pub(super) fn flush(&mut self) -> Result<(), Problem> {
        let (bytes, at) = (&self.buffer[..self.filled], self.at);
        self.at += self.filled as u64;
        // Zeroes that nobody wrote take no disk, however many a packed layer unpacks to.
        if at < self.written || bytes.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(bytes, at).map_err(cannot_write)?;
            self.written = self.written.max(self.at);
        }
        self.filled = 0;
        Ok(())
    }

    /// Makes an extent zero, and gives its room on the disk back if the file's file system can.
    pub(super) fn punch(&mut self, extent: Extent) -> Result<(), Problem> {
        self.flush()?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if rustix::fs::fallocate(self.file, flags, extent.offset(), extent.length()).is_ok() {
            return Ok(());
        }
        for block in 0..u64::from(extent.count) {
            self.write(extent.offset() + block * ZEROES.len() as u64, &ZEROES)?;
        }
        Ok(())
    }

    /// Writes what is left, and sets the file's size.
    pub(super) fn finish(mut self, length: u64) -> Result<(), Problem> {
        self.flush()?;
        self.file.set_len(length).map_err(cannot_write)
    }
}
