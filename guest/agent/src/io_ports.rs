// SPDX-License-Identifier: Apache-2.0
//! I/O ports of the VMM, through `/dev/port`.

use core::ffi::CStr;

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};

/// Character device 1,4: a byte at offset *n* is I/O port *n*. The initramfs has the node, so that no mount is needed.
pub const DEV_PORT: &CStr = c"/dev/port";

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

    /// The same, to read.
    #[must_use]
    pub fn open_to_read(path: &CStr) -> Self {
        Self(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    /// Reads eight ports from `first` on, as a number; `None` where there is no access, or where no device is.
    #[must_use]
    pub fn read(&self, first: u16) -> Option<u64> {
        let mut bytes = [0; 8];
        let count = rustix::io::pread(self.0.as_ref()?, &mut bytes, first.into()).ok()?;
        // Ports without a device read as ones.
        Some(u64::from_le_bytes(bytes)).filter(|number| count == 8 && *number != u64::MAX)
    }

    /// Writes `byte` to `port`. A port that no device listens to swallows it.
    pub fn write(&self, port: u16, byte: u8) {
        if let Some(device) = &self.0 {
            // Every port exists, so there is no failure to tell of.
            let _ = rustix::io::pwrite(device, &[byte], port.into());
        }
    }
}
