// SPDX-License-Identifier: Apache-2.0
//! The port on which a guest kernel reports its panic (QEMU `docs/specs/pvpanic`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vmm::bus::BusDevice;
use crate::vmm::devices::exit::{ExitLine, GuestEnd};

const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;
const SHUTDOWN: u8 = 4;

/// One port. Reading it gives the events that it understands.
pub struct PvPanic {
    exit: Arc<ExitLine>,
    crash_kernel: AtomicBool,
}

impl PvPanic {
    /// A port that reports to `exit`.
    pub fn new(exit: Arc<ExitLine>) -> Self {
        Self { exit, crash_kernel: AtomicBool::new(false) }
    }

    /// Whether a kernel panicked with a crash kernel loaded, which then goes on to run: that is no end of the guest.
    pub fn crash_kernel_ran(&self) -> bool {
        self.crash_kernel.load(Ordering::Relaxed)
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = PANICKED | CRASH_LOADED | SHUTDOWN;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let [events] = *data else { return };
        if events & CRASH_LOADED != 0 {
            self.crash_kernel.store(true, Ordering::Relaxed);
        }
        if events & PANICKED != 0 {
            self.exit.request(GuestEnd::Panic);
        } else if events & SHUTDOWN != 0 {
            self.exit.request(GuestEnd::PowerOff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_is_told_apart() {
        for (events, crash, reason) in [
            (0, false, None),
            (0xf8, false, None),
            (1, false, Some(GuestEnd::Panic)),
            (2, true, None),
            (4, false, Some(GuestEnd::PowerOff)),
            (7, true, Some(GuestEnd::Panic)),
        ] {
            let exit = Arc::new(ExitLine::new().unwrap());
            let port = PvPanic::new(Arc::clone(&exit));
            port.write(0, &[events]);
            assert_eq!((port.crash_kernel_ran(), exit.reason()), (crash, reason), "{events:#x}");
        }
    }

    #[test]
    fn it_offers_its_events_and_takes_bytes_only() {
        let exit = Arc::new(ExitLine::new().unwrap());
        let port = PvPanic::new(Arc::clone(&exit));
        let mut data = [0];
        port.read(0, &mut data);
        assert_eq!(data, [7]);
        port.write(0, &[1, 0]);
        assert_eq!(exit.reason(), None);
    }
}
