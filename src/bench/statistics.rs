// SPDX-License-Identifier: Apache-2.0
//! Figures of samples: robust against the few slow runs that every machine has, and with their uncertainty.

use std::fmt;

use serde::Serialize;

use super::schedule::Random;

/// How many times the bootstrap draws; beyond, limits of an interval move by less than the last digit shown.
const RESAMPLES: usize = 2000;

/// With fewer runs of each of two, even the largest difference comes about by chance more than once in twenty times.
const ENOUGH: usize = 4;

/// Beyond this part of the median, in percent, an interval says more of the machine than of what runs on it.
pub const NOISY: u64 = 25;

/// What is said of one figure of one backend. Times are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Number of samples.
    pub n: usize,
    /// The middle one, or between the two in the middle.
    pub median_ns: u64,
    /// In here lies the median with 95 % confidence (bootstrap, percentiles).
    pub ci95_ns: [u64; 2],
    /// So much or less took 95 % of the runs (nearest rank).
    pub p95_ns: u64,
    /// The quickest.
    pub min_ns: u64,
    /// The slowest; none is thrown away.
    pub max_ns: u64,
}

/// How many times one median is another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ratio {
    /// Of the medians.
    pub ratio: f64,
    /// Its 95 % confidence interval (bootstrap of both).
    pub ci95: [f64; 2],
    /// The two medians' intervals do not overlap, and both have four runs or more. Else the two cannot be told apart.
    pub told_apart: bool,
}

/// What is said of an exact number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Number of samples.
    pub n: usize,
    /// The middle one, or between the two in the middle.
    pub median: u64,
    /// The least.
    pub min: u64,
    /// The most.
    pub max: u64,
}

impl Count {
    /// Of these samples; `None` where there are none.
    pub fn of(samples: &[u64]) -> Option<Self> {
        let (min, max) = (*samples.iter().min()?, *samples.iter().max()?);
        Some(Self { n: samples.len(), median: median(&mut samples.to_vec()), min, max })
    }

    /// From the least to the most, in percent of the median.
    #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
    pub fn spread_percent(&self) -> f64 {
        100.0 * (self.max - self.min) as f64 / self.median.max(1) as f64
    }
}

/// The number and its spread: `952 ± 0.4 %`, where that is half of the way from the least to the most.
impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ± {:.2} %", self.median, self.spread_percent() / 2.0)
    }
}

impl Summary {
    /// Of these samples; `None` where there are none.
    pub fn of(samples: &[u64], seed: u64) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let (min_ns, max_ns) = (*sorted.first()?, *sorted.last()?);
        let mut random = Random::new(seed);
        let mut medians: Vec<u64> = (0..RESAMPLES).map(|_| median(&mut resample(samples, &mut random))).collect();
        medians.sort_unstable();
        Some(Self {
            n: sorted.len(),
            ci95_ns: [rank(&medians, 25), rank(&medians, 975)],
            p95_ns: rank(&sorted, 950),
            median_ns: median(&mut sorted),
            min_ns,
            max_ns,
        })
    }

    /// How wide the interval is, in percent of the median.
    pub fn width_percent(&self) -> u64 {
        let [low, high] = self.ci95_ns;
        high.saturating_sub(low).saturating_mul(100) / self.median_ns.max(1)
    }

    /// That width, where it is beyond [`NOISY`].
    pub fn noise_percent(&self) -> Option<u64> {
        Some(self.width_percent()).filter(|percent| *percent > NOISY)
    }
}

impl Ratio {
    /// `samples` against `base`; `None` where there are none, or a base of 0.
    #[allow(clippy::cast_precision_loss, reason = "2^53 ns are a hundred days")]
    pub fn of(samples: &[u64], base: &[u64], seed: u64) -> Option<Self> {
        let (a, b) = (Summary::of(samples, seed)?, Summary::of(base, seed)?);
        let mut random = Random::new(seed);
        let mut ratios = Vec::with_capacity(RESAMPLES);
        for _ in 0..RESAMPLES {
            let (over, under) = (median(&mut resample(samples, &mut random)), median(&mut resample(base, &mut random)));
            ratios.push(over as f64 / under.max(1) as f64);
        }
        ratios.sort_unstable_by(f64::total_cmp);
        let apart = a.ci95_ns[1] < b.ci95_ns[0] || b.ci95_ns[1] < a.ci95_ns[0];
        let told_apart = apart && a.n.min(b.n) >= ENOUGH;
        let ratio = (b.median_ns > 0).then_some(a.median_ns as f64 / b.median_ns as f64)?;
        Some(Self { ratio, ci95: [rank(&ratios, 25), rank(&ratios, 975)], told_apart })
    }

    /// As it is displayed, and whether it says anything.
    pub fn judged(&self) -> String {
        format!("{self}{}", if self.told_apart { "" } else { ", not told apart" })
    }
}

