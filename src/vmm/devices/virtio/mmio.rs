// SPDX-License-Identifier: Apache-2.0
//! The virtio-mmio transport (virtio 1.3 §4.2): registers, the status dance, and the life of a [`Session`].

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use super::queue::QueueConfig;
use super::state::{QueueState, TransportState};
use super::{DeviceError, QueueError, RestoreError, Session, VirtioDevice, Window};
use crate::vmm::bus::BusDevice;
use crate::vmm::event_loop::{EventLoop, Token};
use crate::vmm::guest_log::guest_warn;
use crate::vmm::memory::Ram;

/// Register offsets (virtio 1.3 §4.2.2).
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DESC_HIGH: u64 = 0x84;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub const SHM_LENGTH_LOW: u64 = 0xb0;
    pub const SHM_LENGTH_HIGH: u64 = 0xb4;
    pub const SHM_BASE_LOW: u64 = 0xb8;
    pub const SHM_BASE_HIGH: u64 = 0xbc;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Device status bits (virtio 1.3 §2.1).
mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

/// Offset of `QueueNotify`, for the ioeventfds.
pub const QUEUE_NOTIFY: u64 = register::QUEUE_NOTIFY;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// "Cora": tells a curious driver whose device it is; no driver matches on it.
const VENDOR: u32 = u32::from_le_bytes(*b"Cora");
/// Bytes of the configuration space: all of the largest, a disk's.
const CONFIG_SIZE: usize = 64;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// `InterruptStatus` bit: a queue has used buffers (virtio 1.3 §4.2.2).
///
/// It is set as long as there is a driver: what is never cleared needs neither our word when an interrupt is raised, nor
/// an exit when one is acknowledged. A driver that looks at its queues for nothing loses little. An interrupt is an edge,
/// and not held by this bit.
const USED_RING: u32 = 1;
/// `InterruptStatus` bit: the configuration changed.
const CONFIG_CHANGE: u32 = 2;
/// What is written to acknowledge the first alone, which changes nothing, and where.
pub const NOTHING_NEW: (u64, u32) = (register::INTERRUPT_ACK, USED_RING);
/// Registers that can be read.
const READABLE: [u64; 14] = [
    register::MAGIC,
    register::VERSION,
    register::DEVICE_ID,
    register::VENDOR_ID,
    register::DEVICE_FEATURES,
    register::QUEUE_SIZE_MAX,
    register::QUEUE_READY,
    register::INTERRUPT_STATUS,
    register::STATUS,
    register::SHM_LENGTH_LOW,
    register::SHM_LENGTH_HIGH,
    register::SHM_BASE_LOW,
    register::SHM_BASE_HIGH,
    register::CONFIG_GENERATION,
];
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// A virtio device behind a window of MMIO registers.
pub struct Transport {
    interrupt: Interrupt,
    window: Window,
    ignored: AtomicU64,
    state: Mutex<State>,
}

struct State {
    device: Box<dyn VirtioDevice>,
    number: u16,
    memory: Arc<Ram>,
    events: Arc<EventLoop>,
    kicks: Vec<Arc<EventFd>>,
    interrupt: Interrupt,
    window: Window,
    indirect: bool,
    /// `ConfigGeneration`: differs after each configuration change (virtio 1.3 §2.5.1).
    generation: u32,
    /// A change of it that the driver has not acknowledged.
    config_changed: bool,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueConfig>,
    status: u32,
    session: Option<Session>,
}

