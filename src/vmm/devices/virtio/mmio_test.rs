// SPDX-License-Identifier: Apache-2.0

use super::super::QueueSize;
use super::*;
use crate::vmm::memory;
use proptest::prelude::*;

/// Counts what reaches it, and fails on demand.
struct Probe {
    events: Arc<AtomicU64>,
    resets: Arc<AtomicU64>,
}

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        42
    }
    fn name(&self) -> &str {
        "probe"
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &[QueueSize] {
        &[QueueSize::DEFAULT]
    }
    fn read_config(&self, offset: usize, data: &mut [u8]) {
        super::super::copy_config(&[1, 2, 3, 4, 5, 6], offset, data);
    }
    fn reset(&mut self, _session: &mut Session) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        self.events.fetch_add(1, Ordering::SeqCst);
        session.queue(queue)?.pop().map(drop).map_err(DeviceError::from)
    }
}

struct Fixture {
    transport: Transport,
    events: Arc<EventLoop>,
    seen: Arc<AtomicU64>,
    resets: Arc<AtomicU64>,
}

impl Fixture {
    fn new() -> Self {
        let (seen, resets) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let device = Box::new(Probe { events: Arc::clone(&seen), resets: Arc::clone(&resets) });
        let events = Arc::new(EventLoop::new().unwrap());
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let memory = memory::allocate(16 << 20).unwrap();
        let transport = Transport::new(device, 3, memory, Arc::clone(&events), interrupt).unwrap();
        Self { transport, events, seen, resets }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn ignored(&self) -> u64 {
        self.transport.ignored.load(Ordering::Relaxed)
    }

    fn negotiate(&self) {
        self.write(register::STATUS, 1);
        self.write(register::STATUS, 3);
        self.write(register::DRIVER_FEATURES_SELECT, 1);
        self.write(register::DRIVER_FEATURES, 1);
        self.write(register::STATUS, 11);
    }

    fn start(&self) {
        self.negotiate();
        self.write(register::QUEUE_SELECT, 0);
        self.write(register::QUEUE_SIZE, 16);
        for (register, address) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
            self.write(register, address);
        }
        self.write(register::QUEUE_READY, 1);
        self.write(register::STATUS, 15);
    }

    fn run_events(&self) {
        self.events
            .wait(0, |token, _| match token {
                Token::Queue { device: 3, queue } => self.transport.queue_event(queue),
                other => panic!("unexpected {other:?}"),
            })
            .unwrap();
    }
}

#[test]
fn a_driver_comes_up_and_is_served() {
    let fixture = Fixture::new();
    assert_eq!(fixture.read(register::MAGIC), 0x7472_6976);
    assert_eq!(fixture.read(register::VERSION), 2);
    assert_eq!(fixture.read(register::DEVICE_ID), 42);
    fixture.start();
    assert_eq!(fixture.read(register::STATUS), 15);
    fixture.write(register::QUEUE_NOTIFY, 0);
    fixture.run_events();
    assert_eq!(fixture.seen.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.ignored(), 0);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let fixture = Fixture::new();
    fixture.write(register::STATUS, 3);
    fixture.write(register::DRIVER_FEATURES, 1 << 6);
    fixture.write(register::STATUS, 11);
    assert_eq!(fixture.read(register::STATUS), 3);
}

#[test]
fn a_legacy_driver_is_refused() {
    let fixture = Fixture::new();
    fixture.write(register::STATUS, 3);
    fixture.write(register::STATUS, 11);
    assert_eq!(fixture.read(register::STATUS), 3);
}

#[test]
fn a_live_queue_cannot_be_reconfigured() {
    let fixture = Fixture::new();
    fixture.start();
    for offset in [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        fixture.write(offset, 0xffff_fff0);
    }
    assert_eq!(fixture.ignored(), 8);
    fixture.write(register::QUEUE_NOTIFY, 0);
    fixture.run_events();
    assert_eq!(fixture.read(register::STATUS), 15);
}

#[test]
fn bad_rings_end_in_needs_reset_and_a_reset_mends_it() {
    let fixture = Fixture::new();
    fixture.negotiate();
    fixture.write(register::QUEUE_DESC_HIGH, 0xffff_ffff);
    fixture.write(register::QUEUE_READY, 1);
    fixture.write(register::STATUS, 15);
    assert_eq!(fixture.read(register::STATUS), 15 | status::NEEDS_RESET);
    assert_eq!(fixture.read(register::INTERRUPT_STATUS), 2);
    fixture.write(register::STATUS, 0);
    assert_eq!(fixture.read(register::STATUS), 0);
    fixture.start();
    assert_eq!(fixture.read(register::STATUS), 15);
}

#[test]
fn a_reset_ends_the_session_once() {
    let fixture = Fixture::new();
    fixture.start();
    fixture.write(register::QUEUE_NOTIFY, 0);
    fixture.write(register::STATUS, 0);
    fixture.write(register::STATUS, 0);
    fixture.run_events();
    assert_eq!(fixture.resets.load(Ordering::SeqCst), 1);
    assert_eq!(fixture.seen.load(Ordering::SeqCst), 0);
}

#[test]
fn configuration_is_read_at_any_width_and_ends() {
    let fixture = Fixture::new();
    let mut data = [0; 8];
    fixture.transport.read(register::CONFIG + 2, &mut data);
    assert_eq!(data, [3, 4, 5, 6, 0, 0, 0, 0]);
}

proptest! {
    /// No sequence of register accesses panics, hangs, or reaches the device without a session.
    #[test]
    fn arbitrary_accesses_are_safe(
        accesses in prop::collection::vec((0u64..0x110, prop::collection::vec(any::<u8>(), 1..9), any::<bool>()), 1..200),
        started in any::<bool>(),
    ) {
        let fixture = Fixture::new();
        if started {
            fixture.start();
        }
        for (offset, mut data, write) in accesses {
            if write {
                fixture.transport.write(offset, &data);
            } else {
                fixture.transport.read(offset, &mut data);
            }
            fixture.run_events();
        }
        fixture.write(register::STATUS, 0);
        prop_assert_eq!(fixture.read(register::STATUS), 0);
    }
}
