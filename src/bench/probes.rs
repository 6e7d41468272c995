// SPDX-License-Identifier: Apache-2.0
//! What the benchmark's own probes add to what they measure: the same start with each of them and without, in turns, in
//! time and in exact counts.

use serde::Serialize;

use super::backend::{Backend, Failed, Watch};
use super::counters::{Event, Tracepoints};
use super::measure::Stopwatch;
use super::statistics::Ratio;

/// One way to look at a run, and whether it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    watch: Watch,
    counted: bool,
}

/// All of them: each once in a round.
pub const WAYS: [Way; 6] = [
    Way { watch: Watch::End, counted: false },
    Way { watch: Watch::End, counted: true },
    Way { watch: Watch::Output, counted: false },
    Way { watch: Watch::Output, counted: true },
    Way { watch: Watch::Milestones, counted: false },
    Way { watch: Watch::Milestones, counted: true },
];

/// What was seen of one run.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    way: Way,
    exit_ns: Option<u64>,
    cpu_ns: Option<u64>,
    system_calls: Option<u64>,
    instructions: Option<u64>,
}

/// What one probe adds: ratios of runs with it to runs without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Added {
    /// Time to the end.
    pub time: Option<Ratio>,
    /// Processor time of all of it, which says more than time where the machine is busy.
    pub cpu: Option<Ratio>,
    /// System calls on the host.
    pub system_calls: Option<Ratio>,
    /// Instructions of the guest's kernel, where the host counts them.
    pub instructions: Option<Ratio>,
}

/// What all of them add to one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probes {
    /// Reading the output and noting when it came, against waiting for the end and nothing else. It is in all times.
    pub stopwatch: Added,
    /// Milestones, against the stopwatch alone. They are in no run that is timed.
    pub milestones: Added,
    /// Counters, against the stopwatch alone. They are in no run that is timed either.
    pub counters: Added,
}

/// Runs it once in one of the ways.
///
/// # Errors
/// It failed, or the user wants no more.
pub fn look(
    backend: &Backend,
    way: Way,
    tracepoints: Option<&Tracepoints>,
    stopwatch: &mut Stopwatch,
) -> Result<Option<Seen>, Failed> {
    let counting = match (way.counted, tracepoints) {
        (true, None) => return Ok(None),
        (true, Some(tracepoints)) => Some(tracepoints.begin()),
        (false, _) => None,
    };
    let sample = backend.watched(stopwatch, way.watch)?;
    let counts = counting.map(|counting| counting.end()).unwrap_or_default();
    let of = |event| Event::ALL.into_iter().zip(counts).find(|one| one.0 == event).and_then(|one| one.1);
    Ok(Some(Seen {
        way,
        exit_ns: sample.exit_ns,
        cpu_ns: sample.cpu_ns,
        system_calls: of(Event::SystemCalls),
        instructions: of(Event::EmulatedInstructions),
    }))
}

impl Probes {
    /// Of all runs.
    pub fn of(seen: &[Seen], seed: u64) -> Self {
        let column = |watch, counted, figure: fn(&Seen) -> Option<u64>| -> Vec<u64> {
            seen.iter().filter(|one| one.way == Way { watch, counted }).filter_map(figure).collect()
        };
        let ratio = |with: (Watch, bool), without: (Watch, bool), figure| {
            Ratio::of(&column(with.0, with.1, figure), &column(without.0, without.1, figure), seed)
        };
        let taken = |with, without| Added {
            time: ratio(with, without, |one| one.exit_ns),
            cpu: ratio(with, without, |one| one.cpu_ns),
            ..Added::default()
        };
        let against = |with, without| {
            let counts = |figure| ratio((with, true), (without, true), figure);
            Added {
                system_calls: counts(|one| one.system_calls),
                instructions: counts(|one| one.instructions),
                ..taken((with, false), (without, false))
            }
        };
        Self {
            stopwatch: against(Watch::Output, Watch::End),
            milestones: against(Watch::Milestones, Watch::Output),
            counters: taken((Watch::Output, true), (Watch::Output, false)),
        }
    }

    /// Rows of a table, for people; the columns of [`HEAD`].
    pub fn rows(&self, backend: &str) -> [[String; HEAD.len()]; 3] {
        [("stopwatch", self.stopwatch), ("milestones", self.milestones), ("counters", self.counters)].map(
            |(probe, added)| {
                let added = [added.time, added.cpu, added.system_calls, added.instructions].map(percent);
                let [time, cpu, calls, instructions] = added;
                [backend.to_owned(), probe.to_owned(), time, cpu, calls, instructions]
            },
        )
    }
}

/// Names of the columns of what probes add.
pub const HEAD: [&str; 6] = ["BACKEND", "PROBE", "TIME", "CPU", "SYSTEM CALLS", "KERNEL INSTRUCTIONS"];

fn percent(ratio: Option<Ratio>) -> String {
    let Some(ratio) = ratio else { return "–".to_owned() };
    let of = |ratio: f64| format!("{:+.2}", 100.0 * (ratio - 1.0));
    format!("{} % ({} to {})", of(ratio.ratio), of(ratio.ci95[0]), of(ratio.ci95[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_adds_is_against_the_run_without_it() {
        let mut seen = Vec::new();
        for (at, way) in WAYS.into_iter().enumerate() {
            let at = u64::try_from(at).unwrap();
            let exit_ns = Some(1000 + 100 * at);
            let counts = way.counted.then_some(50 * (1 + at / 2));
            seen.extend(
                [Seen { way, exit_ns, cpu_ns: exit_ns.map(|ns| ns / 2), system_calls: counts, instructions: None }; 5],
            );
        }
        let probes = Probes::of(&seen, 1);
        let ratio = |ratio: Option<Ratio>| ratio.map(|ratio| (ratio.ratio * 1000.0).round());
        // 1200 to 1000, 1400 to 1200 and 1300 to 1200; 100 calls to 50, and 150 to 100.
        assert_eq!(ratio(probes.stopwatch.time), Some(1200.0));
        assert_eq!(ratio(probes.milestones.time), Some(1167.0));
        assert_eq!(ratio(probes.counters.time), Some(1083.0));
        assert_eq!(
            [probes.stopwatch, probes.milestones].map(|one| ratio(one.system_calls)),
            [2000.0, 1500.0].map(Some)
        );
        assert_eq!((probes.counters.system_calls, probes.stopwatch.instructions), (None, None));
        let [stopwatch, ..] = probes.rows("vm");
        assert_eq!(ratio(probes.milestones.cpu), Some(1167.0));
        let time = "+20.00 % (+20.00 to +20.00)";
        assert_eq!(stopwatch[2..], [time, time, "+100.00 % (+100.00 to +100.00)", "–"]);
        assert_eq!(Probes::of(&[], 1), Probes::default());
    }
}
