// SPDX-License-Identifier: Apache-2.0
//! What OCI runtimes leave behind. Some have ended before a process of theirs has, whose child the container's first is. A
//! process that was to enter a container, and did not come to its program, ends up as our
//! child; until it is waited for, the container's own PID 1 cannot end (`pid_namespaces(7)`).

use std::collections::HashSet;
use std::fs;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Waits for processes called `runtime`, which are about to end, and then ends and buries the children of this process that
/// are in another PID namespace, but for those that somebody else waits for. To be called while nobody starts any. What has
/// been started is a child of ours afterwards.
pub fn reap(followed: &HashSet<Pid>, runtime: &str) {
    for (pid, status) in strangers(followed) {
        if !is_elsewhere(&status) && is_called(&status, runtime) {
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
    for (pid, status) in strangers(followed) {
        if is_elsewhere(&status) {
            // One that has ended already only has to be waited for.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}

/// Children of this process that nobody waits for, with their `/proc/PID/status`.
fn strangers(followed: &HashSet<Pid>) -> Vec<(Pid, String)> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let unknown = lists.flat_map(|list| children(&list)).filter(|pid| !followed.contains(pid));
    let status = |pid: Pid| Some((pid, fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?));
    unknown.filter_map(status).collect()
}

/// Whether a process has this name, of which the kernel keeps 15 bytes.
fn is_called(status: &str, name: &str) -> bool {
    let found = status.lines().find_map(|line| line.strip_prefix("Name:")).map(str::trim);
    found == Some(name.get(..15).unwrap_or(name))
}

fn children(list: &str) -> Vec<Pid> {
    list.split_ascii_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Whether a process has a number in a PID namespace below ours (`/proc/PID/status`, proc(5)).
fn is_elsewhere(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_ascii_whitespace().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_another_namespace_has_two_numbers() {
        assert!(is_elsewhere("Name:\tsh\nNSpid:\t812\t1\n"));
        assert!(!is_elsewhere("Name:\tsh\nNSpid:\t812\n") && !is_elsewhere(""));
        assert!(is_called("Name:\tcrun\nState:\tZ (zombie)\n", "crun") && !is_called("Name:\tcrunch\n", "crun"));
        assert_eq!(children("12 34 \n").len(), 2);
    }

    #[test]
    fn children_of_our_own_namespace_are_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        reap(&HashSet::new(), "crun");
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
