// SPDX-License-Identifier: Apache-2.0
//! Virtqueues (virtio 1.3 §2.7). Registers fill a [`QueueConfig`]; activation consumes it into a [`Queue`], which has
//! no way back: what the driver writes to the registers afterwards cannot reach a live queue.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue as Ring, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::super::memory::Ram;
use super::chain::{Chain, ChainError};
use super::interrupt::Interrupt;
use super::walk::Walk;

/// A queue size that virtio allows: a power of two from 1 to 32768 (virtio 1.3 §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueSize(u16);

impl QueueSize {
    /// The usual size of a busy queue.
    pub const DEFAULT: Self = Self::new(256).unwrap();

    /// `size`, where it is allowed.
    pub const fn new(size: u16) -> Option<Self> {
        if size.is_power_of_two() { Some(Self(size)) } else { None }
    }

    /// Number of descriptors.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Why a queue is unusable.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The size that the driver wrote is no power of two, zero, or more than offered.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// What the driver wrote.
        size: u32,
        /// What was offered.
        max: u16,
    },
    /// Rings that are not aligned, not in RAM, or run past its end.
    #[error(
        "rings outside of RAM or not aligned: descriptors at {descriptors:#x}, available {available:#x}, used {used:#x}"
    )]
    Rings {
        /// Guest address of the descriptor table.
        descriptors: u64,
        /// Guest address of the available ring.
        available: u64,
        /// Guest address of the used ring.
        used: u64,
    },
    /// The rings hold nonsense.
    #[error("broken ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A chain in the ring is malformed.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A queue's registers before activation, written by the driver in any order and not trusted until then.
