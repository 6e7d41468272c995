// SPDX-License-Identifier: Apache-2.0
//! What the container uses, and who runs in it, from `/proc` and `/sys`.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use coracle_protocol::{ProcessFacts, Processes, Text, Usage};
use rustix::process::Pid;

use crate::cgroup::{Cgroup, value};
use crate::mounts::read_file;
use crate::{sys, users};

/// Processes that are told of: an answer must fit into a frame.
const MAX_PROCESSES: usize = 1024;
/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own are.
const SECTOR: u64 = 512;
/// Ticks of a second as user space sees them (`USER_HZ`).
const MS_PER_TICK: u64 = 10;

/// The users of the container whose PID 1 this is, `passwd(5)`.
pub(crate) fn users_of(first: Pid) -> Vec<u8> {
    let path = CString::new(format!("/proc/{}/root/etc/passwd", first.as_raw_nonzero()));
    path.ok().and_then(|path| read_file(&path)).unwrap_or_default()
}

/// What the container of this group uses.
pub(crate) fn usage(cgroup: Option<&Cgroup>) -> Usage {
    let memory = read_file(c"/proc/meminfo").unwrap_or_default();
    let bytes = |name| value(&memory, name).unwrap_or(0).saturating_mul(1024);
    let (received, sent) = network(&text(c"/proc/net/dev"));
    let (read, written) = disks(&text(c"/proc/diskstats"));
    Usage {
        cpu_ns: cgroup.map_or(0, Cgroup::cpu_ns),
        memory: bytes("MemTotal:").saturating_sub(bytes("MemAvailable:")),
        memory_limit: bytes("MemTotal:"),
        pids: cgroup.map_or(0, Cgroup::threads),
        received,
        sent,
        read,
        written,
    }
}

/// These processes of a container, whose users are in this `passwd(5)`.
pub fn processes(ids: &[Pid], passwd: &[u8]) -> Processes {
    let facts = |pid: &Pid| {
        let directory = format!("/proc/{}", pid.as_raw_nonzero());
        let file = |name: &str| read_file(&CString::new(format!("{directory}/{name}")).ok()?);
        describe(&file("stat")?, &file("status")?, &file("cmdline")?, passwd, sys::uptime_ms())
    };
    let mut list: Vec<(u32, ProcessFacts)> = ids.iter().take(MAX_PROCESSES).filter_map(facts).collect();
    // Parents are named as the agent sees them, until all are known.
    let seen: Vec<(u32, u32)> = list.iter().map(|(outer, facts)| (*outer, facts.pid)).collect();
    for (_, facts) in &mut list {
        facts.parent = seen.iter().find(|(outer, _)| *outer == facts.parent).map_or(0, |(_, inner)| *inner);
    }
    Processes { list: list.into_iter().map(|(_, facts)| facts).collect() }
}

/// From a process's files in `/proc` (`proc(5)`); its id as the agent sees it comes first.
fn describe(stat: &[u8], status: &[u8], arguments: &[u8], passwd: &[u8], now_ms: u64) -> Option<(u32, ProcessFacts)> {
    let (stat, status) = (String::from_utf8_lossy(stat), String::from_utf8_lossy(status));
    // The name is in parentheses, and may contain some.
    let (start, rest) = stat.rsplit_once(") ")?;
    let (outer, name) = start.split_once(" (")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // Numbered from the state, which is the third of all.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::split_ascii_whitespace);
    let pid = line("NSpid:")?.next_back()?.parse().ok()?;
    let user = line("Uid:")?.nth(1)?.parse().ok()?;
    let user = users::name(user, passwd).unwrap_or_else(|| format!("{user}"));
    let command = match arguments {
        [] => format!("[{name}]"),
        words => String::from_utf8_lossy(words.strip_suffix(&[0]).unwrap_or(words)).replace('\0', " "),
    };
    let facts = ProcessFacts {
        pid,
        parent: u32::try_from(field(4)?).ok()?,
        user: Text::new(&user),
        terminal: terminal(field(7)?),
        cpu_ms: field(14)?.saturating_add(field(15)?).saturating_mul(MS_PER_TICK),
        age_ms: now_ms.saturating_sub(field(22)?.saturating_mul(MS_PER_TICK)),
        command: Text::new(&command),
    };
    Some((outer.parse().ok()?, facts))
}

