// SPDX-License-Identifier: Apache-2.0
//! Messages that a guest can cause, at a rate that it cannot choose.

use std::fmt::Arguments;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Messages a second, over all devices of the VM; the rest is counted and told with the next that gets through.
const PER_SECOND: u64 = 10;

static SUPPRESSED: AtomicU64 = AtomicU64::new(0);
/// Second since the first message, and how many were let through in it, in one word so that one swap changes both.
static WINDOW: AtomicU64 = AtomicU64::new(0);

/// Logs a warning that the guest has caused.
pub fn guest_warn(message: Arguments<'_>) {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let second = START.get_or_init(Instant::now).elapsed().as_secs();
    let admitted = WINDOW.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
        let (current, count) = (window >> 16, window & 0xffff);
        match (current == second, count < PER_SECOND) {
            (false, _) => Some(second << 16 | 1),
            (true, true) => Some(window + 1),
            (true, false) => None,
        }
    });
    if admitted.is_err() {
        SUPPRESSED.fetch_add(1, Ordering::Relaxed);
        return;
    }
    match SUPPRESSED.swap(0, Ordering::Relaxed) {
        0 => log::warn!("guest: {message}"),
        count => log::warn!("guest: {message} ({count} more messages left out)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_printed() {
        for _ in 0..10_000 {
            guest_warn(format_args!("flood"));
        }
        assert!(SUPPRESSED.load(Ordering::Relaxed) > 9_000);
    }
}
