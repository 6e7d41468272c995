// SPDX-License-Identifier: Apache-2.0
//! The end of the machine.

use coracle_protocol::{PVPANIC_PORT, PVPANIC_SHUTDOWN, Shutdown, ShutdownMode};
use rustix::system::{RebootCommand, reboot};

use crate::signals::Signals;
use crate::{IoPorts, mounts, sys};

/// Ends every process, leaves disks clean, and ends the machine, or, if this is PID 1 of a namespace, that.
pub fn end(shutdown: Shutdown, ports: &IoPorts) -> ! {
    if let Ok(signals) = Signals::watch() {
        signals.end_all(shutdown.grace_ms);
    }
    rustix::fs::sync();
    mounts::release();
    let command = match shutdown.mode {
        ShutdownMode::PowerOff => {
            // First, not last: a kernel that knows no way to switch this machine off halts it instead and never comes
            // back here; and where the port is there, the kernel is spared the shutdown of each device.
            ports.write(PVPANIC_PORT, PVPANIC_SHUTDOWN);
            RebootCommand::PowerOff
        }
        ShutdownMode::Reboot => RebootCommand::Restart,
    };
    let _ = reboot(command);
    sys::say(b"coracle-agent: the kernel refuses to end the machine; ending PID 1 to make it panic\n");
    sys::exit(1)
}
