// SPDX-License-Identifier: Apache-2.0
//! One request on its way: the step to do next, and what its result means.

use std::io;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, RWF_DSYNC};

use super::super::super::Chain;
use super::super::request::{Clearing, Range, Status};
use crate::vmm::guest_log::guest_warn;

/// Times that a step may be interrupted or put off by the system before that counts as a failure.
const MAX_RETRIES: u32 = 64;

/// Data between guest memory and the disk.
pub struct Transfer {
    write: bool,
    /// Writes only: durable when complete.
    durable: bool,
    offset: u64,
    left: usize,
    vectors: Vec<libc::iovec>,
    /// Vectors that are done.
    first: usize,
}

// SAFETY: the vectors lead into guest memory, which no thread owns; the job's chain keeps it mapped.
unsafe impl Send for Transfer {}

/// What is left to do.
pub enum Work {
    /// Read or write.
    Transfer(Transfer),
    /// Make completed writes durable.
    Flush,
    /// Clear ranges, the last of the list first.
    Clear {
        /// What is left.
        ranges: Vec<Range>,
        /// The other way to zero has been found missing for the range in turn.
        tried_other: bool,
        /// Flush afterwards.
        durable: bool,
    },
}

/// A request with the chain that it came in; the chain keeps guest memory mapped while the system works on it.
pub struct Job {
    /// Number of the queue that it came from.
    pub queue: usize,
    /// The chain.
    pub chain: Chain,
    /// Writable bytes before the status byte.
    pub room: usize,
    work: Work,
    retries: u32,
}

/// What a step's result leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another step.
    More,
    /// The end.
    Done(Status),
}

impl Transfer {
    /// `vectors` hold `left` bytes in all.
    pub fn new(write: bool, durable: bool, offset: u64, left: usize, vectors: Vec<libc::iovec>) -> Self {
        Self { write, durable, offset, left, vectors, first: 0 }
    }

    /// Whether the disk is written.
    pub fn is_write(&self) -> bool {
        self.write
    }

    /// Bytes that are still to move.
    pub fn left(&self) -> u64 {
        u64::try_from(self.left).unwrap_or(u64::MAX)
    }

    fn vectors(&self) -> &[libc::iovec] {
        self.vectors.get(self.first..).unwrap_or_default()
    }

    fn advance(&mut self, count: usize) {
        let mut count = count.min(self.left);
        self.left -= count;
        self.offset = self.offset.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        while let Some(vector) = self.vectors.get_mut(self.first) {
            let part = count.min(vector.iov_len);
            vector.iov_base = vector.iov_base.wrapping_byte_add(part);
            vector.iov_len -= part;
            count -= part;
            if vector.iov_len > 0 {
                return;
            }
            self.first += 1;
        }
    }
}

impl Job {
    /// A request to be worked on.
    pub fn new(queue: usize, chain: Chain, room: usize, work: Work) -> Self {
        Self { queue, chain, room, work, retries: 0 }
    }

    /// A read of at most `limit` bytes.
    pub fn is_read(&self, limit: usize) -> bool {
        matches!(&self.work, Work::Transfer(transfer) if !transfer.write && transfer.left <= limit)
    }

    /// A write of at most `limit` bytes that may stay in the host's page cache.
    pub fn is_cached_write(&self, limit: usize) -> bool {
        matches!(&self.work, Work::Transfer(transfer) if transfer.write && !transfer.durable && transfer.left <= limit)
    }

    /// Whether there is nothing to do: no data, or no ranges.
    pub fn is_empty(&self) -> bool {
        match &self.work {
            Work::Transfer(transfer) => transfer.left == 0,
            Work::Flush => false,
            Work::Clear { ranges, .. } => ranges.is_empty(),
        }
    }

    /// Bytes of data that are still to move.
    pub fn left(&self) -> usize {
        if let Work::Transfer(transfer) = &self.work { transfer.left } else { 0 }
    }

    /// Writable bytes that were filled, from the first on.
    pub fn filled(&self) -> usize {
        match &self.work {
            Work::Transfer(transfer) if !transfer.write => self.room.saturating_sub(transfer.left),
            _ => 0,
        }
    }

