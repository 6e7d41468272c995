// SPDX-License-Identifier: Apache-2.0
//! What stands between a tenant and the host: the process in which an escape would find itself, seen from the host. That
//! is the VMM for a microVM, whose guest has to break that first, and the tenant's own process for a container, which has
//! to break the kernel behind it.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::catalogue::{Group, Method, Probe, Seen};

const fn outside(name: &'static str, method: Method, tries: &'static str, means: &'static str) -> Probe {
    Probe { name, group: Group::Escape, method, tries, means, look: None }
}

/// All of them, in the order of [`look`].
pub static PROBES: &[Probe] = &[
    outside(
        "visible-process",
        Method::Find,
        "the host looks for the tenant's process in its own /proc",
        "the tenant's processes are the host's: its scheduler, its limits and its errors count for them",
    ),
    outside(
        "boundary-user",
        Method::Level,
        "the host looks whose user the process at the boundary is",
        "an escape has root's rights on the host",
    ),
    outside(
        "boundary-capabilities",
        Method::Level,
        "the host counts capabilities of the process at the boundary that count on the host",
        "an escape has them",
    ),
    outside(
        "boundary-seccomp",
        Method::Level,
        "the host looks whether the process at the boundary has a seccomp filter",
        "an escape may make any system call of the host's",
    ),
    outside(
        "boundary-namespaces",
        Method::Level,
        "the host counts namespaces in which the process at the boundary is with the host",
        "an escape sees files, processes and networks of the host",
    ),
    outside(
        "boundary-privileges",
        Method::Level,
        "the host looks whether the process at the boundary may gain privileges by exec",
        "an escape can use the host's programs with set-user-ID bits",
    ),
];

/// Namespaces that count.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// The host's namespaces, where this process still is in them.
pub fn of_host() -> Vec<(&'static str, PathBuf)> {
    let link = |name: &&'static str| Some((*name, fs::read_link(format!("/proc/self/ns/{name}")).ok()?));
    NAMESPACES.iter().filter_map(link).collect()
}

/// What the host sees of a process. Counts are of what is left open: 0 is none.
///
/// # Errors
/// It has gone, or may not be looked at.
pub fn look(pid: u32, host: &[(&'static str, PathBuf)]) -> io::Result<Vec<(&'static str, Seen)>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("", str::trim).to_owned()
    };
    let mut shared: Vec<&str> = Vec::new();
    for (name, link) in host {
        if fs::read_link(format!("/proc/{pid}/ns/{name}"))? == *link {
            shared.push(name);
        }
    }
    let root = u64::from(field("Uid").split_whitespace().nth(1) == Some("0"));
    let capabilities = u64::from_str_radix(&field("CapEff"), 16).unwrap_or(u64::MAX).count_ones();
    // Those within a user namespace count there alone.
    let capabilities = if shared.contains(&"user") { capabilities } else { 0 };
    let flag = |name: &str| u64::from(matches!(field(name).as_str(), "" | "0"));
    Ok(vec![
        ("boundary-user", Seen::Count(root)),
        ("boundary-capabilities", Seen::Count(capabilities.into())),
        ("boundary-seccomp", Seen::Count(flag("Seccomp"))),
        ("boundary-namespaces", Seen::Count(u64::try_from(shared.len()).unwrap_or(0))),
        ("boundary-privileges", Seen::Count(flag("NoNewPrivs"))),
    ])
}

/// Processes with this name that `is_it` knows for the one.
pub fn find(name: &str, is_it: impl Fn(u32) -> bool) -> Option<u32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let named = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    pids.filter(named).find(|pid| is_it(*pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen() {
        let seen = look(std::process::id(), &of_host()).unwrap();
        let names: Vec<&str> = PROBES.iter().skip(1).map(|probe| probe.name).collect();
        assert_eq!(seen.iter().map(|(name, _)| *name).collect::<Vec<_>>(), names);
        assert!(look(u32::MAX, &of_host()).is_err());
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(find(comm.trim(), |pid| pid == std::process::id()).is_some());
    }
}
