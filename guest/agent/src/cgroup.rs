// SPDX-License-Identifier: Apache-2.0
//! The control group of the container's processes (Linux `admin-guide/cgroup-v2.rst`). What a VM already limits, memory
//! and CPUs, it does not limit again, so that those controllers cost nothing.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, mkdir, openat};
use rustix::io::{Errno, Result};
use rustix::process::Pid;

use crate::mounts::read_to_end;
use crate::signals::wait_until;
use crate::sys;

/// In [`CGROUPS`](crate::mounts::CGROUPS).
const PATH: &CStr = c"/run/cgroup/container";
const CONTROLLERS: &CStr = c"/run/cgroup/cgroup.subtree_control";
/// How long processes may take to stand still; one that is in the middle of a system call comes to its end first.
const FREEZE_MS: u64 = 10_000;

/// The group, which stays when its container has ended.
#[derive(Debug)]
pub struct Cgroup(OwnedFd);

impl Cgroup {
    /// Makes it, or finds it again.
    ///
    /// # Errors
    /// The kernel's: it may have no groups, or no controller for a limit.
    pub fn make(pids_limit: Option<u32>) -> Result<Self> {
        if pids_limit.is_some() {
            let controllers = rustix::fs::open(CONTROLLERS, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::io::write(&controllers, b"+pids")?;
        }
        let made = mkdir(PATH, Mode::from_raw_mode(0o755));
        if made != Err(Errno::EXIST) {
            made?;
        }
        let group = Self(rustix::fs::open(PATH, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?);
        if made.is_err() {
            // The container before this one may have ended while it stood.
            group.thaw()?;
            // Without the controller there is no limit to lift.
            let _ = group.write(c"pids.max", b"max");
        }
        if let Some(limit) = pids_limit {
            group.write(c"pids.max", format!("{limit}").as_bytes())?;
        }
        Ok(group)
    }

    /// To start processes in.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Lets its processes go on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn thaw(&self) -> Result<()> {
        self.write(c"cgroup.freeze", b"0")
    }

    /// Stops all its processes where they are, and returns when they stand.
    ///
    /// # Errors
    /// `TIMEDOUT` where one does not stop; then all go on.
    pub fn freeze(&self) -> Result<()> {
        self.write(c"cgroup.freeze", b"1")?;
        let events = openat(&self.0, c"cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let deadline = sys::uptime_ms().saturating_add(FREEZE_MS);
        loop {
            let mut content = [0; 256];
            let count = rustix::io::pread(&events, &mut content, 0)?;
            if value(content.get(..count).unwrap_or_default(), "frozen") == Some(1) {
                return Ok(());
            }
            let Some(left) = deadline.checked_sub(sys::uptime_ms()).filter(|left| *left > 0) else {
                self.thaw()?;
                return Err(Errno::TIMEDOUT);
            };
            wait_until(&events, PollFlags::PRI, left);
        }
    }

    /// Ids of its processes, as the agent sees them.
    pub fn processes(&self) -> Vec<Pid> {
        let list = self.read(c"cgroup.procs").unwrap_or_default();
        list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
    }

    /// Time on CPUs in ns.
    pub fn cpu_ns(&self) -> u64 {
        let statistics = self.read(c"cpu.stat").unwrap_or_default();
        value(statistics.as_bytes(), "usage_usec").unwrap_or(0).saturating_mul(1000)
    }

    /// Processes and threads.
    pub fn threads(&self) -> u64 {
        let count = |list: String| u64::try_from(list.lines().count()).unwrap_or(u64::MAX);
        self.read(c"cgroup.threads").map_or(0, count)
    }

    fn write(&self, name: &CStr, content: &[u8]) -> Result<()> {
        let file = openat(&self.0, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, content).map(drop)
    }

    fn read(&self, name: &CStr) -> Option<String> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        String::from_utf8(read_to_end(&file)?).ok()
    }
}

/// The number in the line that starts with `name`.
pub fn value(lines: &[u8], name: &str) -> Option<u64> {
    let lines = core::str::from_utf8(lines).ok()?;
    let mut words = lines.lines().map(str::split_ascii_whitespace);
    words.find_map(|mut line| (line.next()? == name).then(|| line.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let lines = b"populated 1\nfrozen_not 7\nfrozen 1\nempty\n";
        assert_eq!((value(lines, "frozen"), value(lines, "populated")), (Some(1), Some(1)));
        assert_eq!((value(lines, "froz"), value(lines, "empty"), value(b"\xff", "frozen")), (None, None, None));
    }
}
