// SPDX-License-Identifier: Apache-2.0
//! Memory of all that a launcher starts, looked at again and again while it runs.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::statistics::median;

/// Between two looks.
const BETWEEN: Duration = Duration::from_millis(2);
/// Seconds that a program sleeps, or a server is left alone, while it is looked at.
pub const SECONDS: u64 = 6;
/// What lies so long before the end is how things are once nothing happens any more: starts are over, and no end has begun.
const SETTLED: [Duration; 2] = [Duration::from_millis(2500), Duration::from_millis(1000)];
/// Where no look falls into that, as on an emulated host, where one at a VM takes seconds, it may begin so long before.
const SLOWLY: Duration = Duration::from_millis(4500);

/// Bytes of all processes of a sandbox, with what they share with each other and with others divided among all who have it
/// (PSS, proc(5)). The kernel's own memory for them, such as page tables and files in memory, is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Weight {
    /// While the program sleeps: the middle one of many looks.
    pub settled: u64,
    /// The most that any look has seen.
    pub peak: u64,
}

/// One look at all processes.
#[derive(Clone, Copy, Debug)]
struct Look {
    begun: Instant,
    ended: Instant,
    bytes: u64,
}

impl Weight {
    /// Of looks at a run that was over, or no more left alone, at `end`.
    fn of(looks: &[Look], end: Instant) -> Option<Self> {
        let peak = looks.iter().map(|look| look.bytes).max()?;
        let ago = |look: &Look| end.saturating_duration_since(look.begun);
        // One that is not over by then may have seen half of it.
        let whole = || looks.iter().filter(|look| look.ended <= end && ago(look) > SETTLED[1]);
        let within = |time| -> Vec<u64> { whole().filter(|look| ago(look) < time).map(|look| look.bytes).collect() };
        let mut settled = within(SETTLED[0]);
        if settled.is_empty() {
            settled = within(SLOWLY);
        }
        let settled = if settled.is_empty() { 0 } else { median(&mut settled) };
        // What has gone by itself in the meantime is not known to weigh nothing.
        (settled > 0).then_some(Self { settled, peak })
    }
}

/// Does `work`, and weighs all that this process starts meanwhile, until the moment that the work names as the end.
///
/// # Errors
/// The work's.
pub fn weighed<E>(work: impl FnOnce() -> Result<Instant, E>) -> Result<Option<Weight>, E> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let bytes = descendants(std::process::id()).into_iter().map(pss).sum();
                looks.push(Look { begun, ended: Instant::now(), bytes });
                thread::sleep(BETWEEN);
            }
            looks
        });
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let looks = looking.join().unwrap_or_default();
        outcome.map(|end| Weight::of(&looks, end))
    })
}

/// All that a process has started, and those have, and so on.
fn descendants(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut waiting = vec![pid];
    while let Some(pid) = waiting.pop() {
        // One that has gone has no children.
        let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for list in threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok()) {
            let children = list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
            let from = found.len();
            found.extend(children);
            waiting.extend_from_slice(&found[from..]);
        }
    }
    found
}

/// Bytes of a process; none of one that has gone.
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_is_what_was_long_before_the_end() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let at = |ms, bytes| Look { begun: after(ms), ended: after(ms + 1), bytes };
        let looks = [at(0, 1), at(100, 90), at(4000, 40), at(4500, 42), at(4900, 41), at(5900, 3)];
        let weight = Weight::of(&looks, begun + Duration::from_secs(6));
        assert_eq!(weight, Some(Weight { settled: 41, peak: 90 }));
        assert_eq!(Weight::of(&looks[..1], begun), None);
        // Where one takes seconds, the last whole one is taken.
        let slow = |ms, bytes| Look { ended: after(ms + 2200), ..at(ms, bytes) };
        let looks = [slow(0, 9), slow(2200, 40), slow(4400, 7)];
        let weight = Weight::of(&looks, begun + Duration::from_secs(6));
        assert_eq!(weight, Some(Weight { settled: 40, peak: 40 }));
        assert_eq!(Weight::of(&[at(0, 9), at(4000, 0)], begun + Duration::from_secs(6)), None);
    }

    #[test]
    fn a_child_is_found_and_weighs_something() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        while pss(child.id()) == 0 {
            thread::sleep(BETWEEN);
        }
        assert!(descendants(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(pss(child.id()), 0);
    }
}
