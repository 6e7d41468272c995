// SPDX-License-Identifier: Apache-2.0
//! How a guest says that it is done.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestEnd {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reboot,
    /// Its kernel panicked.
    Panic,
    /// It faulted while it handled a double fault (Intel SDM vol. 3 §6.15).
    TripleFault,
    /// It was stopped from outside.
    Stopped,
}

impl GuestEnd {
    /// Exit status of `coracle-vmm` and of `coracle boot`.
    pub fn exit_code(self) -> u8 {
        match self {
            GuestEnd::PowerOff => 0,
            GuestEnd::Reboot => 100,
            GuestEnd::Panic => 101,
            GuestEnd::TripleFault => 102,
            GuestEnd::Stopped => 103,
        }
    }
}

/// Where the devices report the end of the guest; the event loop waits on its descriptor.
#[derive(Debug)]
pub struct ExitLine {
    event: EventFd,
    first: OnceLock<GuestEnd>,
}

impl ExitLine {
    /// A line that nobody has pulled yet.
    ///
    /// # Errors
    /// The kernel's, where it gives no eventfd.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { event, first: OnceLock::new() })
    }

    /// Reports `end`. The first report stands: a kernel that panics and then resets has panicked.
    pub fn request(&self, end: GuestEnd) {
        let _ = self.first.set(end);
        self.wake();
    }

    /// Has the event loop look, at what was reported here or elsewhere.
    pub fn wake(&self) {
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.event.write(1);
    }

    /// What was reported first, `None` while the guest runs.
    pub fn reason(&self) -> Option<GuestEnd> {
        self.first.get().copied()
    }
}

/// Readable from the first report on, for ever: nothing ever empties it.
impl AsRawFd for ExitLine {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_stands() {
        for first in [GuestEnd::PowerOff, GuestEnd::Reboot, GuestEnd::Panic] {
            let line = ExitLine::new().unwrap();
            assert_eq!(line.reason(), None);
            assert!(line.event.read().is_err(), "nothing is pending before the first report");
            line.request(first);
            line.request(GuestEnd::Reboot);
            assert_eq!(line.reason(), Some(first));
            assert_eq!(line.event.read().unwrap(), 2);
        }
    }
}
