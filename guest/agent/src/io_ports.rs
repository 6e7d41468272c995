// SPDX-License-Identifier: Apache-2.0
//! I/O ports of the VMM, through `/dev/port`.

use core::ffi::CStr;

use coracle_protocol::HOST_CLOCK_PORT;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

use crate::sys;

/// Character device 1,4: a byte at offset *n* is I/O port *n*. The initramfs has the node, so that no mount is needed.
pub const DEV_PORT: &CStr = c"/dev/port";

/// Bytes of the host's time.
const TIME: usize = 8;
/// How often the host's time is read before it is taken as it is.
const READINGS: u32 = 10;
/// How long a reading may take, in nanoseconds, to be a good one: a vCPU that waits for its turn takes longer.
const QUICK: u64 = 5_000_000;

/// The host's time of day, in nanoseconds since 1970; `None` where the VMM has no such clock.
pub fn host_time() -> Option<u64> {
    let ports = rustix::fs::open(DEV_PORT, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut time = None;
    for _ in 0..READINGS {
        let mut bytes = [0; TIME];
        let before = sys::uptime_ns();
        let read = rustix::io::pread(&ports, &mut bytes[..], HOST_CLOCK_PORT.into());
        if read != Ok(TIME) || bytes == [0xff; TIME] {
            return None;
        }
        let took = sys::uptime_ns().saturating_sub(before);
        time = Some(u64::from_le_bytes(bytes).saturating_add(took));
        if took < QUICK {
            break;
        }
    }
    time
}

/// Access to I/O ports, if the kernel has it.
#[derive(Debug)]
pub struct IoPorts(Option<OwnedFd>);

impl IoPorts {
    /// Opens `path`. A kernel without `CONFIG_DEVPORT` only loses time stamps and the fast power-off, so that is no
    /// error.
    #[must_use]
    pub fn open(path: &CStr) -> Self {
        Self(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// Writes `byte` to `port`. A port that no device listens to swallows it.
    pub fn write(&self, port: u16, byte: u8) {
        if let Some(device) = &self.0 {
            // Every port exists, so there is no failure to tell of.
            let _ = rustix::io::pwrite(device, &[byte], port.into());
        }
    }
}
