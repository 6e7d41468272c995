// SPDX-License-Identifier: Apache-2.0
//! Whether the thread that serves devices takes a CPU from others when it wakes up (`sched(7)`).
//!
//! A thread that sleeps most of the time should: its work is short, and somebody waits for it. One that moves much data
//! should not where it shares a CPU with the guest, or with who feeds it: it would take the CPU for each request as it
//! is made, and the guest would take it back with each interrupt. So a thread that is busy is scheduled as
//! `SCHED_BATCH`, which differs from the usual policy in this alone; requests then gather until whoever makes them
//! waits or has had its turn. On a CPU of its own it makes no difference.

use super::clock::{monotonic_ns, thread_cpu_ns};

/// How long the thread is watched before it is judged.
const WINDOW_NS: u64 = 10_000_000;
/// Part of a CPU, in percent, from which on a thread is busy, and below which it no longer is. The two are apart, since
/// requests that gather cost less.
const BUSY: u64 = 10;
const IDLE: u64 = 4;

/// How the calling thread is scheduled, by how busy it is.
#[derive(Debug)]
pub struct Wakeups {
    gathering: bool,
    /// When the window began, and the thread's processor time then, in nanoseconds.
    since: u64,
    used: u64,
}

impl Wakeups {
    /// For the calling thread, which is scheduled as usual.
    pub fn of_this_thread() -> Self {
        Self { gathering: false, since: monotonic_ns(), used: thread_cpu_ns() }
    }

    /// Judges the thread, if it is time; to be called by it each time that it has done what it woke up for.
    pub fn look(&mut self) {
        let now = monotonic_ns();
        let window = now.saturating_sub(self.since);
        if window < WINDOW_NS {
            return;
        }
        let used = thread_cpu_ns();
        let gather = is_busy(self.gathering, used.saturating_sub(self.used), window);
        (self.since, self.used) = (now, used);
        if gather != self.gathering && schedule(if gather { libc::SCHED_BATCH } else { libc::SCHED_OTHER }) {
            self.gathering = gather;
        }
    }
}

/// Whether a thread is busy that was (`before`) or was not, and has used `used` of the last `window` nanoseconds.
fn is_busy(before: bool, used: u64, window: u64) -> bool {
    used.saturating_mul(100) >= window.saturating_mul(if before { IDLE } else { BUSY })
}

fn schedule(policy: libc::c_int) -> bool {
    // SAFETY: an all-zero structure is valid, and what both policies want.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: 0 is the calling thread; `parameters` is valid. Whoever started us may have set a policy from which there
    // is no way to these; then it stays.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn policy() -> libc::c_int {
        // SAFETY: 0 is the calling thread.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn what_is_busy_stays_so_until_it_does_much_less() {
        assert!(!is_busy(false, 9, 100) && is_busy(false, 10, 100));
        assert!(is_busy(true, 4, 100) && !is_busy(true, 3, 100));
    }

    #[test]
    fn a_busy_thread_gathers_and_one_that_sleeps_does_not() {
        let mut wakeups = Wakeups::of_this_thread();
        assert_eq!(policy(), libc::SCHED_OTHER);
        let deadline = Instant::now() + Duration::from_secs(60);
        while policy() != libc::SCHED_BATCH {
            assert!(Instant::now() < deadline);
            wakeups.look();
        }
        while policy() != libc::SCHED_OTHER {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(20));
            wakeups.look();
        }
    }
}
