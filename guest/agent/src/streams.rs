// SPDX-License-Identifier: Apache-2.0
//! Bytes of a process's standard streams, between its pipes and the host's sockets.
//!
//! A process gets pipes and not the sockets themselves, so that `/dev/stdout` can be opened, as images expect.

use alloc::vec::Vec;

use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;

/// Bytes moved at once, and all that waits here: the reader's pace is the writer's.
const CHUNK: usize = 32 << 10;

/// One direction of one stream. Neither end blocks.
#[derive(Debug)]
pub struct Stream {
    from: OwnedFd,
    to: OwnedFd,
    waiting: Vec<u8>,
}

impl Stream {
    /// Moves what comes from `from` to `to`.
    pub fn new(from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, waiting: Vec::new() }
    }

    /// What the stream waits for.
    pub fn interest(&self) -> (&OwnedFd, PollFlags) {
        if self.waiting.is_empty() { (&self.from, PollFlags::IN) } else { (&self.to, PollFlags::OUT) }
    }

    /// Goes on after that is there. `false` once all has been moved, or nobody takes it any more: dropping the stream
    /// then tells both ends.
    pub fn advance(&mut self) -> bool {
        if self.waiting.is_empty() {
            self.waiting.resize(CHUNK, 0);
            let outcome = rustix::io::read(&self.from, &mut self.waiting[..]);
            self.waiting.truncate(outcome.unwrap_or(0));
            match outcome {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return is_passing(error),
            }
        }
        match rustix::io::write(&self.to, &self.waiting) {
            Ok(count) => {
                drop(self.waiting.drain(..count));
                true
            }
            Err(error) => is_passing(error),
        }
    }
}

fn is_passing(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::INTR)
}
