// SPDX-License-Identifier: Apache-2.0
//! How a guest says that it is done.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// It switched itself off.
    PowerOff,
    /// It asked for a reset.
    Reboot,
    /// Its kernel panicked.
    Panic,
}

/// Where the devices report the end of the guest; the event loop waits on its descriptor.
#[derive(Debug)]
pub struct ExitLine {
    event: EventFd,
    /// 0 while the guest runs.
    first: AtomicU8,
}

impl ExitLine {
    /// A line that nobody has pulled yet.
    ///
    /// # Errors
    /// The kernel's, where it gives no eventfd.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { event, first: AtomicU8::new(0) })
    }

    /// Reports `exit`. The first report stands: a kernel that panics and then resets has panicked.
    pub fn request(&self, exit: GuestExit) {
        let code = match exit {
            GuestExit::PowerOff => 1,
            GuestExit::Reboot => 2,
            GuestExit::Panic => 3,
        };
        let _ = self.first.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.event.write(1);
    }

    /// What was reported first, `None` while the guest runs.
    pub fn reason(&self) -> Option<GuestExit> {
        match self.first.load(Ordering::SeqCst) {
            1 => Some(GuestExit::PowerOff),
            2 => Some(GuestExit::Reboot),
            3 => Some(GuestExit::Panic),
            _ => None,
        }
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
        for first in [GuestExit::PowerOff, GuestExit::Reboot, GuestExit::Panic] {
            let line = ExitLine::new().unwrap();
            assert_eq!(line.reason(), None);
            assert!(line.event.read().is_err(), "nothing is pending before the first report");
            line.request(first);
            line.request(GuestExit::Reboot);
            assert_eq!(line.reason(), Some(first));
            assert_eq!(line.event.read().unwrap(), 2);
        }
    }
}
