// SPDX-License-Identifier: Apache-2.0
//! A fake driver: builds rings in real guest memory, well-formed or not, for tests and fuzzers.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::memory::{self, Ram};
use super::interrupt::Interrupt;
use super::queue::{Queue, QueueConfig, QueueError, QueueSize};
use super::{DeviceError, Session, VirtioDevice};

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x5000;
/// Distance between the rings of two queues.
const STRIDE: u64 = 0x6000;
const MEMORY: u64 = 16 << 20;

/// Whether an event loop would see this descriptor as readable within `patience`.
///
/// # Panics
/// On a patience of more than 24 days.
pub fn is_readable(fd: RawFd, patience: Duration) -> bool {
    let mut wait = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `wait` is one live structure.
    unsafe { libc::poll(&raw mut wait, 1, i32::try_from(patience.as_millis()).expect("milliseconds")) == 1 }
}

/// A raw split-ring descriptor (virtio 1.3 §2.7.5), any value allowed.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// 1 next, 2 writable, 4 indirect.
    pub flags: u16,
    /// Following descriptor.
    pub next: u16,
}

/// The driver's side of one queue.
pub struct FakeDriver {
    memory: Arc<Ram>,
    interrupt: Interrupt,
    kick: Arc<EventFd>,
    base: u64,
    size: QueueSize,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl FakeDriver {
    /// A driver with its own 16 MiB of memory and one queue of `size`.
    ///
    /// # Panics
    /// On a size that is no power of two, or above 256: rings of one queue have to fit their place.
    pub fn new(size: u16) -> Self {
        let memory = memory::allocate(MEMORY).expect("memory for a test");
        let line = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        Self::with(memory, Interrupt::new(line), 0, size)
    }

    /// A driver for queue number `number` of a device whose other queues share `memory` and `interrupt`.
    ///
    /// # Panics
    /// As [`FakeDriver::new`].
    pub fn with(memory: Arc<Ram>, interrupt: Interrupt, number: u64, size: u16) -> Self {
        assert!(size <= 256 && number < 5);
        let size = QueueSize::new(size).expect("a power of two");
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd"));
        Self { memory, interrupt, kick, base: number * STRIDE, size, next_descriptor: 0, available: 0, used: 0 }
    }

    /// Guest memory, for more than this driver offers.
    pub fn memory(&self) -> &Arc<Ram> {
        &self.memory
    }

    /// Bytes of guest memory. What lies above 0x2_0000 is free for buffers.
    pub fn memory_size(&self) -> u64 {
        MEMORY
    }

    /// The interrupt that the device raises.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What notifications of this queue arrive on.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Registers as a good driver would write them.
    pub fn config(&self) -> QueueConfig {
        let mut config = QueueConfig::new(self.size);
        config.ready = true;
        config.descriptors = self.base + TABLE;
        config.available = self.base + AVAILABLE;
        config.used = self.base + USED;
        config
    }

    /// Activates `config` on this driver's memory, without event index.
    ///
    /// # Errors
    /// What activation gives.
    pub fn activate(&self, config: QueueConfig) -> Result<Queue, QueueError> {
        config.activate(&self.memory, &self.interrupt, &self.kick, false)
    }

    /// The live queue.
    ///
    /// # Panics
    /// Never, for a driver made here.
    pub fn queue(&self) -> Queue {
        self.activate(self.config()).expect("a good queue")
    }

    /// Activates `device` with one driver a queue and `features` agreed on; the drivers come in queue order.
    ///
    /// # Errors
    /// What the device's activation gives.
    pub fn attach(device: &mut dyn VirtioDevice, features: u64) -> Result<(Session, Vec<FakeDriver>), DeviceError> {
        let first = FakeDriver::new(1);
        let drivers: Vec<_> = (0..)
            .zip(device.queue_sizes())
            .map(|(number, size)| {
                FakeDriver::with(Arc::clone(&first.memory), first.interrupt.clone(), number, size.get().min(256))
            })
            .collect();
        let queues = drivers.iter().map(|driver| Some(driver.queue())).collect();
        let mut session =
            Session { memory: Arc::clone(&first.memory), features, queues, interrupt: first.interrupt.clone() };
        device.activate(&mut session)?;
        Ok((session, drivers))
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(address)).expect("an address in memory");
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).expect("an address in memory");
        data
    }

    /// Writes a descriptor into the table; the slot wraps.
    pub fn set_descriptor(&mut self, slot: u16, descriptor: Descriptor) {
        let slot = slot % self.size.get();
        self.write_descriptor(self.base + TABLE, slot, descriptor);
    }

    fn write_descriptor(&self, table: u64, slot: u16, descriptor: Descriptor) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        raw[8..12].copy_from_slice(&descriptor.length.to_le_bytes());
        raw[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        raw[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.write(table + 16 * u64::from(slot), &raw);
    }

    /// Makes the chain that starts at `head` available.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size.get());
        self.write(self.base + AVAILABLE + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available_index(self.available.wrapping_add(1));
    }

    /// Writes the available index, without a chain behind it.
    pub fn set_available_index(&mut self, index: u16) {
        self.available = index;
        self.write(self.base + AVAILABLE + 2, &index.to_le_bytes());
    }

    /// Makes a chain of `(address, length, writable)` buffers available; gives its head.
    pub fn add(&mut self, buffers: &[(u64, u32, bool)]) -> u16 {
        let head = self.next_descriptor;
        for (position, &(address, length, writable)) in buffers.iter().enumerate() {
            let slot = self.next_descriptor;
            self.next_descriptor = (slot + 1) % self.size.get();
            let last = position + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(writable) << 1;
            self.set_descriptor(slot, Descriptor { address, length, flags, next: self.next_descriptor });
        }
        self.publish(head);
        head
    }

    /// Makes a chain available that lies in an indirect table at `table`; gives its head.
    pub fn add_indirect(&mut self, table: u64, buffers: &[(u64, u32, bool)]) -> u16 {
        for ((slot, &(address, length, writable)), left) in (0u16..).zip(buffers).zip((0..buffers.len()).rev()) {
            let flags = u16::from(left > 0) | u16::from(writable) << 1;
            self.write_descriptor(table, slot, Descriptor { address, length, flags, next: slot + 1 });
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size.get();
        let length = 16 * u32::try_from(buffers.len()).expect("a short chain");
        self.set_descriptor(head, Descriptor { address: table, length, flags: 4, next: 0 });
        self.publish(head);
        head
    }

    /// The next used element, `(head, bytes written)`, where there is one.
    pub fn used(&mut self) -> Option<(u32, u32)> {
        let index = self.read(self.base + USED + 2, 2);
        if index == self.used.to_le_bytes() {
            return None;
        }
        let slot = u64::from(self.used % self.size.get());
        self.used = self.used.wrapping_add(1);
        let raw = self.read(self.base + USED + 4 + 8 * slot, 8);
        let word = |at: usize| u32::from_le_bytes([raw[at], raw[at + 1], raw[at + 2], raw[at + 3]]);
        Some((word(0), word(4)))
    }
}
