// SPDX-License-Identifier: Apache-2.0
//! The control group of a namespace container (Linux `admin-guide/cgroup-v2.rst`): what it may use, what it has used, and
//! how all of it is ended at once, whoever else has gone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use coracle_protocol::Usage;
use rustix::process::{Pid, Signal, kill_process};

/// Where the groups of all containers are, in the hierarchy.
const PARENT: &str = "coracle";
/// Where the hierarchy of version 2 is mounted: alone, or beside version 1 (systemd, "hybrid").
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// How long killed processes may take to be gone, and those that are to stand still to stand.
const SETTLING: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(2);

/// A group, which need not be there (yet, or any more).
#[derive(Clone, Debug)]
pub struct Cgroup(PathBuf);

/// The hierarchy of version 2, as this thread sees it.
fn hierarchy() -> Option<&'static Path> {
    PLACES.map(Path::new).into_iter().find(|place| place.join("cgroup.controllers").exists())
}

/// Whether version 2 is where container runtimes look for it.
pub fn is_in_place() -> bool {
    Path::new(PLACES[0]).join("cgroup.controllers").exists()
}

/// Whether version 2 is there, but beside version 1.
pub fn is_aside() -> bool {
    !is_in_place() && Path::new(PLACES[1]).join("cgroup.procs").exists()
}

impl Cgroup {
    /// That of the container with this id; `None` on a host without version 2.
    pub fn of(id: &str) -> Option<Self> {
        hierarchy().map(|place| Self(place.join(PARENT).join(id)))
    }

    /// Its name for an OCI runtime (`linux.cgroupsPath`).
    pub fn oci_path(id: &str) -> String {
        format!("/{PARENT}/{id}")
    }

    /// Whether groups here can have this controller.
    pub fn offers(controller: &str) -> bool {
        let offered = hierarchy().and_then(|place| fs::read_to_string(place.join("cgroup.controllers")).ok());
        offered.unwrap_or_default().split_ascii_whitespace().any(|one| one == controller)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Ids of its processes, as the host sees them.
    pub fn processes(&self) -> Vec<Pid> {
        let list = self.read("cgroup.procs");
        list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    /// Kills all that is in it, which need not have gone when this returns.
    pub fn kill(&self) {
        if fs::write(self.0.join("cgroup.kill"), "1").is_err() {
            // Before Linux 5.14, or where there is no group any more.
            for pid in self.processes() {
                // One that has just ended needs no signal.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Sends a signal to all that is in it.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // One that has just ended needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills all that is in it, and removes it.
    ///
    /// # Errors
    /// Something is still there after some time.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + SETTLING;
        loop {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {
                    self.kill();
                    // What the container has made below goes first.
                    for below in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                        if below.path().is_dir() {
                            let _ = fs::remove_dir(below.path());
                        }
                    }
                    thread::sleep(STEP);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Stops all that is in it where it is, or lets it go on; returns when that is so.
    ///
    /// # Errors
    /// The kernel's, or `TimedOut`; then all go on.
    pub fn freeze(&self, still: bool) -> io::Result<()> {
        fs::write(self.0.join("cgroup.freeze"), if still { "1" } else { "0" })?;
        let deadline = Instant::now() + SETTLING;
        while still && self.value("cgroup.events", "frozen") != Some(1) {
            if Instant::now() > deadline {
                fs::write(self.0.join("cgroup.freeze"), "0")?;
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(STEP);
        }
        Ok(())
    }

    /// Whether the kernel has killed a process of it for want of memory.
    pub fn was_out_of_memory(&self) -> bool {
        self.value("memory.events", "oom_kill").is_some_and(|killed| killed > 0)
    }

    /// What it uses. Where the host has no controller of memory for it, that of its processes is summed up: shared pages
    /// then count for each of them.
    pub fn usage(&self) -> Usage {
        let processes = self.processes();
        let number = |name: &str| self.read(name).trim().parse::<u64>().ok();
        let of_each = |field: fn(&str) -> u64| {
            let status = |pid: &Pid| fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok();
            processes.iter().filter_map(status).map(|status| field(&status)).fold(0, u64::saturating_add)
        };
        let (read, written) = transferred(&self.read("io.stat"));
        let network = processes.first().and_then(|first| {
            let path = format!("/proc/{}/net/dev", first.as_raw_nonzero());
            Some(coracle_agent::statistics::network(&fs::read_to_string(path).ok()?))
        });
        let (received, sent) = network.unwrap_or_default();
        Usage {
            cpu_ns: self.value("cpu.stat", "usage_usec").unwrap_or(0).saturating_mul(1000),
            memory: number("memory.current").unwrap_or_else(|| of_each(resident)),
            memory_limit: number("memory.max").unwrap_or_else(host_memory),
            pids: u64::try_from(self.read("cgroup.threads").lines().count()).unwrap_or(u64::MAX),
            received,
            sent,
            read,
            written,
        }
    }

    fn value(&self, file: &str, name: &str) -> Option<u64> {
        let text = self.read(file);
        let mut words = text.lines().map(str::split_ascii_whitespace);
        words.find_map(|mut line| (line.next()? == name).then(|| line.next()?.parse().ok())?)
    }

    /// Empty where there is none.
    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }
}

/// Bytes of a field of `/proc/PID/status` (`proc(5)`), which is in KiB.
fn bytes(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Bytes that a process has in memory of its own, by its `/proc/PID/status`: not what could be read again.
pub fn resident(status: &str) -> u64 {
    bytes(status, "RssAnon:").saturating_add(bytes(status, "RssShmem:"))
}

fn host_memory() -> u64 {
    bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:")
}

/// Bytes read and written, of all devices in `io.stat`.
fn transferred(statistics: &str) -> (u64, u64) {
    let sum = |name: &str| {
        let words = statistics.split_ascii_whitespace().filter_map(|word| word.strip_prefix(name)?.parse::<u64>().ok());
        words.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel_are_read() {
        let statistics =
            "7:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n254:0 rbytes=10 wbytes=20 rios=1 wios=1\n";
        assert_eq!((transferred(statistics), transferred("")), ((4106, 20), (0, 0)));
        let status = "VmRSS:\t  900 kB\nRssAnon:\t     100 kB\nRssFile:\t     700 kB\nRssShmem:\t       4 kB\n";
        assert_eq!((resident(status), resident("")), (104 << 10, 0));
    }

    #[test]
    fn a_group_that_is_not_there_is_killed_and_removed_for_nothing() {
        let group = Cgroup(tempfile::tempdir().unwrap().path().join("none"));
        group.kill();
        group.remove().unwrap();
        assert_eq!((group.processes(), group.was_out_of_memory()), (vec![], false));
        assert!(group.freeze(true).is_err());
    }
}