#[derive(Clone, Debug)]
pub struct QueueConfig {
    max: QueueSize,
    /// `QueueNum`.
    pub size: u32,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`.
    pub descriptors: u64,
    /// `QueueDriver`.
    pub available: u64,
    /// `QueueDevice`.
    pub used: u64,
}

impl QueueConfig {
    /// Registers at reset.
    pub fn new(max: QueueSize) -> Self {
        Self { max, size: max.get().into(), ready: false, descriptors: 0, available: 0, used: 0 }
    }

    /// Largest size offered.
    pub fn max(&self) -> QueueSize {
        self.max
    }

    /// Checks everything once and makes the queue live; `kick` is what the driver's notifications arrive on.
    ///
    /// # Errors
    /// See [`QueueError::Size`] and [`QueueError::Rings`].
    pub fn activate(
        self,
        memory: &Arc<Ram>,
        interrupt: &Interrupt,
        kick: &Arc<EventFd>,
        event_idx: bool,
    ) -> Result<Queue, QueueError> {
        let bad_size = QueueError::Size { size: self.size, max: self.max.get() };
        let Some(size) = u16::try_from(self.size).ok().and_then(QueueSize::new).filter(|size| *size <= self.max) else {
            return Err(bad_size);
        };
        let bad_rings =
            || QueueError::Rings { descriptors: self.descriptors, available: self.available, used: self.used };
        let mut ring = Ring::new(self.max.get())?;
        ring.try_set_size(size.get())?;
        ring.try_set_desc_table_address(GuestAddress(self.descriptors)).map_err(|_| bad_rings())?;
        ring.try_set_avail_ring_address(GuestAddress(self.available)).map_err(|_| bad_rings())?;
        ring.try_set_used_ring_address(GuestAddress(self.used)).map_err(|_| bad_rings())?;
        ring.set_event_idx(event_idx);
        ring.set_ready(true);
        if !ring.is_valid(memory.as_ref()) {
            return Err(bad_rings());
        }
        let (memory, interrupt, kick) = (Arc::clone(memory), interrupt.clone(), Arc::clone(kick));
        Ok(Queue { ring, size, memory, interrupt, kick, signalled: 0 })
    }
}

/// Where the rings of a live queue are.
#[derive(Clone, Copy, Debug)]
pub struct Rings {
    /// Number of descriptors.
    pub size: QueueSize,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

/// Where a device is in the rings of a live queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Available index of the next chain to take.
    available: u16,
    /// Used index of the next chain to give back.
    used: u16,
    /// The used index when the driver was last told.
    signalled: u16,
}

/// A live virtqueue.
pub struct Queue {
    ring: Ring,
    size: QueueSize,
    memory: Arc<Ram>,
    interrupt: Interrupt,
    kick: Arc<EventFd>,
    /// The used index when the driver was last told, or found not to want it.
    signalled: u16,
}

impl Queue {
    /// Number of descriptors.
    pub fn size(&self) -> QueueSize {
        self.size
    }

    /// Where its rings are, for whoever serves it in another process.
    pub fn rings(&self) -> Rings {
        let (descriptors, available) = (self.ring.desc_table(), self.ring.avail_ring());
        Rings { size: self.size, descriptors, available, used: self.ring.used_ring() }
    }

    /// Goes on where another process has left off: `available` chains have been taken, `used` given back.
    pub fn resume(&mut self, available: u16, used: u16) {
        self.ring.set_next_avail(available);
        self.ring.set_next_used(used);
        self.signalled = used;
    }

    /// The chain with this head, which another process has taken and not given back.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn taken(&self, head: u16) -> Result<Chain, QueueError> {
        Ok(Chain::copy(
            &self.memory,
            head,
            Walk::new(&self.memory, self.ring.desc_table(), self.size, head),
            self.size,
        )?)
    }

    /// Where the device is in it.
    pub fn position(&self) -> Position {
        Position { available: self.ring.next_avail(), used: self.ring.next_used(), signalled: self.signalled }
    }

    /// Goes on from where another device was. A position that the rings do not bear out is the same as a driver's
    /// mistake, and found as that is.
    pub fn set_position(&mut self, position: Position) {
        self.ring.set_next_avail(position.available);
        self.ring.set_next_used(position.used);
        self.signalled = position.signalled;
    }

    /// Takes the next chain that the driver made available, checked whole and copied once.
    ///
    /// # Errors
    /// The driver's ring or chain is broken; the device needs a reset.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let Some(descriptors) = self.ring.iter(self.memory.as_ref())?.next() else {
            return Ok(None);
        };
        Ok(Some(Chain::copy(&self.memory, descriptors.head_index(), descriptors, self.size)?))
    }

    /// Takes as many as `count` chains at once, as [`Queue::pop`] takes one, and appends them to `chains`.
    ///
    /// # Errors
    /// As [`Queue::pop`].
    pub fn pop_into(&mut self, chains: &mut Vec<Chain>, count: usize) -> Result<(), QueueError> {
        for descriptors in self.ring.iter(self.memory.as_ref())?.take(count) {
            chains.push(Chain::copy(&self.memory, descriptors.head_index(), descriptors, self.size)?);
        }
        Ok(())
    }

    /// How many chains the driver has made available that have not been taken.
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub fn waiting(&self) -> Result<u16, QueueError> {
        let available = self.ring.avail_idx(self.memory.as_ref(), Ordering::Acquire)?.0;
        Ok(available.wrapping_sub(self.ring.next_avail()))
    }

    /// Puts the chain that was popped last back: the next [`Queue::pop`] gives it again.
    pub fn undo_pop(&mut self) {
        self.ring.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with `written` bytes filled in its writable part.
    ///
    /// # Errors
    /// The used ring cannot be written.
    pub fn push(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        Ok(self.ring.add_used(self.memory.as_ref(), head, written)?)
    }

    /// Gives several chains back at once, each `(head, bytes written)`: the driver sees all of them or none.
    ///
    /// # Errors
    /// As [`Queue::push`].
    pub fn push_batch(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some((&(last, last_written), others)) = chains.split_last() else { return Ok(()) };
        let mut next = self.ring.next_used();
        for &(head, written) in others {
            let element = (u64::from(head) | u64::from(written) << 32).to_le();
            let place = self.ring.used_ring() + 4 + 8 * u64::from(next % self.size.get());
            self.memory.write_obj(element, GuestAddress(place)).map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        // Pushing the last one publishes the index past all of them.
        self.ring.set_next_used(next);
        self.push(last, last_written)
    }

    /// Interrupts the driver, where it wants to hear of what has been pushed since the last call.
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub fn notify_driver(&mut self) -> Result<(), QueueError> {
        self.interrupt_driver().map(drop)
    }

    /// [`notify_driver`](Self::notify_driver); `true` where the driver was interrupted. It then looks at all queues.
    ///
    /// # Errors
    /// The available ring cannot be read.
    pub fn interrupt_driver(&mut self) -> Result<bool, QueueError> {
        let wanted = self.driver_wants_notification()?;
        if wanted {
            self.interrupt.raise();
        }
        Ok(wanted)
    }

    /// Chains that were pushed since the driver was last told.
    pub fn untold(&self) -> u16 {
        self.ring.next_used().wrapping_sub(self.signalled)
    }

    /// Takes the driver to know of all that was pushed: an interrupt for another queue of the device has told it.
    pub fn mark_told(&mut self) {
        self.signalled = self.ring.next_used();
    }

    /// Virtio 1.3 §2.7.7.2. Not the ring's own `needs_notification`, which miscounts batches and ignores the flag.
    fn driver_wants_notification(&mut self) -> Result<bool, QueueError> {
        let used = self.ring.next_used();
        let added = used.wrapping_sub(std::mem::replace(&mut self.signalled, used));
        if added == 0 {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read, or both sides wait for each other.
        fence(Ordering::SeqCst);
        let wish = self.drivers_wish()?;
        if self.ring.event_idx_enabled() {
            Ok(used.wrapping_sub(wish).wrapping_sub(1) < added)
        } else {
            Ok(u32::from(wish) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// `used_event` where there are event indices, else the flags (virtio 1.3 §2.7.6).
    fn drivers_wish(&self) -> Result<u16, QueueError> {
        let offset = if self.ring.event_idx_enabled() { 4 + 2 * u64::from(self.size.get()) } else { 0 };
        let place = GuestAddress(self.ring.avail_ring() + offset);
        let load = self.memory.load(place, Ordering::Relaxed).map_err(virtio_queue::Error::GuestMemory);
        Ok(u16::from_le(load?))
    }

    /// Whether the driver has seen all that was given back, and says so by waiting for the next. Without event indices it
    /// says nothing.
    pub fn is_seen(&self) -> bool {
        self.ring.event_idx_enabled() && self.drivers_wish().is_ok_and(|wish| wish == self.ring.next_used())
    }

    /// Asks the driver to notify of new chains; `true` where some have come in the meantime.
    ///
    /// # Errors
    /// The rings cannot be reached.
    pub fn enable_notification(&mut self) -> Result<bool, QueueError> {
        Ok(self.ring.enable_notification(self.memory.as_ref())?)
    }

    /// Asks the driver not to notify while the queue is being worked on.
    ///
    /// # Errors
    /// The rings cannot be reached.
    pub fn disable_notification(&mut self) -> Result<(), QueueError> {
        Ok(self.ring.disable_notification(self.memory.as_ref())?)
    }

    /// Has the event loop call `queue_event` again, as if the driver had notified: for work that is put off.
    pub fn reschedule(&self) {
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.kick.write(1);
    }

    /// Handles every available chain with `handle`, which gives the bytes written, pushes each and notifies once.
    ///
    /// At most two rounds of the queue's size are served at a time, so that a driver that refills while it is served
    /// cannot hold the thread; the rest comes with a later event.
    ///
    /// # Errors
    /// What `handle` or the ring gives.
    pub fn serve<E: From<QueueError>>(&mut self, mut handle: impl FnMut(&Chain) -> Result<u32, E>) -> Result<(), E> {
        let mut budget = 2 * u32::from(self.size.get());
        loop {
            self.disable_notification()?;
            while let Some(chain) = self.pop()? {
                let written = handle(&chain)?;
                self.push(chain.head(), written)?;
                budget -= 1;
                if budget == 0 {
                    self.notify_driver()?;
                    self.reschedule();
                    return Ok(());
                }
            }
            if !self.enable_notification()? {
                self.notify_driver()?;
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeDriver;
    use super::*;

    #[test]
    fn sizes_are_powers_of_two() {
        for size in [0u16, 3, 100, 32769] {
            assert!(QueueSize::new(size).is_none(), "{size}");
        }
        assert_eq!(QueueSize::new(32768).map(QueueSize::get), Some(32768));
    }

    #[test]
    fn a_bad_size_or_place_is_refused_at_activation() {
        let driver = FakeDriver::new(8);
        for size in [0, 3, 16, 0x1_0008] {
            let config = QueueConfig { size, ..driver.config() };
            assert!(matches!(driver.activate(config), Err(QueueError::Size { .. })), "{size}");
        }
        for address in [1, !0xf, driver.memory_size() - 16, driver.memory_size()] {
            let config = QueueConfig { descriptors: address, ..driver.config() };
            assert!(matches!(driver.activate(config), Err(QueueError::Rings { .. })), "{address:#x}");
        }
    }

    #[test]
    fn indices_wrap() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        for round in 0..70_000u32 {
            let head = driver.add(&[(0x10_000, 16, false)]);
            let chain = queue.pop().unwrap().unwrap();
            assert_eq!(chain.head(), head);
            queue.push(head, round).unwrap();
            assert_eq!(driver.used(), Some((head.into(), round)));
        }
        assert!(queue.pop().unwrap().is_none());
    }

    #[test]
    fn an_available_index_too_far_ahead_is_an_error() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        driver.set_available_index(9);
        assert!(matches!(queue.pop(), Err(QueueError::Ring(_))));
    }

    #[test]
    fn a_batch_becomes_visible_at_once_and_wraps() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        for round in 0..30_000u32 {
            let heads: Vec<_> = (0..5).map(|_| driver.add(&[(0x10_000, 16, true)])).collect();
            let chains: Vec<_> = heads.iter().map(|_| queue.pop().unwrap().unwrap()).collect();
            let used: Vec<_> = chains.iter().map(|chain| (chain.head(), round)).collect();
            queue.push_batch(&used).unwrap();
            for head in heads {
                assert_eq!(driver.used(), Some((head.into(), round)));
            }
            assert_eq!(driver.used(), None);
        }
        queue.push_batch(&[]).unwrap();
        assert_eq!(driver.used(), None);
    }

    #[test]
    fn the_driver_is_interrupted_only_as_it_wishes() {
        let driver = FakeDriver::new(8);
        let batch = [(0, 0), (1, 0), (2, 0)];
        let raised = |driver: &FakeDriver| driver.interrupt().line().read().is_ok();
        let base = driver.config().available;
        let kick = Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let mut queue = driver.config().activate(driver.memory(), driver.interrupt(), &kick, true).unwrap();
        // Event index: (what the driver asks to be told of, whether the next three pass it).
        for (event, wanted) in [(0u16, true), (3, true), (9, false), (9, true), (11, false), (15, true)] {
            driver.write(base + 4 + 2 * 8, &event.to_le_bytes());
            queue.push_batch(&batch).unwrap();
            queue.notify_driver().unwrap();
            assert_eq!(raised(&driver), wanted, "{event}");
            queue.notify_driver().unwrap();
            assert!(!raised(&driver), "nothing new: {event}");
            // It has seen all where it waits for the next.
            assert_eq!(queue.is_seen(), event == queue.position().used, "{event}");
            driver.write(base + 4 + 2 * 8, &queue.position().used.to_le_bytes());
            assert!(queue.is_seen(), "{event}");
        }
        let mut plain = driver.queue();
        assert!(!plain.is_seen(), "it cannot say so");
        for (flag, wanted) in [(0u16, true), (1, false), (0, true)] {
            driver.write(base, &flag.to_le_bytes());
            plain.push_batch(&batch).unwrap();
            plain.notify_driver().unwrap();
            assert_eq!(raised(&driver), wanted, "flag {flag}");
        }
    }

    #[test]
    fn serving_is_bounded_when_the_driver_refills() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        driver.add(&[(0x10_000, 16, false)]);
        let mut served = 0;
        queue
            .serve(|_| {
                served += 1;
                driver.add(&[(0x10_000, 16, false)]);
                Ok::<_, QueueError>(0)
            })
            .unwrap();
        assert_eq!(served, 16);
        assert_eq!(driver.kick().read().unwrap(), 1);
    }
}
