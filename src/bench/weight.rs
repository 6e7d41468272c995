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

impl Weight {
    /// Of looks at a run that was over, or no more left alone, at `end`.
    fn of(looks: &[(Instant, u64)], end: Instant) -> Option<Self> {
        let peak = looks.iter().map(|look| look.1).max()?;
        let ago = |at: Instant| end.saturating_duration_since(at);
        let window = looks.iter().filter(|look| ago(look.0) < SETTLED[0] && ago(look.0) > SETTLED[1]);
        let mut settled: Vec<u64> = window.map(|look| look.1).collect();
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
                looks.push((Instant::now(), descendants(std::process::id()).into_iter().map(pss).sum()));
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
        let at = |ms, bytes| (begun + Duration::from_millis(ms), bytes);
        let looks = [at(0, 1), at(100, 90), at(4000, 40), at(4500, 42), at(4900, 41), at(5900, 3)];
        let weight = Weight::of(&looks, begun + Duration::from_secs(6));
        assert_eq!(weight, Some(Weight { settled: 41, peak: 90 }));
        assert_eq!(Weight::of(&looks[..1], begun), None);
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
