// SPDX-License-Identifier: Apache-2.0
//! How far a start has come, for `coracle bench`: where the environment names a file, each process that takes part in the
//! start appends a line for each milestone. Else nothing is done.

use std::env;
use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use crate::vmm::clock::monotonic_ns;

/// The environment's name of the file, which has to be there.
pub const VARIABLE: &str = "CORACLE_MILESTONES";

static MILESTONES: OnceLock<Option<File>> = OnceLock::new();

/// Here, now.
pub fn reach(milestone: impl std::fmt::Display) {
    reach_at(milestone, monotonic_ns());
}

/// There, at this time of [`monotonic_ns`].
pub fn reach_at(milestone: impl std::fmt::Display, ns: u64) {
    let open = || File::options().append(true).open(env::var_os(VARIABLE)?).ok();
    if let Some(mut file) = MILESTONES.get_or_init(open).as_ref() {
        // In one piece, since others append too. A benchmark that is not told shows nothing.
        let _ = file.write_all(format!("{ns} {milestone}\n").as_bytes());
    }
}

/// The lines of such a file: names and times, in the order of times.
pub fn parse(text: &str) -> Vec<(String, u64)> {
    let mut all: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(ns, name)| Some((name.to_owned(), ns.parse().ok()?)))
        .collect();
    all.sort_by_key(|milestone| milestone.1);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milestones_are_in_the_order_of_their_times() {
        let all = parse("20 program runs\nx\n3 command line read\n");
        assert_eq!(all, [("command line read".to_owned(), 3), ("program runs".to_owned(), 20)]);
    }
}
