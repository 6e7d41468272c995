// SPDX-License-Identifier: Apache-2.0
//! How far a start has come, for `coracle bench`: where the environment names a file, each process that takes part in the
//! start appends a line for each milestone. Else nothing is done.

use std::env;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::vmm::clock::monotonic_ns;

/// The environment's name of the file, which has to be there.
pub const VARIABLE: &str = "CORACLE_MILESTONES";

/// `None` until it is known whether there is a file.
static MILESTONES: Mutex<Option<Option<File>>> = Mutex::new(None);

/// From here on this file counts, and not what the environment names.
pub fn follow(path: Option<&Path>) {
    let file = path.and_then(|path| open(path).ok());
    *MILESTONES.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
}

fn open(path: &Path) -> std::io::Result<File> {
    File::options().append(true).open(path)
}

/// Here, now.
pub fn reach(milestone: impl std::fmt::Display) {
    reach_at(milestone, monotonic_ns());
}

/// There, at this time of [`monotonic_ns`].
pub fn reach_at(milestone: impl std::fmt::Display, ns: u64) {
    let mut milestones = MILESTONES.lock().unwrap_or_else(PoisonError::into_inner);
    let named = || env::var_os(VARIABLE).and_then(|path| open(Path::new(&path)).ok());
    if let Some(file) = milestones.get_or_insert_with(named) {
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
