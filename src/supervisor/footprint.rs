// SPDX-License-Identifier: Apache-2.0
//! What a running container takes of the host's memory: the guest's own, and all that is around it.

use std::fs;
use std::iter::Sum;
use std::ops::Add;

/// The guest's memory in its VMM: the memory file of the snapshot that it is a clone of, or a memory file of its own.
const GUEST: [&str; 3] = ["/memory", "/memory (deleted)", "/memfd:coracle-ram (deleted)"];

/// Bytes of one or more mappings (proc(5), `smaps`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// In memory, whoever else has them too.
    pub resident: u64,
    /// The same, with what several processes have divided among them.
    pub proportional: u64,
    /// Of those in memory, what others have as well.
    pub shared: u64,
}

/// A container's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// The guest's memory, as far as the host has it.
    pub guest: Bytes,
    /// All else of its processes: the VMM, the monitor, and what serves files and the network.
    pub overhead: Bytes,
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            resident: self.resident + other.resident,
            proportional: self.proportional + other.proportional,
            shared: self.shared + other.shared,
        }
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Self::add)
    }
}

impl Sum for Footprint {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            guest: sum.guest + one.guest,
            overhead: sum.overhead + one.overhead,
        })
    }
}

impl Footprint {
    /// That of the container whose VMM has this process number: with its monitor, which has started all of its processes.
    /// A process that has gone takes nothing.
    pub fn of(vmm: u32) -> Self {
        let own = |pid: u32| {
            fs::read_to_string(format!("/proc/{pid}/smaps")).map_or_else(|_| Self::default(), |text| parse(&text))
        };
        match parent(vmm).filter(|monitor| *monitor > 1) {
            Some(monitor) => std::iter::once(monitor).chain(children(monitor)).map(own).sum(),
            None => own(vmm),
        }
    }

    /// All of it, with what is shared divided.
    pub fn proportional(&self) -> u64 {
        self.guest.proportional + self.overhead.proportional
    }
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The processes that any of its threads has started.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// One mapping.
#[derive(Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    /// It is of a file that guests have as their memory.
    is_memory_file: bool,
    /// This process may write to it.
    is_writable: bool,
    /// Nothing was set aside for it (`MAP_NORESERVE`), as for no guest memory.
    unreserved: bool,
    bytes: Bytes,
}

/// Of the mappings in a text of `/proc/PID/smaps`, which has them in the order of their addresses.
fn parse(text: &str) -> Footprint {
    let mappings = mappings(text);
    // In the middle of what is of the file there is what takes its place: memory without a file, where a clone has given
    // some back, and the kernel's own file.
    let together = |one: &Mapping, next: &Mapping| {
        let may_be = |mapping: &Mapping| mapping.is_memory_file || mapping.is_writable && mapping.unreserved;
        one.end == next.start && may_be(one) && may_be(next)
    };
    let part = |run: &[Mapping]| {
        let bytes = run.iter().map(|mapping| mapping.bytes).sum();
        match run.iter().any(|mapping| mapping.is_memory_file) {
            true => Footprint { guest: bytes, overhead: Bytes::default() },
            false => Footprint { guest: Bytes::default(), overhead: bytes },
        }
    };
    mappings.chunk_by(together).map(part).sum()
}

fn mappings(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        match line.split_once(':').filter(|(name, _)| !name.contains(' ')) {
            None => mappings.push(head(line)),
            Some((name, value)) => {
                let Some(mapping) = mappings.last_mut() else { continue };
                let number = value.trim().strip_suffix(" kB").and_then(|text| text.trim().parse::<u64>().ok());
                let bytes = number.unwrap_or(0).saturating_mul(1024);
                match name {
                    "Rss" => mapping.bytes.resident = bytes,
                    "Pss" => mapping.bytes.proportional = bytes,
                    "Shared_Clean" | "Shared_Dirty" => mapping.bytes.shared += bytes,
                    "VmFlags" => mapping.unreserved = value.split_whitespace().any(|flag| flag == "nr"),
                    _ => {}
                }
            }
        }
    }
    mappings
}

/// Of a line with addresses, rights, offset, device, inode, and the path of a file.
fn head(line: &str) -> Mapping {
    let mut words = line.split_ascii_whitespace();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    let (start, end) = words.next().and_then(|range| range.split_once('-')).unwrap_or_default();
    let writable = words.next().is_some_and(|rights| rights.starts_with("rw"));
    Mapping {
        start: number(start),
        end: number(end),
        is_memory_file: writable && GUEST.iter().any(|name| line.ends_with(name)),
        is_writable: writable,
        ..Mapping::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_memory_is_told_from_the_rest() {
        let text = "\
7f00-7f01 rw-p 00000000 00:2e 77   /cache/templates/00ff/memory
Size:             131072 kB
Rss:                4000 kB
Pss:                1000 kB
Shared_Clean:       3000 kB
Shared_Dirty:        100 kB
VmFlags: rd wr mr mw me nr sd
7f01-7f02 rw-p 00000000 00:00 0
Rss:                  10 kB
Pss:                  10 kB
VmFlags: rd wr mr mw me nr sd
7f02-7f03 rw-p 00001000 00:2e 77   /cache/templates/00ff/memory
Rss:                   1 kB
Pss:                   1 kB
VmFlags: rd wr mr mw me nr sd
7f03-7f04 r-xp 00000000 00:2e 78   /usr/bin/coracle-vmm
Rss:                 500 kB
Pss:                  50 kB
Shared_Clean:        490 kB
Shared_Dirty:          0 kB
7f04-7f05 rw-p 00000000 00:00 0
Rss:                  20 kB
Pss:                  20 kB
VmFlags: rd wr mr mw me nr sd
7f06-7f07 r--p 00000000 00:2e 79   /somebody/else/s/memory
Rss:                   1 kB
";
        let kib = |[resident, proportional, shared]: [u64; 3]| Bytes {
            resident: resident << 10,
            proportional: proportional << 10,
            shared: shared << 10,
        };
        let found = parse(text);
        assert_eq!(found, Footprint { guest: kib([4011, 1011, 3100]), overhead: kib([521, 70, 490]) });
        assert_eq!(found.proportional(), 1081 << 10);
        assert_eq!(parse("no such thing\n:\n"), Footprint::default());
    }

    #[test]
    fn a_process_has_its_children_counted_and_none_that_has_gone() {
        assert!(children(std::process::id()).iter().all(|pid| *pid > 1));
        assert_eq!(Footprint::of(0), Footprint::default());
        let own = parse(&fs::read_to_string("/proc/self/smaps").unwrap());
        assert!(own.overhead.resident > 1 << 20 && own.guest.resident == 0, "{own:?}");
    }
}
