// SPDX-License-Identifier: Apache-2.0
//! The host's clocks.

/// `CLOCK_MONOTONIC`, in nanoseconds: the scale of every time stamp that Coracle reports.
pub fn monotonic_ns() -> u64 {
    let (seconds, nanoseconds) = read(libc::CLOCK_MONOTONIC);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Processor time of this process, all its threads included, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    let (seconds, nanoseconds) = read(libc::CLOCK_PROCESS_CPUTIME_ID);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Processor time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let (seconds, nanoseconds) = read(libc::CLOCK_THREAD_CPUTIME_ID);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// `CLOCK_REALTIME`, in nanoseconds since 1970, UTC.
pub fn realtime_ns() -> u64 {
    let (seconds, nanoseconds) = read(libc::CLOCK_REALTIME);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Seconds since 1970, UTC.
pub fn utc_seconds() -> u64 {
    read(libc::CLOCK_REALTIME).0
}

fn read(clock: libc::clockid_t) -> (u64, u64) {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the result. These clocks always exist, so the call cannot fail.
    unsafe { libc::clock_gettime(clock, &mut time) };
    (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime, UNIX_EPOCH};

    #[test]
    fn clocks_run_in_their_units() {
        let start = monotonic_ns();
        std::thread::sleep(Duration::from_millis(20));
        let slept = monotonic_ns() - start;
        assert!((20_000_000..10_000_000_000).contains(&slept), "{slept}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(utc_seconds()) <= 1);
    }
}
