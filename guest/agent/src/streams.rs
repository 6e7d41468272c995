// SPDX-License-Identifier: Apache-2.0
//! Bytes of a process's standard streams, between its pipes or its terminal and the host's sockets.
//!
//! A process gets pipes and not the sockets themselves, so that `/dev/stdout` can be opened, as images expect.

use alloc::vec::Vec;

use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::Pid;

/// Bytes moved at once, and all that waits here: the reader's pace is the writer's.
const CHUNK: usize = 32 << 10;
/// What a pipe can hold at most (pipe(7), `pipe-max-size`), and so what a process can leave behind.
const MAX_LEFT: usize = 1 << 20;

/// One direction of one stream. Neither end blocks.
#[derive(Debug)]
pub struct Stream {
    from: OwnedFd,
    to: OwnedFd,
    waiting: Vec<u8>,
    process: Pid,
    /// Whether it is the process that reads.
    is_input: bool,
    /// Once the process has ended: how many bytes it may still be that it has written.
    left: Option<usize>,
}

impl Stream {
    /// Moves what comes from `from` to `to`, for this process to read.
    pub fn input(process: Pid, from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to, waiting: Vec::new(), process, is_input: true, left: None }
    }

    /// The same, of what the process writes.
    pub fn output(process: Pid, from: OwnedFd, to: OwnedFd) -> Self {
        Self { is_input: false, ..Self::input(process, from, to) }
    }

    /// What the stream waits for.
    pub fn interest(&self) -> (&OwnedFd, PollFlags) {
        if self.waiting.is_empty() { (&self.from, PollFlags::IN) } else { (&self.to, PollFlags::OUT) }
    }

    /// Goes on after that is there. `false` once all has been moved, or nobody takes it any more: dropping the stream
    /// then tells both ends.
    pub fn advance(&mut self) -> bool {
        while self.left.is_some() {
            match self.step() {
                // Whatever others still write there, what the process has written has been moved.
                Some(0) if self.waiting.is_empty() => return false,
                // The socket is full.
                Some(0) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        self.step().is_some()
    }

    /// After the end of a process: `false` if the stream was that process's and nothing of it is left to be moved. What
    /// a process leaves running may hold on to its streams, and nobody waits for that.
    pub fn outlives(&mut self, process: Pid) -> bool {
        if self.process != process {
            return true;
        }
        self.left = Some(MAX_LEFT);
        !self.is_input && self.advance()
    }

    /// Moves a piece, or part of one; gives how many bytes came out or went in, and nothing at the stream's end.
    fn step(&mut self) -> Option<usize> {
        if self.waiting.is_empty() {
            let length = self.left.unwrap_or(CHUNK).min(CHUNK);
            self.waiting.resize(length, 0);
            let outcome = rustix::io::read(&self.from, &mut self.waiting[..]);
            self.waiting.truncate(outcome.unwrap_or(0));
            match outcome {
                Ok(0) => return None,
                Ok(count) => self.left = self.left.map(|left| left - count),
                Err(error) => return is_passing(error).then_some(0),
            }
        }
        match rustix::io::write(&self.to, &self.waiting) {
            Ok(count) => {
                drop(self.waiting.drain(..count));
                Some(count)
            }
            Err(error) => is_passing(error).then_some(0),
        }
    }
}

fn is_passing(error: Errno) -> bool {
    matches!(error, Errno::AGAIN | Errno::INTR)
}