impl Transport {
    /// Puts `device` behind registers, of which the driver reads `window`. `number` is its place on the bus, `interrupt` its
    /// line. With `indirect` its driver may have one descriptor for each chain, and the rest in a table that it allocates.
    ///
    /// # Errors
    /// The kernel's, where it gives no eventfd.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        number: u16,
        memory: Arc<Ram>,
        events: Arc<EventLoop>,
        interrupt: Interrupt,
        window: Window,
        indirect: bool,
    ) -> std::io::Result<Self> {
        let queues: Vec<_> = device.queue_sizes().iter().copied().map(QueueConfig::new).collect();
        let kick = |_| Ok(Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?));
        let kicks = queues.iter().map(kick).collect::<std::io::Result<Vec<_>>>()?;
        let state = State {
            device,
            number,
            memory,
            events,
            kicks,
            interrupt: interrupt.clone(),
            window: window.clone(),
            indirect,
            generation: 0,
            config_changed: false,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues,
            status: 0,
            session: None,
        };
        state.publish();
        Ok(Self { interrupt, window, ignored: AtomicU64::new(0), state: Mutex::new(state) })
    }

    /// One eventfd a queue, in order: what `QueueNotify` writes of the queue's number are to trigger.
    pub fn kicks(&self) -> Vec<Arc<EventFd>> {
        self.lock().kicks.clone()
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The driver has notified queue number `queue`: called by the event loop.
    pub fn queue_event(&self, queue: u16) {
        let state = &mut *self.lock();
        let queue = usize::from(queue);
        if let Some(kick) = state.kicks.get(queue) {
            // Another event may have emptied the counter; then there is nothing to read.
            let _ = kick.read();
        }
        if let Some(session) = &mut state.session {
            let result = state.device.queue_event(queue, session);
            state.settle(result);
        }
    }

    /// Something happened on the device's own descriptor `source`: called by the event loop.
    pub fn source_event(&self, source: u16, events: EventSet) {
        let state = &mut *self.lock();
        if let Some(session) = &mut state.session {
            let result = state.device.source_event(source, events, session);
            state.settle(result);
        }
    }

    /// Ends whatever the driver has running; for the end of the VM.
    pub fn shut_down(&self) {
        self.lock().end_session();
    }

    /// Brings the device to rest and gives its state; the guest stands still meanwhile.
    pub fn rest(&self) -> TransportState {
        let state = &mut *self.lock();
        if let Some(session) = &mut state.session {
            let result = state.device.rest(session);
            state.settle(result);
        }
        state.state()
    }

    /// Takes up the state of another device; the guest's interrupt controllers have theirs.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(&self, saved: &TransportState) -> Result<(), RestoreError> {
        self.lock().restore(saved)
    }

    /// Name of the device and its counters: its own, and `ignored_writes`, `needs_reset` of the transport.
    pub fn metrics(&self) -> (String, Vec<(&'static str, u64)>) {
        let state = self.lock();
        let mut metrics = state.device.metrics();
        metrics.push(("ignored_writes", self.ignored.load(Ordering::Relaxed)));
        metrics.push(("needs_reset", u64::from(state.status & status::NEEDS_RESET != 0)));
        (state.device.name().to_owned(), metrics)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ignore(&self, what: std::fmt::Arguments<'_>) {
        self.ignored.fetch_add(1, Ordering::Relaxed);
        guest_warn(format_args!("virtio-mmio write ignored: {what}"));
    }
}

impl BusDevice for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.window.load(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(Ok(offset)) = offset.checked_sub(register::CONFIG).map(usize::try_from) {
            let state = &mut *self.lock();
            state.device.write_config(offset, data, state.session.as_mut());
            return state.publish();
        }
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return self.ignore(format_args!("{} bytes at {offset:#x}", data.len()));
        };
        if (offset, value) == NOTHING_NEW {
            return;
        }
        let mut state = self.lock();
        let allowed = state.write(offset, value);
        state.publish();
        drop(state);
        if !allowed {
            self.ignore(format_args!("{value:#x} at {offset:#x} in this state"));
        }
    }
}

