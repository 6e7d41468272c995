// SPDX-License-Identifier: Apache-2.0
//! Control groups in which sandboxes run: the same limits for each kind, made and read back by this tool before anything
//! runs in them, of version 1 or 2, whichever the host has.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::super::machine::has_cgroup2;

/// What a group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Processes and threads.
    pub pids: u64,
    /// Bytes.
    pub memory: u64,
    /// Of one CPU, in percent.
    pub cpu: u64,
}

/// Microseconds of a period in which CPU time is shared out.
const PERIOD: u64 = 100_000;
/// How long what is killed may take to go.
const GOING: Duration = Duration::from_secs(20);

/// Where control groups are, held open: something may be mounted over them later.
#[derive(Debug)]
pub struct Hierarchies {
    root: File,
    version2: bool,
}

impl Hierarchies {
    /// Those of this host.
    ///
    /// # Errors
    /// They are not where they are everywhere.
    pub fn open() -> io::Result<Self> {
        Ok(Self { root: File::open("/sys/fs/cgroup")?, version2: has_cgroup2() })
    }

    /// Whether they are of version 2.
    pub fn are_version2(&self) -> bool {
        self.version2
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.root.as_raw_fd())).join(name)
    }

    /// Makes a group with these limits, and reads them back.
    ///
    /// # Errors
    /// The host does not let it be made, or limits are not as they were set.
    pub fn make(&self, name: &str, limits: Limits) -> io::Result<Group> {
        let mut group = Group { name: name.to_owned(), directories: Vec::new(), leaves: Vec::new() };
        let quota = PERIOD * limits.cpu / 100;
        if self.version2 {
            let top = self.path("");
            enable(&top)?;
            let directory = self.path(name);
            group.add(&directory)?;
            set(&directory, "pids.max", &limits.pids.to_string())?;
            set(&directory, "memory.max", &limits.memory.to_string())?;
            // Where there is no swap, there is no such file.
            let _ = fs::write(directory.join("memory.swap.max"), "0");
            set(&directory, "cpu.max", &format!("{quota} {PERIOD}"))?;
            enable(&directory)?;
            let leaf = directory.join("launcher");
            group.add(&leaf)?;
            group.leaves.push(leaf);
            return Ok(group);
        }
        for controller in ["pids", "memory", "cpu"] {
            let directory = self.path(controller).join(name);
            group.add(&directory)?;
            match controller {
                "pids" => set(&directory, "pids.max", &limits.pids.to_string())?,
                "memory" => set(&directory, "memory.limit_in_bytes", &limits.memory.to_string())?,
                _ => {
                    set(&directory, "cpu.cfs_period_us", &PERIOD.to_string())?;
                    set(&directory, "cpu.cfs_quota_us", &quota.to_string())?;
                }
            }
            group.leaves.push(directory);
        }
        Ok(group)
    }
}

/// A group, which goes with all that is in it.
#[derive(Debug)]
pub struct Group {
    name: String,
    directories: Vec<PathBuf>,
    leaves: Vec<PathBuf>,
}

impl Group {
    fn add(&mut self, directory: &Path) -> io::Result<()> {
        fs::create_dir(directory)?;
        self.directories.push(directory.to_owned());
        Ok(())
    }

    /// Where a container engine may make groups of its own, within these limits, with version 2.
    pub fn parent(&self) -> String {
        format!("/{}/box", self.name)
    }

    /// Has a program start in it.
    ///
    /// # Errors
    /// It has gone.
    pub fn hold(&self, command: &mut Command) -> io::Result<()> {
        let lists = self.leaves.iter().map(|leaf| OpenOptions::new().write(true).open(leaf.join("cgroup.procs")));
        let lists: Vec<File> = lists.collect::<io::Result<_>>()?;
        // SAFETY: only writes to descriptors, which allocates nothing and takes no lock.
        unsafe { command.pre_exec(move || lists.iter().try_for_each(|mut list| list.write_all(b"0"))) };
        Ok(())
    }

    /// Processes in it, and in groups below it.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        let mut waiting = self.directories.clone();
        while let Some(directory) = waiting.pop() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            waiting.extend(below(&directory));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// How often the limit of memory has ended a process in it.
    pub fn killed_for_memory(&self) -> u64 {
        let text = ["memory.events", "memory.oom_control"].iter().flat_map(|name| {
            self.directories.iter().filter_map(move |directory| fs::read_to_string(directory.join(name)).ok())
        });
        let counts = text.flat_map(|text| {
            let count = |line: &str| line.strip_prefix("oom_kill ")?.parse::<u64>().ok();
            text.lines().filter_map(count).collect::<Vec<_>>()
        });
        counts.max().unwrap_or(0)
    }

    /// Ends all that is in it.
    pub fn end(&self) {
        let deadline = Instant::now() + GOING;
        loop {
            let pids = self.pids();
            if pids.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in pids.into_iter().filter_map(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) {
                // One that has just ended needs no signal.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
        let deadline = Instant::now() + GOING;
        for directory in self.directories.iter().rev() {
            // The kernel takes a moment to forget processes.
            while remove(directory).is_err() && directory.exists() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove(directory: &Path) -> io::Result<()> {
    below(directory).iter().try_for_each(|below| remove(below))?;
    fs::remove_dir(directory)
}

/// Has groups below one of version 2 be limited.
fn enable(directory: &Path) -> io::Result<()> {
    let path = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path)?;
    let missing =
        ["cpu", "memory", "pids"].into_iter().filter(|name| !enabled.split_whitespace().any(|one| one == *name));
    missing.into_iter().try_for_each(|name| fs::write(&path, format!("+{name}")))
}

fn set(directory: &Path, name: &str, value: &str) -> io::Result<()> {
    let path = directory.join(name);
    let failed = |error: io::Error| io::Error::other(format!("{name}: {error}"));
    fs::write(&path, value).map_err(failed)?;
    let found = fs::read_to_string(&path).map_err(failed)?;
    match found.trim() == value {
        true => Ok(()),
        false => Err(io::Error::other(format!("{name} is {}, not {value}", found.trim()))),
    }
}
