// SPDX-License-Identifier: Apache-2.0
//! Where a guest's console goes on the host: written without ever blocking, and bounded.
//!
//! Bytes are gathered to lines, or for two milliseconds. What a slow reader does not take waits up to a bound; then the
//! device shows the guest that it is busy. A reader that takes nothing for a second has lost its say: the guest goes
//! on, the bytes are dropped, and a line in the output tells how many.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::nonblocking::NonBlocking;
use super::token_bucket::TokenBucket;

/// Bytes that wait for a slow reader.
const BOUND: usize = 256 << 10;
/// From here on a reader counts as behind. A driver may still send what its device's FIFO would hold.
const BEHIND: usize = BOUND - 4096;
/// After a drop the buffer takes bytes again below this, so that there is one gap and not a thousand.
const RESUME: usize = BOUND / 2;
/// Bytes that are gathered at most before they are written.
const GATHER: usize = 1024;
/// Time that part of a line is gathered.
const GATHER_TIME: Duration = Duration::from_millis(2);
/// Longest pause between two attempts to write to a reader that takes nothing.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A reader that has taken nothing for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(1);
/// Burst and lasting rate of a log file, in bytes and bytes a second.
const LOG_BURST: u64 = 4 << 20;
const LOG_RATE: u64 = 1 << 20;

/// Everything that a console writes to.
pub struct ConsoleOutput {
    sinks: Vec<Sink>,
    timer: TimerFd,
    armed: bool,
    pause: Duration,
    patience: Duration,
    on_first_byte: Option<Box<dyn FnOnce() + Send>>,
    bytes: u64,
}

/// One reader.
struct Sink {
    file: NonBlocking,
    pending: VecDeque<u8>,
    limit: Option<TokenBucket>,
    progress: Instant,
    dropping: bool,
    /// Bytes of the gap that the reader has not been told of.
    gap: u64,
    dropped: u64,
}

impl ConsoleOutput {
    /// An output that goes nowhere until something is added.
    ///
    /// # Errors
    /// The kernel's, where it gives no timer.
    pub fn new() -> io::Result<Self> {
        let timer = TimerFd::new().map_err(io::Error::from)?;
        Ok(Self {
            sinks: Vec::new(),
            timer,
            armed: false,
            pause: GATHER_TIME,
            patience: PATIENCE,
            on_first_byte: None,
            bytes: 0,
        })
    }

    /// Adds a terminal, pipe or socket. While it is slow, the guest is.
    ///
    /// # Errors
    /// `file` cannot be made non-blocking.
    pub fn to_terminal(mut self, file: File) -> io::Result<Self> {
        self.sinks.push(Sink::new(file, None)?);
        Ok(self)
    }

    /// Adds a log file: 4 MiB at once and 1 MiB a second; what is beyond is left out, and a line tells so.
    ///
    /// # Errors
    /// `file` cannot be made non-blocking.
    pub fn to_log(mut self, file: File) -> io::Result<Self> {
        self.sinks.push(Sink::new(file, Some(TokenBucket::new(LOG_BURST, LOG_RATE)))?);
        Ok(self)
    }

    /// Calls `call` when the guest's first byte comes, on the thread that brings it.
    #[must_use]
    pub fn on_first_byte(mut self, call: impl FnOnce() + Send + 'static) -> Self {
        self.on_first_byte = Some(Box::new(call));
        self
    }

