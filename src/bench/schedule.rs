// SPDX-License-Identifier: Apache-2.0
//! In which order backends run: in rounds of one run of each, so that what changes on the host meanwhile meets all of
//! them, and in an order of its own in each round, so that none always follows the same neighbour.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// Pseudo-random numbers (SplitMix64; Steele, Lea, Flood 2014): the same seed gives the same.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Numbers from this seed on.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0. The bias of a remainder is below 2⁻⁵⁰ for all bounds used here.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        usize::try_from(self.number() % bound).unwrap_or(0)
    }
}

/// A seed that nobody has chosen; short enough to be typed again.
///
/// # Errors
/// The kernel has no randomness.
pub fn any_seed() -> io::Result<u64> {
    let mut bytes = [0; 4];
    getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes).into())
}

/// One run to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// From 0; the warm-up comes first.
    pub round: usize,
    /// Its figures are not shown.
    pub warm_up: bool,
    /// It is not timed: what it asks of the kernel is counted instead.
    pub counted: bool,
    /// Which backend, by its place in the list.
    pub backend: usize,
}

/// All turns of so many backends: `warm_up` rounds, then `runs` rounds, each with a second one behind it that is counted
/// where `counted` says so.
pub fn turns(backends: usize, warm_up: usize, runs: usize, counted: bool, seed: u64) -> Vec<Turn> {
    let mut random = Random::new(seed);
    let mut turns = Vec::new();
    let twice = |round| if counted && round >= warm_up { 2 } else { 1 };
    for (round, counted) in (0..warm_up + runs).flat_map(|round| (0..twice(round)).map(move |time| (round, time > 0))) {
        let mut order: Vec<usize> = (0..backends).collect();
        // Fisher and Yates.
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last + 1));
        }
        turns.extend(order.into_iter().map(|backend| Turn { round, warm_up: round < warm_up, counted, backend }));
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_the_published_numbers() {
        // Of the reference implementation for seed 1234567.
        let mut random = Random::new(1_234_567);
        let numbers = [random.number(), random.number(), random.number()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn each_round_has_each_backend_once_and_warm_up_is_first() {
        let all = turns(5, 2, 40, false, 7);
        assert_eq!(all.len(), 5 * 42);
        for (round, of_round) in all.chunks(5).enumerate() {
            let mut seen: Vec<usize> = of_round.iter().map(|turn| turn.backend).collect();
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
            assert!(of_round.iter().all(|turn| turn.round == round && turn.warm_up == (round < 2)));
        }
    }

    #[test]
    fn each_round_that_counts_is_followed_by_one_that_is_counted() {
        let rounds: Vec<_> = turns(3, 1, 2, true, 7).chunks(3).map(|all| (all[0].round, all[0].counted)).collect();
        assert_eq!(rounds, [(0, false), (1, false), (1, true), (2, false), (2, true)]);
    }

    #[test]
    fn the_seed_decides_the_order_and_every_place_is_taken() {
        assert_eq!(turns(4, 1, 9, false, 3), turns(4, 1, 9, false, 3));
        assert_ne!(turns(4, 1, 9, false, 3), turns(4, 1, 9, false, 4));
        for backend in 0..4 {
            for place in 0..4 {
                let all = turns(4, 0, 100, false, 1);
                let there = all.chunks(4).filter(|round| round[place].backend == backend).count();
                assert!((10..45).contains(&there), "backend {backend} at {place}: {there} of 100");
            }
        }
    }
}
