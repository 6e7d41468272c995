// SPDX-License-Identifier: Apache-2.0
//! A device's interrupt: the status bits that the driver reads, and the irqfd behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` bit: a queue has used buffers (virtio 1.3 §4.2.2).
pub const USED_RING: u32 = 1;
/// `InterruptStatus` bit: the configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// Raises the device's interrupt line; clones raise the same one.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    generation: Arc<AtomicU32>,
    shared: Arc<AtomicBool>,
    line: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt on the irqfd `line`.
    pub fn new(line: EventFd) -> Self {
        Self { status: Arc::default(), generation: Arc::default(), shared: Arc::default(), line: Arc::new(line) }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used_ring(&self) {
        self.raise(USED_RING);
    }

    /// Tells the driver that the device's configuration changed.
    pub fn config_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        // An eventfd write fails only when its counter is full, and then the interrupt is pending anyway.
        let _ = self.line.write(1);
    }

    /// `ConfigGeneration`: differs after each configuration change (virtio 1.3 §2.5.1).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether another process raises the line too. It cannot set a bit, so that of used buffers is always read as set:
    /// a driver that looks at its queues for nothing loses little.
    pub fn share(&self, shared: bool) {
        self.shared.store(shared, Ordering::SeqCst);
    }

    /// Pending bits, as the driver reads them.
    pub fn status(&self) -> u32 {
        let of_others = if self.shared.load(Ordering::SeqCst) { USED_RING } else { 0 };
        self.status.load(Ordering::SeqCst) | of_others
    }

    /// Takes over what another interrupt had pending, and raises the line where that is anything: the line's own edge
    /// may have been on its way when that was recorded.
    pub fn restore(&self, status: u32, generation: u32) {
        self.generation.store(generation, Ordering::SeqCst);
        if status & (USED_RING | CONFIG_CHANGE) != 0 {
            self.raise(status & (USED_RING | CONFIG_CHANGE));
        }
    }

    /// The driver has seen `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Forgets what is pending, at device reset.
    pub fn clear(&self) {
        self.share(false);
        self.status.store(0, Ordering::SeqCst);
    }

    /// The irqfd.
    pub fn line(&self) -> &EventFd {
        &self.line
    }
}
