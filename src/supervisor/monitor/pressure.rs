// SPDX-License-Identifier: Apache-2.0
//! Memory for a host that is short of it.
//!
//! The host's kernel says when its tasks have to wait for memory (pressure stall information, psi.rst in its
//! documentation). The monitor of an idle microVM then has the guest give up what it has read of its disks and only keeps
//! in case it is read again; free page reporting gives that to the host. The disks' content is in the host's own cache too
//! where it is worth it: it is held twice otherwise. What programs have in memory the host's kernel swaps, if it has
//! where to, as it does with any process.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Monitor;
use crate::sandbox::Agent;
use crate::sandbox::container::cgroup::resident;
use crate::supervisor::record::Config;

/// Where the kernel tells of it, and takes what we want to hear of.
const PRESSURE: &str = "/proc/pressure/memory";
/// Some task or other has waited for 200 ms of 2 s. Who has no privileges may ask for windows of whole 2 s only.
const TRIGGER: &[u8] = b"some 200000 2000000\0";
/// Per cent of ten seconds in which some task has waited, below which it is over.
const OVER: f64 = 1.0;
/// A container that ends before that needs no watch; nor does one that has been asked no longer ago.
const REST: Duration = Duration::from_secs(10);
/// Over which time it is looked whether a microVM is idle.
const LOOK: Duration = Duration::from_secs(1);
/// Hundredths of a second of processor time in that, up to which it is.
const IDLE: u64 = 5;
/// Bytes of its own that a VMM has: one with less has nothing to give that would be worth the work.
const WORTH: u64 = 16 << 20;
/// A guest tells of free pages every two seconds, a few at a time.
const REPORTS: Duration = Duration::from_secs(5);

/// What a monitor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// Somebody connects.
    Client,
    /// The host is short of memory.
    Pressure,
}

/// Waits for clients, and for the host to be short of memory.
#[derive(Debug)]
pub struct Watch {
    trigger: Option<File>,
    /// From when on that is of interest; never where it is not.
    from: Option<Instant>,
}

impl Watch {
    /// That of such a container.
    pub fn of(config: &Config) -> Self {
        let is_wanted = !config.isolation.is_container() && !config.keeps_caches;
        Self { trigger: None, from: is_wanted.then(|| Instant::now() + REST) }
    }

    /// Waits for one of them.
    pub fn wait(&mut self, listener: &UnixListener) -> Awaited {
        loop {
            let left = self.from.map(|from| from.saturating_duration_since(Instant::now()));
            let is_due = left.is_some_and(|left| left.is_zero());
            if is_due && self.trigger.is_none() {
                match arm() {
                    Ok(trigger) => self.trigger = Some(trigger),
                    Err(error) => {
                        log::info!("{PRESSURE} is not watched: {error}");
                        self.from = None;
                    }
                }
                continue;
            }
            let limit = left.filter(|_| !is_due).and_then(|left| Timespec::try_from(left).ok());
            let trigger = self.trigger.as_ref().filter(|_| is_due);
            let mut watched = vec![PollFd::new(listener, PollFlags::IN)];
            watched.extend(trigger.map(|trigger| PollFd::from_borrowed_fd(trigger.as_fd(), PollFlags::PRI)));
            // A signal, or the time has come: look again.
            if !poll(&mut watched, limit.as_ref()).is_ok_and(|ready| ready > 0) {
                continue;
            }
            let seen: Vec<PollFlags> = watched.iter().map(PollFd::revents).collect();
            if let Some(seen) = seen.get(1).filter(|seen| !seen.is_empty()) {
                let goes_on = !seen.contains(PollFlags::ERR);
                self.from = goes_on.then(|| Instant::now() + REST);
                if goes_on {
                    return Awaited::Pressure;
                }
                continue;
            }
            return Awaited::Client;
        }
    }
}

/// Asks the kernel to be told.
fn arm() -> io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).open(PRESSURE)?;
    file.write_all(TRIGGER)?;
    Ok(file)
}

impl Monitor {
    /// Has the guest give memory back, if it is idle and has any, and the host still wants some a little later.
    pub(super) fn relieve_later(self: &Arc<Self>) {
        let monitor = Arc::clone(self);
        thread::spawn(move || {
            // A guest that does not answer keeps one thread waiting, and no more.
            let Ok(_alone) = monitor.relieving.try_lock() else { return };
            // Not all of a host's guests at the same moment: that would be the next thing it is short of.
            thread::sleep(Duration::from_millis(u64::from(std::process::id() % 32) * 100));
            match monitor.relieve() {
                Ok(Some(bytes)) => log::info!("the host is short of memory: {} kB came back", bytes / 1000),
                Ok(None) => {}
                Err(why) => log::info!("the host is short of memory, and gets none: {why}"),
            }
        });
    }

    /// Bytes that came back; `None` if the guest was left alone.
    fn relieve(&self) -> Result<Option<u64>, String> {
        let vmm = self.container.state().map_err(|failure| failure.to_string())?.pid;
        let text = |error: io::Error| error.to_string();
        let before = own_memory(vmm).map_err(text)?;
        if before < WORTH || !is_short().map_err(text)? {
            return Ok(None);
        }
        let begun = processor_time(vmm).map_err(text)?;
        thread::sleep(LOOK);
        if processor_time(vmm).map_err(text)?.saturating_sub(begun) > IDLE {
            return Ok(None);
        }
        Agent::connect(&self.vsock).and_then(|mut agent| agent.reclaim()).map_err(|failure| failure.why)?;
        thread::sleep(REPORTS);
        Ok(Some(before.saturating_sub(own_memory(vmm).map_err(text)?)))
    }
}

/// Whether tasks of the host still have to wait for memory.
fn is_short() -> io::Result<bool> {
    Ok(share_of_time(&fs::read_to_string(PRESSURE)?).is_some_and(|share| share >= OVER))
}

/// Per cent of the last ten seconds in which some task has waited.
fn share_of_time(pressure: &str) -> Option<f64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_ascii_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

/// Bytes in memory that are of no file on a disk: what a guest has written, or all of the memory of one that is no clone.
fn own_memory(process: u32) -> io::Result<u64> {
    Ok(resident(&fs::read_to_string(format!("/proc/{process}/status"))?))
}

/// Hundredths of a second that its threads have run for (`USER_HZ`).
fn processor_time(process: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    ticks(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn ticks(stat: &str) -> Option<u64> {
    // The name is in parentheses, and may contain some; the state, which is behind it, is the third field.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    Some(field(14)? + field(15)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let calm = "some avg10=0.00 avg60=0.12 avg300=0.00 total=77\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(share_of_time(calm), Some(0.0));
        assert_eq!(share_of_time("some avg10=12.34 avg60=0.12 avg300=0.00 total=77\n"), Some(12.34));
        assert_eq!(share_of_time("full avg10=1.00\n"), None);
        let status =
            "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t     100 kB\nRssFile:\t     700 kB\nRssShmem:\t     23 kB\n";
        assert_eq!(resident(status), 123 << 10);
        assert_eq!(resident("Name:\tx\n"), 0);
        let stat = "12 (a) (b) S 1 12 12 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 1 0 5 6 7";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("12 (a) S 1"), None);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let own = std::process::id();
        assert!(own_memory(own).unwrap() > 0);
        processor_time(own).unwrap();
    }
}
