// SPDX-License-Identifier: Apache-2.0
//! Probes of what tenant and host have in common: names, values, counters, and what the host has laid out to be found.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::catalogue::{Facts, Group, Method, Probe, Seen};
use super::page_cache;
use super::sys::call;

/// Bytes that are read of a file which may be long: some of the kernel's take long to be made.
const ENOUGH: u64 = 64 << 10;

const fn same(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Shared, method: Method::Equal, tries, means, look: Some(look) }
}

const fn alike(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Shared, method: Method::Alike, tries, means, look: Some(look) }
}

const fn counted(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Shared, method: Method::Window, tries, means, look: Some(look) }
}

const fn laid_out(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Shared, method: Method::Find, tries, means, look: Some(look) }
}

const fn marked(
    name: &'static str,
    tries: &'static str,
    means: &'static str,
    look: fn(&Facts) -> io::Result<Seen>,
) -> Probe {
    Probe { name, group: Group::Shared, method: Method::Marker, tries, means, look: Some(look) }
}

/// All of them.
pub static PROBES: &[Probe] = &[
    same(
        "boot-id",
        "reads /proc/sys/kernel/random/boot_id",
        "the host's kernel answers, and every hole in it is the tenant's to use",
        |_| value("/proc/sys/kernel/random/boot_id"),
    ),
    same("kernel-release", "asks uname(2) for release and version", "tells which holes the host has", |_| {
        let name = rustix::system::uname();
        Ok(Seen::Value(format!("{} {}", name.release().to_string_lossy(), name.version().to_string_lossy())))
    }),
    same("kernel-command-line", "reads /proc/cmdline", "tells how the host is set up", |_| value("/proc/cmdline")),
    same(
        "kernel-symbols",
        "compares the names at the beginning of /proc/kallsyms",
        "tells which build the host's kernel is, and so where its code lies",
        |_| {
            let names = beginning("/proc/kallsyms")?;
            Ok(digest(names.lines().filter_map(|line| line.split_whitespace().nth(2))))
        },
    ),
    same(
        "kernel-addresses",
        "reads the first address in /proc/kallsyms that is not hidden",
        "undoes the randomisation of the host's kernel",
        |_| {
            let text = beginning("/proc/kallsyms")?;
            let address = text.lines().filter_map(|line| line.split(' ').next());
            match address.into_iter().find(|address| address.bytes().any(|byte| byte != b'0')) {
                Some(address) => Ok(Seen::Value(address.to_owned())),
                None => Ok(Seen::Refused("all are zero".to_owned())),
            }
        },
    ),
    alike("modules", "lists /sys/module", "tells which drivers the host has", |_| listing(&["/sys/module"])),
    alike("file-systems", "reads /proc/filesystems", "tells what the host can mount", |_| {
        let text = beginning("/proc/filesystems")?;
        Ok(list(text.lines().filter_map(|line| line.split_whitespace().last())))
    }),
    alike("devices", "lists devices of all buses in /sys/bus", "tells what hardware the host has", |_| {
        let buses: Vec<String> = names("/sys/bus")?.iter().map(|bus| format!("/sys/bus/{bus}/devices")).collect();
        listing(&buses.iter().map(String::as_str).collect::<Vec<_>>())
    }),
    same("disks", "reads /proc/partitions", "tells names and sizes of the host's disks", |_| {
        let text = beginning("/proc/partitions")?;
        // Loop devices come and go with what others do.
        let disks = text.lines().skip(2).filter(|line| !line.contains("loop") && !line.contains("ram"));
        let disks: Vec<String> =
            disks.map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect();
        match disks.is_empty() {
            true => Ok(Seen::Missing("no disks".to_owned())),
            false => Ok(Seen::Value(disks.join(", "))),
        }
    }),
    same("memory-size", "reads MemTotal of /proc/meminfo", "tells how large the host is", |_| {
        line_of("/proc/meminfo", "MemTotal:")
    }),
    same("cpu-model", "asks the CPU for maker, family, model and stepping", "tells which holes the CPU has", |_| {
        let (maker, model) = (core::arch::x86_64::__cpuid(0), core::arch::x86_64::__cpuid(1));
        let name: Vec<u8> = [maker.ebx, maker.edx, maker.ecx].into_iter().flat_map(u32::to_le_bytes).collect();
        Ok(Seen::Value(format!("{} {:08x}", String::from_utf8_lossy(&name), model.eax)))
    }),
    same("host-name", "asks uname(2) for the name of the machine", "tells where it runs", |_| {
        Ok(Seen::Value(rustix::system::uname().nodename().to_string_lossy().into_owned()))
    }),
    counted("uptime", "reads the clock since boot", "tells when the host was started, and was last updated", |_| {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let milliseconds = time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000);
        Ok(Seen::Count(u64::try_from(milliseconds).unwrap_or(0)))
    }),
    counted(
        "time-stamp-counter",
        "reads the CPU's time stamp counter",
        "gives two tenants a common clock, which attacks on caches need",
        |_| {
            // SAFETY: every x86-64 CPU has the instruction, and nothing here forbids it to user space.
            Ok(Seen::Count(unsafe { core::arch::x86_64::_rdtsc() }))
        },
    ),
    counted("context-switches", "reads ctxt of /proc/stat", "tells how busy others are", |_| {
        count("/proc/stat", "ctxt")
    }),
    counted("interrupts", "reads intr of /proc/stat", "tells what others' disks and networks do", |_| {
        count("/proc/stat", "intr")
    }),
    counted("forks", "reads processes of /proc/stat", "tells when others start programs", |_| {
        count("/proc/stat", "processes")
    }),
    counted("cpu-time", "reads the CPUs' idle and busy time in /proc/stat", "tells how busy others are", |_| {
        let text = beginning("/proc/stat")?;
        let times = text.lines().next().unwrap_or("").split_whitespace().skip(1).take(8);
        Ok(Seen::Count(times.filter_map(|time| time.parse::<u64>().ok()).sum()))
    }),
    counted("page-faults", "reads pgfault of /proc/vmstat", "tells what others' memory does", |_| {
        count("/proc/vmstat", "pgfault")
    }),
    counted("disk-activity", "adds up sectors in /proc/diskstats", "tells when others read and write", |_| {
        let text = beginning("/proc/diskstats")?;
        let sectors = text.lines().flat_map(|line| {
            let fields: Vec<u64> = line.split_whitespace().skip(3).filter_map(|field| field.parse().ok()).collect();
            [fields.get(2).copied().unwrap_or(0), fields.get(6).copied().unwrap_or(0)]
        });
        match sectors.sum() {
            0 => Ok(Seen::Missing("nothing is counted".to_owned())),
            sum => Ok(Seen::Count(sum)),
        }
    }),
    counted("pressure", "reads total of /proc/pressure/cpu", "tells how long others wait for CPUs", |_| {
        let text = fs::read_to_string("/proc/pressure/cpu")?;
        let total = text.lines().next().and_then(|line| line.split("total=").nth(1)?.trim().parse().ok());
        Ok(total.map_or_else(|| Seen::Missing("no total".to_owned()), Seen::Count))
    }),
    marked(
        "kernel-log",
        "reads the kernel's log for a line that the host has written",
        "tells what happens on the host",
        |facts| {
            let mut text = vec![0; 1 << 20];
            let room = i64::try_from(text.len()).unwrap_or(0);
            // SYSLOG_ACTION_READ_ALL (syslog(2)).
            let length = call(libc::SYS_syslog, [3.into(), text.as_mut_slice().into(), room.into()])?;
            text.truncate(usize::try_from(length).unwrap_or(0));
            let text = String::from_utf8_lossy(&text).into_owned();
            let line = text.lines().find(|line| line.contains(&facts.marker)).map(str::to_owned);
            Ok(Seen::Value(line.unwrap_or_else(|| format!("{} lines of another log", text.lines().count()))))
        },
    ),
    marked(
        "mount-paths",
        "looks for a directory of the host's in /proc/self/mountinfo",
        "tells where the host keeps what, and names of other tenants",
        |facts| {
            let text = fs::read_to_string("/proc/self/mountinfo")?;
            let line = text.lines().find(|line| line.contains(&facts.marker));
            Ok(Seen::Value(line.map_or_else(|| format!("none in {} mounts", text.lines().count()), str::to_owned)))
        },
    ),
    marked(
        "control-group-path",
        "looks for the host's control group in /proc/self/cgroup",
        "tells how the host sorts its tenants, and their names",
        |_| Ok(Seen::Value(fs::read_to_string("/proc/self/cgroup")?.trim().replace('\n', " "))),
    ),
    laid_out(
        "processes",
        "looks for a process of the host's in /proc",
        "tells what others run, with what words",
        |facts| {
            let wanted = format!("{}h", facts.marker);
            let pids = names("/proc")?;
            let pids: Vec<&String> =
                pids.iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect();
            let found = pids
                .iter()
                .find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == wanted));
            Ok(match found {
                Some(pid) => Seen::Done(format!("it is process {pid}")),
                None => Seen::Missing(format!("none among {} processes", pids.len())),
            })
        },
    ),
    laid_out("files", "opens a file that the host has just made", "reads what others keep", |facts| {
        let text = fs::read_to_string(&facts.file)?;
        Ok(Seen::Done(format!("{} bytes", text.len())))
    }),
    laid_out(
        "loopback",
        "connects to a port of the host's loopback",
        "reaches services meant for the host alone",
        |facts| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, facts.port));
            TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            Ok(Seen::Done("connected".to_owned()))
        },
    ),
    laid_out(
        "abstract-sockets",
        "connects to an abstract Unix socket of the host's",
        "reaches services whose only guard is a name",
        |facts| {
            UnixStream::connect_addr(&UnixAddress::from_abstract_name(&facts.marker)?)?;
            Ok(Seen::Done("connected".to_owned()))
        },
    ),
    laid_out(
        "shared-memory",
        "looks for a System V segment of the host's",
        "reads and writes others' memory",
        |facts| {
            let id = call(libc::SYS_shmget, [i64::from(facts.key).into(), 0.into(), 0.into()])?;
            Ok(Seen::Done(format!("segment {id}")))
        },
    ),
    laid_out(
        "message-queues",
        "opens a POSIX message queue of the host's",
        "reads and writes others' messages",
        |facts| {
            let name = std::ffi::CString::new(facts.marker.as_str())?;
            call(libc::SYS_mq_open, [name.as_c_str().into(), i64::from(libc::O_RDONLY).into(), 0.into(), 0.into()])?;
            Ok(Seen::Done("opened".to_owned()))
        },
    ),
    laid_out(
        "keyrings",
        "as a user of the host's, looks for a key in that user's keyring",
        "reads secrets that another tenant with the same user number has put there",
        |facts| {
            become_user(facts.uid)?;
            let name = std::ffi::CString::new(facts.marker.as_str())?;
            // KEYCTL_SEARCH in KEY_SPEC_USER_KEYRING (keyctl(2)).
            let kind: &std::ffi::CStr = c"user";
            let key = call(libc::SYS_keyctl, [10.into(), (-4).into(), kind.into(), name.as_c_str().into(), 0.into()])?;
            Ok(Seen::Done(format!("key {key}")))
        },
    ),
    laid_out(
        "inotify-limit",
        "as a user of the host's who has used up all inotify instances, makes one",
        "one tenant uses up what another with the same user number needs",
        |facts| {
            become_user(facts.uid)?;
            match call(libc::SYS_inotify_init1, [0.into()]) {
                Ok(_) => Ok(Seen::Missing("there are some left".to_owned())),
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => Ok(Seen::Done("none is left".to_owned())),
                Err(error) => Err(error),
            }
        },
    ),
    laid_out(
        "process-limit",
        "as a user of the host's with five processes, starts one more under a limit of four",
        "one tenant uses up what another with the same user number needs",
        process_limit,
    ),
    laid_out(
        "page-cache",
        "tells by mincore(2) and by time which of two files the host has in memory",
        "tells what others read, and gives a covert channel",
        |facts| page_cache::look(&facts.shared),
    ),
];