    /// Does the next step in this thread. `flags` are those of `preadv2`.
    ///
    /// # Errors
    /// The system's.
    pub fn step(&self, fd: RawFd, flags: libc::c_int) -> io::Result<usize> {
        let result = match &self.work {
            Work::Transfer(transfer) => {
                let (vectors, count) = (transfer.vectors().as_ptr(), length(transfer.vectors().len()));
                let offset = offset(transfer.offset)?;
                if transfer.write {
                    let flags = flags | if transfer.durable { RWF_DSYNC } else { 0 };
                    // SAFETY: the vectors lead into guest memory, which the chain keeps mapped.
                    unsafe { libc::pwritev2(fd, vectors, count, offset, flags) }
                } else {
                    // SAFETY: as above; the memory is the guest's to fill, nothing here holds a reference into it.
                    unsafe { libc::preadv2(fd, vectors, count, offset, flags) }
                }
            }
            // SAFETY: an integer goes in, no memory of ours is touched.
            Work::Flush => isize::try_from(unsafe { libc::fdatasync(fd) }).unwrap_or(-1),
            Work::Clear { ranges, .. } => match ranges.last() {
                // SAFETY: integers go in, no memory of ours is touched.
                Some(range) => isize::try_from(unsafe {
                    libc::fallocate(fd, mode(range.clearing), offset(range.offset)?, offset(range.length)?)
                })
                .unwrap_or(-1),
                None => 0,
            },
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }

    /// The next step for the ring. `None` where nothing is left for the system to do.
    ///
    /// The job must stay where its vectors are until the entry has completed.
    pub fn entry(&self, fd: RawFd) -> Option<squeue::Entry> {
        let fd = types::Fd(fd);
        match &self.work {
            Work::Transfer(transfer) => {
                let vectors = transfer.vectors().as_ptr();
                let count = u32::try_from(transfer.vectors().len()).ok()?;
                Some(if transfer.write {
                    let flags = if transfer.durable { RWF_DSYNC } else { 0 };
                    opcode::Writev::new(fd, vectors, count).offset(transfer.offset).rw_flags(flags).build()
                } else {
                    opcode::Readv::new(fd, vectors, count).offset(transfer.offset).build()
                })
            }
            Work::Flush => Some(opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build()),
            Work::Clear { ranges, .. } => ranges.last().map(|range| {
                opcode::Fallocate::new(fd, range.length).offset(range.offset).mode(mode(range.clearing)).build()
            }),
        }
    }

    /// Takes in what a step gave.
    pub fn progress(&mut self, result: io::Result<usize>) -> Progress {
        match result {
            Ok(count) => self.succeeded(count),
            Err(error) => self.failed(&error),
        }
    }

    fn succeeded(&mut self, count: usize) -> Progress {
        match &mut self.work {
            Work::Transfer(transfer) => {
                transfer.advance(count);
                match (transfer.left, count) {
                    (0, _) => Progress::Done(Status::Ok),
                    (left, 0) => {
                        guest_warn(format_args!(
                            "disk: {left} bytes at {} are not there any more: was its file cut short?",
                            transfer.offset
                        ));
                        Progress::Done(Status::IoError)
                    }
                    _ => Progress::More,
                }
            }
            Work::Flush => Progress::Done(Status::Ok),
            Work::Clear { ranges, tried_other, durable } => {
                ranges.pop();
                *tried_other = false;
                match (ranges.is_empty(), *durable) {
                    (false, _) => Progress::More,
                    (true, false) => Progress::Done(Status::Ok),
                    (true, true) => {
                        self.work = Work::Flush;
                        Progress::More
                    }
                }
            }
        }
    }

    fn failed(&mut self, error: &io::Error) -> Progress {
        if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) && self.retries < MAX_RETRIES
        {
            self.retries += 1;
            return Progress::More;
        }
        let what = match &mut self.work {
            Work::Transfer(transfer) if transfer.write => "write",
            Work::Transfer(_) => "read",
            Work::Flush => "flush",
            Work::Clear { ranges, tried_other, .. } => {
                if error.raw_os_error() == Some(libc::EOPNOTSUPP)
                    && let Some(range) = ranges.last_mut()
                {
                    // A discard is a hint. Of the two ways to zero, tmpfs knows one, a block device may know the other.
                    match range.clearing {
                        Clearing::Discard => return self.succeeded(0),
                        Clearing::Unmap if !*tried_other => range.clearing = Clearing::Zero,
                        Clearing::Zero if !*tried_other => range.clearing = Clearing::Unmap,
                        _ => return Progress::Done(Status::Unsupported),
                    }
                    *tried_other = true;
                    return Progress::More;
                }
                "discard or zero"
            }
        };
        guest_warn(format_args!("disk: the host could not {what}: {error}"));
        Progress::Done(Status::IoError)
    }
}

/// Block devices take these modes as well, as zeroing with or without unmapping.
fn mode(clearing: Clearing) -> libc::c_int {
    FALLOC_FL_KEEP_SIZE
        | match clearing {
            Clearing::Discard | Clearing::Unmap => FALLOC_FL_PUNCH_HOLE,
            Clearing::Zero => FALLOC_FL_ZERO_RANGE,
        }
}

fn offset(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn length(count: usize) -> libc::c_int {
    libc::c_int::try_from(count).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
#[path = "job_test.rs"]
mod tests;