/// A number with three digits or more.
pub fn number(value: f64) -> String {
    match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A ratio with three digits or more.
pub fn times(ratio: f64) -> String {
    match ratio {
        ..0.000_1 => format!("{ratio:.1e}"),
        ..0.009_95 => format!("{ratio:.5}"),
        ..0.099_5 => format!("{ratio:.3}"),
        _ => number(ratio),
    }
}

/// A ratio, and its interval: `8.12 (7.90 to 8.40)`.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", times(self.ratio), times(self.ci95[0]), times(self.ci95[1]))
    }
}

fn resample(samples: &[u64], random: &mut Random) -> Vec<u64> {
    (0..samples.len()).map(|_| samples[random.below(samples.len())]).collect()
}

/// Of at least one sample, which it sorts.
pub fn median(samples: &mut [u64]) -> u64 {
    samples.sort_unstable();
    let middle = samples.len() / 2;
    match samples.len() % 2 {
        1 => samples[middle],
        _ => samples[middle - 1].midpoint(samples[middle]),
    }
}

/// The sample of this rank, in thousandths, by the nearest-rank method.
pub fn rank<T: Copy>(sorted: &[T], thousandths: usize) -> T {
    let rank = (sorted.len() * thousandths).div_ceil(1000);
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_spread() {
        let count = Count::of(&[1000, 990, 1010]).unwrap();
        assert_eq!(
            (count.median, count.min, count.max, count.to_string().as_str()),
            (1000, 990, 1010, "1000 ± 1.00 %")
        );
        assert_eq!((Count::of(&[]), Count::of(&[0]).map(|count| count.spread_percent())), (None, Some(0.0)));
    }

    #[test]
    fn figures_of_known_samples() {
        let samples: Vec<u64> = (1..=100).rev().collect();
        let summary = Summary::of(&samples, 1).unwrap();
        assert_eq!((summary.n, summary.median_ns, summary.p95_ns), (100, 50, 95));
        assert_eq!((summary.min_ns, summary.max_ns), (1, 100));
        // By order statistics (binomial, n = 100) the interval is from the 40th to the 61st.
        let [low, high] = summary.ci95_ns;
        assert!((38..=43).contains(&low) && (58..=63).contains(&high), "{low} to {high}");
        assert_eq!(summary.width_percent(), (high - low) * 2);
        assert_eq!(Summary::of(&[], 1), None);
        let one = Summary::of(&[7], 1).unwrap();
        assert_eq!((one.median_ns, one.ci95_ns, one.p95_ns), (7, [7, 7], 7));
    }

    #[test]
    fn a_median_does_not_follow_an_outlier() {
        let summary = Summary::of(&[10, 11, 12, 13, 1_000_000], 1).unwrap();
        assert_eq!((summary.median_ns, summary.max_ns), (12, 1_000_000));
        assert_eq!(median(&mut [4, 1, 3, 2]), 2);
    }

    #[test]
    fn intervals_hold_the_true_median_about_as_often_as_they_say() {
        let mut random = Random::new(5);
        let covered = (0..200).filter(|&seed| {
            // Uniform below a million: the true median is half of it.
            let samples: Vec<u64> = (0..25).map(|_| u64::try_from(random.below(1_000_000)).unwrap()).collect();
            let [low, high] = Summary::of(&samples, seed).unwrap().ci95_ns;
            (low..=high).contains(&500_000)
        });
        let covered = covered.count();
        assert!((180..=198).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn ratios_of_what_differs_and_of_what_does_not() {
        let fast: Vec<u64> = (0..30).map(|n| 1000 + n % 7).collect();
        let slow: Vec<u64> = fast.iter().map(|ns| ns * 3).collect();
        let ratio = Ratio::of(&slow, &fast, 1).unwrap();
        assert!((ratio.ratio - 3.0).abs() < 1e-9 && ratio.told_apart, "{ratio:?}");
        assert!(ratio.ci95[0] > 2.98 && ratio.ci95[1] < 3.02, "{ratio:?}");
        assert!(!Ratio::of(&slow[..3], &fast, 1).unwrap().told_apart, "three runs are too few");
        assert_eq!(Ratio { ratio: 454.88, ci95: [9.876, 67.89], told_apart: true }.to_string(), "455 (9.88 to 67.9)");
        let small = Ratio { ratio: 0.012_345, ci95: [0.001_234_5, 0.000_012], told_apart: true };
        assert_eq!(small.to_string(), "0.012 (0.00123 to 1.2e-5)");
        let same = Ratio::of(&fast, &fast, 1).unwrap();
        assert!(!same.told_apart && same.ci95[0] <= 1.0 && same.ci95[1] >= 1.0, "{same:?}");
        assert_eq!(Ratio::of(&[], &fast, 1), None);
        assert_eq!(Ratio::of(&fast, &[0, 0], 1), None);
    }
}
