// SPDX-License-Identifier: Apache-2.0
//! How jobs get done: at once in this thread where the page cache has it, else by an io_uring, else (no io_uring
//! here) by waiting for the disk.

mod job;
mod ring;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use libc::RWF_NOWAIT;

use super::request::Status;
pub use job::{Job, Progress, Transfer, Work};
use ring::Ring;

/// Which way jobs are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// In this thread what the page cache can serve without waiting, the rest by io_uring; without io_uring, as
    /// [`Engine::Synchronous`].
    Adaptive,
    /// All by io_uring.
    Ring,
    /// All in this thread, waiting for the disk.
    Synchronous,
}

/// Bytes up to which a read is tried in this thread. Measured with a fake driver and the page cache: a 4 KiB read takes
/// 3.9 µs of CPU time where the ring takes 5.2 at depth 1; at depth 8 and from 64 KiB on there is no difference.
const INLINE_READ: usize = 256 << 10;
/// As above, for writes.
const INLINE_WRITE: usize = 64 << 10;
/// A write into the page cache that takes longer than this had to wait, for memory or for the disk...
const SLOW: Duration = Duration::from_millis(4);
/// ... and then so many writes go by the ring before another is tried.
const PENALTY: u32 = 64;

/// What became of a job that was handed in.
pub enum Outcome {
    /// It is done.
    Done(Job, Status),
    /// The ring has it.
    Started,
}

/// Does jobs on one descriptor.
pub struct Worker {
    ring: Option<Ring>,
    inline: Inline,
}

/// What is tried in this thread before the ring.
struct Inline {
    enabled: bool,
    /// The file system can tell whether a read would wait.
    reads: bool,
    /// The same of a write.
    nowait_writes: bool,
    /// Writes to go by the ring.
    penalty: u32,
}

impl Worker {
    /// Makes the ring, where `engine` wants one.
    ///
    /// # Errors
    /// There is no io_uring here, and [`Engine::Ring`] was asked for.
    pub fn new(engine: Engine) -> io::Result<Self> {
        let ring = match engine {
            Engine::Ring => Some(Ring::new()?),
            Engine::Synchronous => None,
            Engine::Adaptive => match Ring::new() {
                Ok(ring) => Some(ring),
                Err(error) => {
                    log::info!("no io_uring ({error}): disks are read and written by preadv and pwritev");
                    None
                }
            },
        };
        let enabled = engine == Engine::Adaptive;
        Ok(Self { ring, inline: Inline { enabled, reads: true, nowait_writes: true, penalty: 0 } })
    }

    /// What to wait for, where there is anything: it is readable when [`Worker::reap`] finds something.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.ring.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Jobs in flight.
    pub fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    /// Whether another job has to wait for one in flight.
    pub fn is_full(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::is_full)
    }

    /// Does a job, or starts it; what is started waits for [`Worker::submit`].
    ///
    /// # Errors
    /// The ring does not work any more.
    pub fn handle(&mut self, mut job: Job, fd: RawFd) -> io::Result<Outcome> {
        let Some(ring) = &mut self.ring else {
            loop {
                let result = job.step(fd, 0);
                if let Progress::Done(status) = job.progress(result) {
                    return Ok(Outcome::Done(job, status));
                }
            }
        };
        if let Some(status) = self.inline.attempt(&mut job, fd) {
            return Ok(Outcome::Done(job, status));
        }
        ring.start(job, fd)?;
        Ok(Outcome::Started)
    }

    /// Sends off what was started.
    ///
    /// # Errors
    /// The ring does not work any more.
    pub fn submit(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::submit)
    }

    /// Waits until at least one of the jobs in flight has been done.
    ///
    /// # Errors
    /// The ring does not work any more.
    pub fn wait(&mut self) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), Ring::wait)
    }

    /// Hands jobs that have been done to `done`.
    ///
    /// # Errors
    /// The ring does not work any more.
    pub fn reap(&mut self, fd: RawFd, done: impl FnMut(Job, Status)) -> io::Result<()> {
        self.ring.as_mut().map_or(Ok(()), |ring| ring.reap(fd, done))
    }

    /// Cancels what is in flight; on return nothing is.
    pub fn cancel(&mut self) {
        if self.ring.as_mut().is_some_and(|ring| !ring.drain()) {
            log::warn!("io_uring failed: the disk is read and written by preadv and pwritev from here on");
            self.ring = None;
        }
    }
}

impl Inline {
    /// Tries the job, or a part of it, without waiting. `None`: what is left is for the ring.
    fn attempt(&mut self, job: &mut Job, fd: RawFd) -> Option<Status> {
        if !self.enabled {
            return None;
        }
        if self.reads && job.is_read(INLINE_READ) {
            return self.nowait(job, fd, |inline| inline.reads = false);
        }
        if !job.is_cached_write(INLINE_WRITE) {
            return None;
        }
        if self.nowait_writes {
            let done = self.nowait(job, fd, |inline| inline.nowait_writes = false);
            if done.is_some() || self.nowait_writes {
                return done;
            }
        }
        // The file system (ext4 is one) cannot tell whether a write would wait. The ring would hand each to a worker
        // thread: 71 µs of CPU time for 4 KiB at depth 1 on ext4, against 43 here. So they are made here until one waits.
        if self.penalty > 0 {
            self.penalty -= 1;
            return None;
        }
        let start = Instant::now();
        let result = job.step(fd, 0);
        if start.elapsed() > SLOW {
            self.penalty = PENALTY;
        }
        match job.progress(result) {
            Progress::Done(status) => Some(status),
            Progress::More => None,
        }
    }

    fn nowait(&mut self, job: &mut Job, fd: RawFd, unsupported: fn(&mut Self)) -> Option<Status> {
        match job.step(fd, RWF_NOWAIT) {
            // Nothing at all is what the ring will find as well, and it says so.
            Ok(0) => None,
            Ok(count) => match job.progress(Ok(count)) {
                Progress::Done(status) => Some(status),
                Progress::More => None,
            },
            Err(error) => {
                if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    unsupported(self);
                }
                None
            }
        }
    }
}
