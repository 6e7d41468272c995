// SPDX-License-Identifier: Apache-2.0
//! Jobs that the system works on by itself, through an io_uring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

use super::super::request::Status;
use super::job::{Job, Progress};

/// Jobs in flight at a time. The completion queue holds twice that: each, and the answer to its cancellation.
pub const CAPACITY: u32 = 256;
/// What is asked of a ring.
const OPERATIONS: [u8; 5] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::AsyncCancel::CODE,
];
/// User data of entries whose completion means nothing.
const IGNORED: u64 = u64::MAX;

/// The ring, and the jobs that it holds.
pub struct Ring {
    ring: IoUring,
    /// A job's place is its entry's user data.
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
}

impl Ring {
    /// A ring that does for ever what disks need, and nothing else: no filter of system calls sees what is asked of it.
    ///
    /// # Errors
    /// `ENOSYS` where the system has none, `EINVAL` where it has one that cannot be restricted (before Linux 5.10),
    /// `EPERM` where the administrator (`io_uring_disabled`) forbids it.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_clamp().setup_r_disabled().build(CAPACITY)?;
        ring.submitter().register_restrictions(&mut OPERATIONS.map(Restriction::sqe_op))?;
        ring.submitter().register_enable_rings()?;
        Ok(Self { ring, jobs: Vec::new(), free: Vec::new() })
    }

    /// Jobs in flight.
    pub fn in_flight(&self) -> usize {
        self.jobs.len() - self.free.len()
    }

    /// Whether no job can be taken.
    pub fn is_full(&self) -> bool {
        self.in_flight() >= CAPACITY as usize
    }

    /// Takes a job; [`Ring::submit`] sends it off.
    ///
    /// # Errors
    /// The ring takes no entry, or there is none to make; nothing of the job is in flight then.
    pub fn start(&mut self, job: Job, fd: RawFd) -> io::Result<()> {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.jobs.push(None);
            self.jobs.len() - 1
        });
        if let Some(place) = self.jobs.get_mut(slot) {
            *place = Some(job);
        }
        let result = self.push(slot, fd);
        if result.is_err() {
            self.take(slot);
        }
        result
    }

    fn push(&mut self, slot: usize, fd: RawFd) -> io::Result<()> {
        let job = self.jobs.get(slot).and_then(Option::as_ref);
        let entry = job.and_then(|job| job.entry(fd)).ok_or(io::ErrorKind::InvalidInput)?;
        let entry = entry.user_data(u64::try_from(slot).unwrap_or(IGNORED));
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: descriptor, vectors and guest memory stay until the completion: a job leaves the table when it has
        // come, and the ring, which the disk outlives, is dropped when nothing is in flight (`drain`).
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock.into())
    }

    /// Sends off what was started; one system call, none where there is nothing.
    ///
    /// # Errors
    /// The system's; what was not sent stays for the next call.
    pub fn submit(&mut self) -> io::Result<()> {
        let mut attempts = 0;
        while !self.ring.submission().is_empty() {
            let Err(error) = self.ring.submit() else { continue };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // The system is short of memory for the moment.
                Some(libc::EAGAIN | libc::EBUSY) if attempts < 100 => {
                    attempts += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes in completions, sends off what they lead to, and hands jobs that are done to `done`.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn reap(&mut self, fd: RawFd, mut done: impl FnMut(Job, Status)) -> io::Result<()> {
        // What is sent off again here completes at a later call, so a disk of short steps cannot hold the thread.
        let mut again = Vec::new();
        loop {
            // One at a time: the borrow of the queue must end before the job's next step is pushed.
            let Some(completion) = self.ring.completion().next() else { break };
            let Ok(slot) = usize::try_from(completion.user_data()) else { continue };
            let Some(job) = self.jobs.get_mut(slot).and_then(Option::as_mut) else { continue };
            match job.progress(result(completion.result())) {
                Progress::More => again.push(slot),
                Progress::Done(status) => {
                    if let Some(job) = self.take(slot) {
                        done(job, status);
                    }
                }
            }
        }
        let mut outcome = Ok(());
        for slot in again {
            if outcome.is_ok() {
                outcome = self.push(slot, fd);
            }
            if outcome.is_err() {
                // It is not in flight: without this, `drain` would wait for it for ever.
                self.take(slot);
            }
        }
        outcome.and_then(|()| self.submit())
    }

    /// Waits for a completion.
    ///
    /// # Errors
    /// As [`Ring::submit`].
    pub fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    fn take(&mut self, slot: usize) -> Option<Job> {
        let job = self.jobs.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(job)
    }

    /// Cancels everything and waits until nothing is in flight; the jobs are dropped. `false` where the ring refuses
    /// to work and is of no further use.
    pub fn drain(&mut self) -> bool {
        let cancellations = self.cancel();
        loop {
            self.drop_completed();
            if self.in_flight() == 0 {
                return self.submit().is_ok();
            }
            // The wait sends off what is left as well.
            let Err(error) = self.ring.submit_and_wait(1) else { continue };
            if error.kind() != io::ErrorKind::Interrupted {
                self.drop_completed();
                // What was sent ends without our help; jobs that never were, which come before the cancellations,
                // touch nothing.
                if self.in_flight() <= self.ring.submission().len().saturating_sub(cancellations) {
                    self.jobs.clear();
                    self.free.clear();
                    return false;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Number of cancellations that were asked for.
    fn cancel(&mut self) -> usize {
        let flying = (0u64..).zip(&self.jobs).filter(|(_, job)| job.is_some());
        let slots: Vec<_> = flying.map(|(slot, _)| slot).collect();
        for (count, slot) in slots.iter().enumerate() {
            let entry = opcode::AsyncCancel::new(*slot).build().user_data(IGNORED);
            if self.ring.submission().is_full() && self.submit().is_err() {
                return count;
            }
            // SAFETY: the entry refers to no memory.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                // The rest runs to its end instead.
                return count;
            }
        }
        slots.len()
    }

    fn drop_completed(&mut self) {
        loop {
            let Some(completion) = self.ring.completion().next() else { return };
            if let Ok(slot) = usize::try_from(completion.user_data()) {
                self.take(slot);
            }
        }
    }
}

impl AsRawFd for Ring {
    /// Readable while there are completions; needs no eventfd beside it, nor a read to quiet it.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Guest memory and the disk must outlive what the system still does with them.
        self.drain();
    }
}

fn result(value: i32) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::from_raw_os_error(value.saturating_neg()))
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
