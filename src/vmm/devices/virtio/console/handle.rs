// SPDX-License-Identifier: Apache-2.0
//! The host's side of the console.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::vmm::devices::console_output::ConsoleOutput;

/// What the device and its handles share.
pub(super) struct Shared {
    output: Mutex<ConsoleOutput>,
    /// Columns in the low half, rows in the high one: one word, so that a size is never half old.
    size: AtomicU32,
    resized: EventFd,
}

impl Shared {
    pub(super) fn new(output: ConsoleOutput) -> io::Result<Arc<Self>> {
        let resized = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { output: Mutex::new(output), size: AtomicU32::new(0), resized }))
    }

    pub(super) fn output(&self) -> MutexGuard<'_, ConsoleOutput> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `cols` and `rows` as they stand in the configuration space.
    pub(super) fn size(&self) -> [u8; 4] {
        self.size.load(Ordering::SeqCst).to_le_bytes()
    }

    pub(super) fn resized(&self) -> &EventFd {
        &self.resized
    }
}

/// Resizes the console and ends its output; clones belong to the same console.
#[derive(Clone)]
pub struct ConsoleHandle(pub(super) Arc<Shared>);

impl ConsoleHandle {
    /// Tells the guest how large the terminal is, in characters.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::SeqCst);
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.0.resized.write(1);
    }

    /// Writes what is left of the output, for the end of the VM, and waits for its readers at most `limit`.
    pub fn finish(&self, limit: Duration) {
        self.0.output().finish(limit);
    }
}