    /// Takes all of `bytes`. Never blocks.
    pub fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(call) = self.on_first_byte.take() {
            call();
        }
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        for sink in &mut self.sinks {
            sink.push(bytes);
        }
        let gathered = self.sinks.iter().any(|sink| sink.pending.len() >= GATHER);
        // While a reader is behind, the timer paces the attempts.
        if (gathered || bytes.contains(&b'\n')) && self.pause == GATHER_TIME {
            self.write_out();
        } else {
            self.arm();
        }
    }

    /// Whether the guest may go on writing: no reader is behind, or the one that is has been stuck for long.
    pub fn ready(&self) -> bool {
        self.sinks.iter().all(|sink| sink.ready(self.patience))
    }

    /// What to wait on: readable when [`ConsoleOutput::write_out`] is due.
    pub fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Writes what the readers take now.
    pub fn write_out(&mut self) {
        let mut progress = false;
        for sink in &mut self.sinks {
            progress |= sink.flush();
        }
        if self.sinks.iter().all(|sink| sink.pending.is_empty()) {
            self.pause = GATHER_TIME;
            // Setting the timer also takes back that it has expired.
            if self.armed && self.timer.clear().is_ok() {
                self.armed = false;
            }
        } else {
            self.pause = if progress { 2 * GATHER_TIME } else { (2 * self.pause).min(LONGEST_PAUSE) };
            self.armed = false;
            self.arm();
        }
    }

    /// Writes what is left, for the end of the VM, and waits for the readers at most `limit`.
    pub fn finish(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        for sink in &mut self.sinks {
            sink.end_gap();
        }
        self.write_out();
        while self.sinks.iter().any(|sink| !sink.pending.is_empty()) && Instant::now() < end {
            std::thread::sleep(GATHER_TIME);
            self.write_out();
        }
    }

    /// Bytes that the guest wrote, and how many of them a reader did not get.
    pub fn counts(&self) -> (u64, u64) {
        (self.bytes, self.sinks.iter().map(|sink| sink.dropped).max().unwrap_or(0))
    }

    /// Another time until a reader counts as stuck: tests cannot rely on a busy machine's second.
    #[cfg(test)]
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    fn arm(&mut self) {
        if !self.armed {
            self.armed = self.timer.reset(self.pause, None).is_ok();
        }
    }
}

/// Takes everything at once; writing out is the timer's business.
impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn new(file: File, limit: Option<TokenBucket>) -> io::Result<Self> {
        let file = NonBlocking::for_writing(file)?;
        let progress = Instant::now();
        Ok(Self { file, pending: VecDeque::new(), limit, progress, dropping: false, gap: 0, dropped: 0 })
    }

    fn ready(&self, patience: Duration) -> bool {
        // A log is limited by its rate and never slows the guest.
        let waiting = self.pending.len();
        let behind = waiting >= BEHIND || self.dropping && waiting > RESUME;
        self.limit.is_some() || !behind || self.progress.elapsed() >= patience
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.dropping && self.pending.len() <= RESUME && self.limit.as_mut().is_none_or(TokenBucket::half_full) {
            self.end_gap();
        }
        let room = if self.dropping { 0 } else { BOUND.saturating_sub(self.pending.len()) };
        let affordable = self.limit.as_mut().map_or(room, |limit| limit.take(room.min(bytes.len())));
        let (kept, lost) = bytes.split_at_checked(room.min(affordable)).unwrap_or((bytes, &[]));
        if self.pending.is_empty() {
            // Until now there was nothing to be stuck with.
            self.progress = Instant::now();
        }
        self.pending.extend(kept);
        if !lost.is_empty() {
            self.dropping = true;
            self.gap = self.gap.saturating_add(lost.len() as u64);
            self.dropped = self.dropped.saturating_add(lost.len() as u64);
        }
    }

    /// Tells the reader of what it missed. May exceed the bound, by one line.
    fn end_gap(&mut self) {
        if self.gap > 0 {
            self.pending.extend(format!("\r\n[coracle: {} bytes of output dropped]\r\n", self.gap).into_bytes());
        }
        self.gap = 0;
        self.dropping = false;
    }

    /// Writes until the reader takes no more; `true` where it took something.
    fn flush(&mut self) -> bool {
        let before = self.pending.len();
        while !self.pending.is_empty() {
            match self.file.write(self.pending.as_slices().0) {
                Ok(count) if count > 0 => drop(self.pending.drain(..count.min(self.pending.len()))),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The reader has gone, or its disk is full: these bytes are lost, the next may fare better.
                Err(_) => {
                    self.dropped = self.dropped.saturating_add(self.pending.len() as u64);
                    self.pending.clear();
                }
            }
        }
        let progress = self.pending.len() < before;
        if progress {
            self.progress = Instant::now();
        }
        progress
    }
}

#[cfg(test)]
#[path = "console_output_test.rs"]
mod tests;
