// SPDX-License-Identifier: Apache-2.0
//! A rate limit with a burst.

use std::time::{Duration, Instant};

/// Tokens that refill with time, up to a burst.
#[derive(Debug)]
pub struct TokenBucket {
    burst: u64,
    per_second: u64,
    tokens: u64,
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that gets `per_second` new ones a second.
    pub fn new(burst: u64, per_second: u64) -> Self {
        Self { burst, per_second, tokens: burst, filled: Instant::now() }
    }

    /// Takes up to `wanted` tokens; gives how many there were.
    pub fn take(&mut self, wanted: usize) -> usize {
        self.refill(Instant::now());
        let taken = usize::try_from(self.tokens).map_or(wanted, |tokens| tokens.min(wanted));
        self.tokens -= taken as u64;
        taken
    }

    /// Whether at least half of the burst is there.
    pub fn half_full(&mut self) -> bool {
        self.refill(Instant::now());
        self.tokens >= self.burst / 2
    }

    fn refill(&mut self, now: Instant) {
        let nanoseconds = now.saturating_duration_since(self.filled).as_nanos();
        let earned = nanoseconds.saturating_mul(self.per_second.into()) / 1_000_000_000;
        if earned > 0 {
            self.tokens =
                u64::try_from(earned).map_or(self.burst, |new| self.tokens.saturating_add(new)).min(self.burst);
            // The part of a token that is not earned yet stays in the time; a full bucket earns nothing.
            let spent = u64::try_from(earned * 1_000_000_000 / u128::from(self.per_second)).unwrap_or(u64::MAX);
            self.filled = self.filled.checked_add(Duration::from_nanos(spent)).map_or(now, |filled| filled.min(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(1000, 100);
        let start = bucket.filled;
        assert_eq!((bucket.take(600), bucket.take(600)), (600, 400));
        bucket.tokens = 0;
        bucket.filled = start;
        bucket.refill(start + Duration::from_millis(2505));
        assert_eq!(bucket.tokens, 250);
        bucket.refill(start + Duration::from_millis(2510));
        assert_eq!(bucket.tokens, 251, "fractions of a token add up");
        assert!(!bucket.half_full());
        bucket.refill(start + Duration::from_secs(1 << 40));
        assert_eq!(bucket.tokens, 1000);
        assert!(bucket.half_full());
    }
}
