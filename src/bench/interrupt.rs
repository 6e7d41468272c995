// SPDX-License-Identifier: Apache-2.0
//! Whether the user wants no more.

use std::io;
use std::os::fd::OwnedFd;

use crate::signals;

/// Remembers that a signal has come.
#[derive(Debug)]
pub struct Interrupt {
    signals: OwnedFd,
    come: bool,
}

impl Interrupt {
    /// Of SIGINT, SIGTERM and SIGHUP. To be made before threads are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self { signals: signals::readable(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?, come: false })
    }

    /// What becomes readable when one comes, for poll(2).
    pub fn signals(&self) -> &OwnedFd {
        &self.signals
    }

    /// Whether one has come.
    pub fn has_come(&mut self) -> bool {
        self.come |= signals::take(&self.signals).is_some();
        self.come
    }
}
