// SPDX-License-Identifier: Apache-2.0
//! Processes: PID 1 is the parent of every orphan.

use alloc::vec::Vec;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Timespec;
use rustix::io::{Errno, Result};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::sys;

/// Says when children have ended.
#[derive(Debug)]
pub struct Children(OwnedFd);

impl Children {
    /// Starts to watch, which must be before the first fork. Blocks SIGCHLD: a child must unblock it.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn watch() -> Result<Self> {
        sys::block_signals(sys::SIGCHLD_ONLY);
        sys::signalfd(sys::SIGCHLD_ONLY).map(Self)
    }

    /// Readable when [`Children::reap`] has something to do.
    pub fn readiness(&self) -> &OwnedFd {
        &self.0
    }

    /// Reaps all that have ended. Signals of one kind do not queue, so that one may stand for many children.
    pub fn reap(&self) -> Vec<(Pid, WaitStatus)> {
        self.clear();
        let mut ended = Vec::new();
        while let Reaped::One(pid, status) = reap_one() {
            ended.push((pid, status));
        }
        ended
    }

    /// Kills every process: politely, then, after `grace_ms`, for certain. Returns when all are gone.
    pub fn end_all(&self, grace_ms: u32) {
        sys::kill_all(sys::SIGTERM);
        if !self.wait_for_all(grace_ms) {
            sys::kill_all(sys::SIGKILL);
            // Whoever is stuck in the kernel must not hold up the end of the machine for ever.
            self.wait_for_all(2000);
        }
    }

    /// Whether all were gone within `limit_ms`.
    fn wait_for_all(&self, limit_ms: u32) -> bool {
        let deadline = sys::uptime_ms().saturating_add(limit_ms.into());
        loop {
            self.clear();
            loop {
                match reap_one() {
                    Reaped::One(..) => {}
                    Reaped::NoneYet => break,
                    Reaped::Childless => return true,
                }
            }
            let Some(left) = deadline.checked_sub(sys::uptime_ms()).filter(|&left| left > 0) else {
                return false;
            };
            wait_until(&self.0, PollFlags::IN, left);
        }
    }

    fn clear(&self) {
        // Of one blocked signal one is pending at most: a single `signalfd_siginfo`.
        let mut information = [0; 128];
        let _ = rustix::io::read(&self.0, &mut information);
    }
}

enum Reaped {
    One(Pid, WaitStatus),
    NoneYet,
    Childless,
}

fn reap_one() -> Reaped {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => return Reaped::One(pid, status),
            Ok(None) => return Reaped::NoneYet,
            Err(Errno::INTR) => {}
            Err(_) => return Reaped::Childless,
        }
    }
}

/// Waits for `events` on `fd`, at most `limit_ms`.
pub fn wait_until(fd: impl AsFd, events: PollFlags, limit_ms: u64) {
    let limit = Timespec {
        tv_sec: i64::try_from(limit_ms / 1000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(limit_ms % 1000).unwrap_or(0) * 1_000_000,
    };
    let fd = fd.as_fd();
    // A failure is an interruption: the caller looks at the clock anyway.
    let _ = poll(&mut [PollFd::new(&fd, events)], Some(&limit));
}
