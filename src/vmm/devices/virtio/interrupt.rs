// SPDX-License-Identifier: Apache-2.0
//! A device's interrupt line, and what it has to say of its configuration.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Raises the device's interrupt line; clones raise the same one.
#[derive(Clone, Debug)]
pub struct Interrupt {
    changed: Arc<AtomicBool>,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt on the irqfd `line`.
    pub fn new(line: EventFd) -> Self {
        Self { changed: Arc::default(), line: Arc::new(line) }
    }

    /// Has the transport tell the driver that the device's configuration changed: once the device's call has returned,
    /// when the driver can read the new one.
    pub fn config_change(&self) {
        self.changed.store(true, Ordering::SeqCst);
    }

    /// Whether there was a change since the last call.
    pub fn take_change(&self) -> bool {
        self.changed.swap(false, Ordering::SeqCst)
    }

    /// Raises the line: some queue has used buffers, or the configuration has changed.
    pub fn raise(&self) {
        // An eventfd write fails only when its counter is full, and then the interrupt is pending anyway.
        let _ = self.line.write(1);
    }

    /// The irqfd.
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}