fn half(value: u64, select: u32) -> u32 {
    match (select, value.to_le_bytes()) {
        (0, [a, b, c, d, ..]) | (1, [_, _, _, _, a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn set_half(value: &mut u64, high: bool, half: u32) {
    *value = if high { *value & 0xffff_ffff | u64::from(half) << 32 } else { *value & !0xffff_ffff | u64::from(half) };
}

impl State {
    fn offered(&self) -> u64 {
        let offer = |bit, if_so| if if_so { bit } else { 0 };
        let ring = offer(INDIRECT_DESC, self.indirect) | offer(EVENT_IDX, self.device.event_idx());
        self.device.features() | VERSION_1 | ring
    }

    fn selected(&self) -> Option<&QueueConfig> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => 2,
            register::DEVICE_ID => self.device.device_type(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            register::QUEUE_SIZE_MAX => self.selected().map_or(0, |queue| queue.max().get().into()),
            register::QUEUE_READY => self.selected().is_some_and(|queue| queue.ready).into(),
            register::INTERRUPT_STATUS => {
                let driven = if self.status & status::DRIVER_OK != 0 { USED_RING } else { 0 };
                driven | if self.config_changed { CONFIG_CHANGE } else { 0 }
            }
            register::STATUS => self.status,
            // No shared memory regions: length and base read as all ones (virtio 1.3 §4.2.2.1).
            register::SHM_LENGTH_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    /// Lets the driver read what is so now.
    ///
    /// The generation comes last. A driver that reads while this goes on may have fields of two generations and see none
    /// of it change: no field that changes is of more than 32 bits, which are set at once, and an interrupt follows.
    fn publish(&self) {
        self.window.store_bytes(register::CONFIG, &self.config());
        for offset in READABLE {
            self.window.store(offset, self.read(offset));
        }
    }

    /// Whether the write was one that this state allows.
    fn write(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::DRIVER_FEATURES => return self.write_features(value),
            register::QUEUE_SELECT => self.queue_select = value,
            register::QUEUE_NOTIFY => return self.notify(value),
            register::INTERRUPT_ACK => self.config_changed &= value & CONFIG_CHANGE == 0,
            register::STATUS => return self.write_status(value),
            register::QUEUE_SIZE | register::QUEUE_READY | register::QUEUE_DESC_LOW..=register::QUEUE_DEVICE_HIGH => {
                return self.write_queue(offset, value);
            }
            _ => return false,
        }
        true
    }

    fn write_features(&mut self, value: u32) -> bool {
        if self.status & (status::DRIVER | status::FEATURES_OK) != status::DRIVER || self.driver_features_select > 1 {
            return false;
        }
        set_half(&mut self.driver_features, self.driver_features_select == 1, value);
        true
    }

    /// Queue registers can be written between `FEATURES_OK` and `DRIVER_OK` only. A driver that takes its queues down
    /// after a reset writes zero to `QueueReady`, which changes nothing.
    fn write_queue(&mut self, offset: u64, value: u32) -> bool {
        let open = self.status & (status::FEATURES_OK | status::DRIVER_OK) == status::FEATURES_OK;
        let index = usize::try_from(self.queue_select).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(index) else {
            return false;
        };
        if !open {
            return offset == register::QUEUE_READY && value == 0 && !queue.ready;
        }
        match offset {
            register::QUEUE_SIZE => queue.size = value,
            register::QUEUE_READY => queue.ready = value == 1,
            register::QUEUE_DESC_LOW => set_half(&mut queue.descriptors, false, value),
            register::QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, true, value),
            register::QUEUE_DRIVER_LOW => set_half(&mut queue.available, false, value),
            register::QUEUE_DRIVER_HIGH => set_half(&mut queue.available, true, value),
            register::QUEUE_DEVICE_LOW => set_half(&mut queue.used, false, value),
            register::QUEUE_DEVICE_HIGH => set_half(&mut queue.used, true, value),
            _ => return false,
        }
        true
    }

    /// A notification that did not come by ioeventfd: passed on by the same descriptor.
    fn notify(&mut self, queue: u32) -> bool {
        let kick = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue));
        kick.is_some_and(|kick| kick.write(1).is_ok())
    }

    fn write_status(&mut self, value: u32) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        // Bits are only ever added (virtio 1.3 §2.1.1); DEVICE_NEEDS_RESET is ours alone.
        let added = value & !self.status & !status::NEEDS_RESET;
        if self.status & !value & !status::NEEDS_RESET != 0 {
            return false;
        }
        self.status |= added & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if added & status::FEATURES_OK != 0 && self.features_acceptable() {
            self.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 {
            if self.status & status::FEATURES_OK == 0 {
                return false;
            }
            self.status |= status::DRIVER_OK;
            let result = self.start_session();
            self.settle(result);
        }
        true
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn start_session(&mut self) -> Result<(), DeviceError> {
        let mut session = self.new_session()?;
        self.device.activate(&mut session)?;
        self.begin(session)
    }

    /// What the driver has set up.
    fn new_session(&self) -> Result<Session, QueueError> {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        let queues = self.queues.iter().zip(&self.kicks).map(|(config, kick)| {
            let activate = || config.clone().activate(&self.memory, &self.interrupt, kick, event_idx);
            config.ready.then(activate).transpose()
        });
        let queues = queues.collect::<Result<Vec<_>, QueueError>>()?;
        Ok(Session {
            memory: Arc::clone(&self.memory),
            features: self.driver_features,
            queues,
            interrupt: self.interrupt.clone(),
        })
    }

    fn begin(&mut self, session: Session) -> Result<(), DeviceError> {
        self.session = Some(session);
        self.watch().map_err(|source| DeviceError::Host { what: "watching the device's descriptors", source })
    }

    fn watch(&self) -> std::io::Result<()> {
        let device = self.number;
        for (queue, kick) in (0..).zip(&self.kicks) {
            self.events.add(kick.as_raw_fd(), EventSet::IN, Token::Queue { device, queue })?;
        }
        for source in self.device.sources() {
            self.events.add(source.fd, source.events, Token::Device { device, source: source.id })?;
        }
        Ok(())
    }

    fn end_session(&mut self) {
        if let Some(mut session) = self.session.take() {
            for kick in &self.kicks {
                self.events.remove(kick.as_raw_fd());
            }
            for source in self.device.sources() {
                self.events.remove(source.fd);
            }
            self.device.reset(&mut session);
        }
    }

    fn reset(&mut self) {
        self.end_session();
        for kick in &self.kicks {
            // A stale notification would be served as soon as the next driver starts.
            let _ = kick.read();
        }
        self.queues = self.device.queue_sizes().iter().copied().map(QueueConfig::new).collect();
        // A change that nobody heard of is no news to the next driver.
        self.interrupt.take_change();
        self.config_changed = false;
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
    }

    fn state(&self) -> TransportState {
        let live = |number: usize| self.session.as_ref().and_then(|session| session.queues.get(number)?.as_ref());
        let queues = self.queues.iter().zip(&self.kicks).enumerate().map(|(number, (queue, kick))| {
            // Read to see whether there is one, and put back for this VM, which may go on.
            let notified = kick.read().is_ok() && kick.write(1).is_ok();
            QueueState {
                size: queue.size,
                ready: queue.ready,
                descriptors: queue.descriptors,
                available: queue.available,
                used: queue.used,
                notified,
                position: live(number).map(super::Queue::position),
            }
        });
        TransportState {
            device_type: self.device.device_type(),
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            status: self.status,
            interrupt_status: self.pending(),
            generation: self.generation,
            active: self.session.is_some(),
            queues: queues.collect(),
            config: self.config().into(),
            device: self.device.state(),
        }
    }

    /// Of what an interrupt may still be on its way.
    fn pending(&self) -> u32 {
        let unseen =
            self.session.iter().flat_map(|session| session.queues.iter().flatten()).any(|queue| !queue.is_seen());
        (if unseen { USED_RING } else { 0 }) | if self.config_changed { CONFIG_CHANGE } else { 0 }
    }

    fn config(&self) -> [u8; CONFIG_SIZE] {
        let mut config = [0; CONFIG_SIZE];
        self.device.read_config(0, &mut config);
        config
    }

    fn restore(&mut self, saved: &TransportState) -> Result<(), RestoreError> {
        let here = self.device.device_type();
        if saved.device_type != here {
            return Err(RestoreError::Type { found: saved.device_type, here });
        }
        if saved.queues.len() != self.queues.len() {
            return Err(RestoreError::Nonsense("it has another number of queues"));
        }
        let missing = saved.driver_features & !self.offered();
        if saved.status & status::FEATURES_OK != 0 && missing != 0 {
            return Err(RestoreError::Features { missing });
        }
        if saved.active
            && saved.status & (status::FEATURES_OK | status::DRIVER_OK) != status::FEATURES_OK | status::DRIVER_OK
        {
            return Err(RestoreError::Nonsense("it is at work without a driver"));
        }
        self.device_features_select = saved.device_features_select;
        self.driver_features_select = saved.driver_features_select;
        self.driver_features = saved.driver_features;
        self.queue_select = saved.queue_select;
        self.status = saved.status;
        for (queue, saved) in self.queues.iter_mut().zip(&saved.queues) {
            (queue.size, queue.ready) = (saved.size, saved.ready);
            (queue.descriptors, queue.available, queue.used) = (saved.descriptors, saved.available, saved.used);
        }
        self.generation = saved.generation;
        self.config_changed = saved.interrupt_status & CONFIG_CHANGE != 0;
        // The line's own edge may have been on its way.
        if saved.interrupt_status & (USED_RING | CONFIG_CHANGE) != 0 {
            self.interrupt.raise();
        }
        if saved.active {
            self.resume_session(saved)?;
        } else {
            self.device.restore(&saved.device, None)?;
        }
        if self.session.is_some() && self.config()[..] != saved.config {
            self.interrupt.config_change();
        }
        self.settle(Ok(()));
        self.publish();
        Ok(())
    }

    fn resume_session(&mut self, saved: &TransportState) -> Result<(), RestoreError> {
        let mut session = self.new_session().map_err(DeviceError::from)?;
        for (queue, saved) in session.queues.iter_mut().zip(&saved.queues) {
            match (queue, saved.position) {
                (Some(queue), Some(position)) => queue.set_position(position),
                (None, None) => {}
                _ => {
                    return Err(RestoreError::Nonsense(
                        "a queue is at work that is not ready, or ready and not at work",
                    ));
                }
            }
        }
        self.device.activate(&mut session)?;
        self.device.restore(&saved.device, Some(&mut session))?;
        self.begin(session)?;
        for (kick, _) in self.kicks.iter().zip(&saved.queues).filter(|(_, queue)| queue.notified) {
            // Fails only when the counter is full, and then the event is pending anyway.
            let _ = kick.write(1);
        }
        Ok(())
    }

    /// Tells the driver where a call of the device has changed its configuration. An error ends the session and asks the
    /// driver for a reset; the rest of the VM does not notice.
    fn settle(&mut self, result: Result<(), DeviceError>) {
        if let Err(error) = result {
            guest_warn(format_args!("{} device {} needs a reset: {error}", self.device.name(), self.number));
            self.end_session();
            self.status |= status::NEEDS_RESET;
            self.interrupt.config_change();
        }
        if self.interrupt.take_change() {
            self.generation = self.generation.wrapping_add(1);
            self.config_changed = true;
            self.publish();
            self.interrupt.raise();
        }
    }
}

#[cfg(test)]
#[path = "mmio_test.rs"]
mod tests;