/// The number of a pseudoterminal, from the kernel's number of its device: majors 136 to 143 are theirs.
fn terminal(device: u64) -> Option<u32> {
    let device = u32::try_from(device).ok()?;
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    (136..144).contains(&major).then(|| (major - 136) << 20 | minor)
}

/// Bytes received and sent, of all lines of `/proc/net/dev` but the loopback's.
pub fn network(devices: &str) -> (u64, u64) {
    let counted = devices.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let mut counters = counters.split_ascii_whitespace();
        (name.trim() != "lo").then_some(())?;
        Some((counters.next()?.parse::<u64>().ok()?, counters.nth(7)?.parse::<u64>().ok()?))
    });
    counted.fold((0, 0), |(received, sent), (more, out)| (received.saturating_add(more), sent.saturating_add(out)))
}

/// Bytes read and written, of all lines of `/proc/diskstats`.
fn disks(devices: &str) -> (u64, u64) {
    let counted = devices.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        // A device's own counters, not those of something upon it.
        fields.next()?.starts_with("vd").then_some(())?;
        Some((fields.nth(2)?.parse::<u64>().ok()?, fields.nth(3)?.parse::<u64>().ok()?))
    });
    let (read, written) = counted
        .fold((0u64, 0u64), |(read, written), (more, out)| (read.saturating_add(more), written.saturating_add(out)));
    (read.saturating_mul(SECTOR), written.saturating_mul(SECTOR))
}

fn text(path: &CStr) -> String {
    String::from_utf8_lossy(&read_file(path).unwrap_or_default()).into_owned()
}

/// How many processes the kernel has killed for want of memory.
pub fn out_of_memory_kills() -> u64 {
    read_file(c"/proc/vmstat").and_then(|counters| value(&counters, "oom_kill")).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described_as_its_container_sees_it() {
        let stat = b"47 (a) b) S 40 47 47 34817 47 4194304 1 0 0 0 12 3 0 0 20 0 1 0 500 1 2";
        let status = b"Name:\ta) b\nPid:\t47\nNSpid:\t47\t9\nUid:\t33\t34\t34\t34\n";
        let (outer, facts) = describe(stat, status, b"sleep\x001000\0", b"web:x:34:34::/:\n", 6000).unwrap();
        let expected = ProcessFacts {
            pid: 9,
            parent: 40,
            user: Text::new("web"),
            terminal: Some(1),
            cpu_ms: 150,
            age_ms: 1000,
            command: Text::new("sleep 1000"),
        };
        assert_eq!((outer, facts), (47, expected));
        let (_, kernel) = describe(stat, status, b"", b"", 0).unwrap();
        assert_eq!((kernel.user.as_str(), kernel.command.as_str(), kernel.age_ms), ("34", "[a) b]", 0));
        assert_eq!(describe(b"", status, b"", b"", 0), None);
    }

    #[test]
    fn counters_are_summed_over_devices() {
        let devices = "Inter-|   Receive  | Transmit\n face |bytes |bytes\n    lo: 5 0 0 0 0 0 0 0 5 0 0 0 0 0 0 0\n  \
                       eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  eth1:7 1 0 0 0 0 0 0 3 1 0 0 0 0 0 0\n";
        assert_eq!(network(devices), (107, 23));
        let devices =
            " 254 0 vda 10 0 4 0 20 0 6 0 0 0 0\n 7 0 loop0 1 0 100 0 1 0 100 0 0 0 0\n 254 16 vdb 1 0 1 0 1 0 1 0\n";
        assert_eq!(disks(devices), (5 * 512, 7 * 512));
    }
}
