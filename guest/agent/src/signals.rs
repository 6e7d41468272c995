// SPDX-License-Identifier: Apache-2.0
//! Signals and processes: PID 1 is the parent of every orphan, and is who `poweroff` and `reboot` turn to.

use alloc::vec::Vec;

use coracle_protocol::ShutdownMode;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::Timespec;
use rustix::io::{Errno, Result};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};

use crate::sys;

/// Those that PID 1 heeds: SIGCHLD; what busybox's `halt`, `poweroff` and `reboot` send; and Ctrl-Alt-Del.
const HEEDED: [Signal; 5] = [Signal::CHILD, Signal::USR1, Signal::USR2, Signal::TERM, Signal::INT];

/// How long processes have to go once SIGKILL was sent. One that is stuck in the kernel must not hold up the end.
const KILLED_MS: u32 = 2000;

/// Signals to PID 1, as something to poll.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Starts to watch, which must be before the first fork. Blocks the signals: a child must unblock them.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn watch() -> Result<Self> {
        let set = sys::signal_set(&HEEDED);
        sys::block_signals(set);
        sys::signalfd(set).map(Self)
    }

    /// Readable when a signal has come.
    pub fn readiness(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes all that have come; says if one of them asks for the end of the machine.
    pub fn take(&self) -> Option<ShutdownMode> {
        let mut asked = None;
        // A `signalfd_siginfo`, which starts with the signal's number.
        let mut information = [0; 128];
        while let Ok(128) = rustix::io::read(&self.0, &mut information) {
            let [a, b, c, d, ..] = information;
            let signal = Signal::from_named_raw(i32::from_ne_bytes([a, b, c, d]));
            asked = asked.or(match signal {
                Some(Signal::USR1 | Signal::USR2) => Some(ShutdownMode::PowerOff),
                Some(Signal::TERM | Signal::INT) => Some(ShutdownMode::Reboot),
                _ => None,
            });
        }
        asked
    }

    /// Kills every process: politely, then, after `grace_ms`, for certain. Returns when all are gone.
    pub fn end_all(&self, grace_ms: u32) {
        sys::kill_all(Signal::TERM);
        if !self.wait_for_all(grace_ms) {
            sys::kill_all(Signal::KILL);
            self.wait_for_all(KILLED_MS);
        }
    }

    /// Whether all were gone within `limit_ms`.
    fn wait_for_all(&self, limit_ms: u32) -> bool {
        let deadline = sys::uptime_ms().saturating_add(limit_ms.into());
        loop {
            // Whatever else is asked, the end has already begun.
            let _ = self.take();
            loop {
                match reap_one() {
                    Reaped::One(..) => {}
                    Reaped::NoneYet => break,
                    Reaped::Childless => return true,
                }
            }
            let Some(left) = deadline.checked_sub(sys::uptime_ms()).filter(|&left| left > 0) else { return false };
            wait_until(&self.0, PollFlags::IN, left);
        }
    }
}

/// Reaps all that have ended. Signals of one kind do not queue, so that one SIGCHLD may stand for many.
pub fn reap() -> Vec<(Pid, WaitStatus)> {
    let mut ended = Vec::new();
    while let Reaped::One(pid, status) = reap_one() {
        ended.push((pid, status));
    }
    ended
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
