// SPDX-License-Identifier: Apache-2.0
//! The guest as the agent finds it.

use coracle_protocol::{BootFacts, Text};

use crate::sys;

/// Collected when a host asks, not at boot.
pub fn collect() -> BootFacts {
    let memory = rustix::system::sysinfo();
    let bytes = memory.totalram.saturating_mul(memory.mem_unit.into());
    let cpus = rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count());
    BootFacts {
        kernel: Text::new(rustix::system::uname().release().to_str().unwrap_or_default()),
        uptime_ms: sys::uptime_ms(),
        cpus,
        memory_kib: bytes / 1024,
    }
}
