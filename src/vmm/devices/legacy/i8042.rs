// SPDX-License-Identifier: Apache-2.0
//! The reset line of the i8042 keyboard controller, and system control port B that lies between its ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vmm::bus::BusDevice;
use crate::vmm::devices::exit::{ExitLine, GuestEnd};

/// Offset of system control port B.
const CONTROL_B: u64 = 1;
/// Offset of the command and status port.
const COMMAND: u64 = 4;
/// Command "pulse output line 0", which is wired to the CPU's reset.
const PULSE_RESET: u8 = 0xfe;
/// Port B: refresh toggle (bit 4) and output of timer channel 2 (bit 5).
const TOGGLING: u8 = 0x30;

/// Ports 0x60 to 0x64.
///
/// Both buffers of the controller always look empty, so that `reboot=k` does not wait before it pulses the reset line.
/// Port B has its two clock-driven bits change with each read, so that a kernel that waits for either edge goes on.
pub struct I8042 {
    exit: Arc<ExitLine>,
    toggle: AtomicBool,
}

impl I8042 {
    /// First port.
    pub const BASE: u64 = 0x60;
    /// Number of ports.
    pub const LENGTH: u64 = 5;

    /// A controller that reports resets to `exit`.
    pub fn new(exit: Arc<ExitLine>) -> Self {
        Self { exit, toggle: AtomicBool::new(false) }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (CONTROL_B, [byte]) = (offset, data) {
            *byte = if self.toggle.fetch_xor(true, Ordering::Relaxed) { 0 } else { TOGGLING };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND, &[PULSE_RESET]) {
            self.exit.request(GuestEnd::Reboot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::layout::I8042_COMMAND_PORT;

    #[test]
    fn only_the_reset_command_resets() {
        let exit = Arc::new(ExitLine::new().unwrap());
        let controller = I8042::new(Arc::clone(&exit));
        assert_eq!(I8042::BASE + COMMAND, u64::from(I8042_COMMAND_PORT));
        for (offset, data) in [(COMMAND, vec![0xff]), (0, vec![0xfe]), (COMMAND, vec![0xfe, 0]), (3, vec![0, 0xfe])] {
            controller.write(offset, &data);
            assert_eq!(exit.reason(), None, "{offset} {data:?}");
        }
        controller.write(COMMAND, &[0xfe]);
        assert_eq!(exit.reason(), Some(GuestEnd::Reboot));
    }

    #[test]
    fn status_is_idle_and_port_b_moves() {
        let controller = I8042::new(Arc::new(ExitLine::new().unwrap()));
        let read = |offset| {
            let mut data = [0];
            controller.read(offset, &mut data);
            data[0]
        };
        assert_eq!((read(0), read(COMMAND)), (0, 0));
        assert_eq!([read(1), read(1), read(1)], [TOGGLING, 0, TOGGLING]);
    }
}