fn process_limit(facts: &Facts) -> io::Result<Seen> {
    let limit = rustix::process::Rlimit { current: Some(4), maximum: Some(4) };
    rustix::process::setrlimit(rustix::process::Resource::Nproc, limit)?;
    become_user(facts.uid)?;
    // SAFETY: this process has one thread, and the child ends at once.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid if pid > 0 => {
            // SAFETY: waits for our own child, so that no zombie has our name.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Ok(Seen::Missing("others are not counted".to_owned()))
        }
        _ => match io::Error::last_os_error() {
            error if error.kind() == ErrorKind::WouldBlock => Ok(Seen::Done("others are counted".to_owned())),
            error => Err(error),
        },
    }
}

fn become_user(uid: u32) -> io::Result<()> {
    let uid = i64::from(uid);
    call(libc::SYS_setresuid, [uid.into(), uid.into(), uid.into()]).map(drop)
}

fn beginning(path: &str) -> io::Result<String> {
    let mut text = Vec::new();
    File::open(path)?.take(ENOUGH).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn value(path: &str) -> io::Result<Seen> {
    Ok(Seen::Value(beginning(path)?.trim().to_owned()))
}

fn line_of(path: &str, name: &str) -> io::Result<Seen> {
    let text = beginning(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.map(|line| line.trim_start_matches([' ', '\t', ':']).trim().to_owned());
    Ok(value.map_or_else(|| Seen::Missing(format!("no {name}")), Seen::Value))
}

fn count(path: &str, name: &str) -> io::Result<Seen> {
    let text = beginning(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    Ok(number.map_or_else(|| Seen::Missing(format!("no {name}")), Seen::Count))
}

fn names(path: impl AsRef<Path>) -> io::Result<BTreeSet<String>> {
    fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What is in directories, of which some need not be there.
fn listing(paths: &[&str]) -> io::Result<Seen> {
    let all: io::Result<Vec<BTreeSet<String>>> = paths.iter().map(names).collect();
    let all: BTreeSet<String> = all?.into_iter().flatten().filter(|name| !name.starts_with("loop")).collect();
    Ok(list(all.iter().map(String::as_str)))
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> Seen {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { Seen::Missing("none".to_owned()) } else { Seen::Value(names.join(" ")) }
}

fn digest<'a>(lines: impl Iterator<Item = &'a str>) -> Seen {
    let (mut number, mut hash) = (0, crc32fast::Hasher::new());
    for line in lines {
        number += 1;
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    match number {
        0 => Seen::Missing("none".to_owned()),
        _ => Seen::Value(format!("{number}, checksum {:08x}", hash.finalize())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_told_apart() {
        assert_eq!(digest(["a", "b"].into_iter()), digest(["a", "b"].into_iter()));
        assert_ne!(digest(["a", "b"].into_iter()), digest(["ab"].into_iter()));
        assert_eq!(digest([].into_iter()), Seen::Missing("none".to_owned()));
    }

    #[test]
    fn values_and_counters_are_read() {
        assert!(matches!(count("/proc/stat", "ctxt").unwrap(), Seen::Count(1..)));
        assert!(matches!(count("/proc/stat", "no-such").unwrap(), Seen::Missing(_)));
        assert!(matches!(line_of("/proc/meminfo", "MemTotal:").unwrap(), Seen::Value(text) if text.ends_with("kB")));
    }
}
