// SPDX-License-Identifier: Apache-2.0

use super::super::{DeviceState, QueueSize, Windows};
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
        Self::offering(true)
    }

    fn offering(indirect: bool) -> Self {
        let (seen, resets) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let device = Box::new(Probe { events: Arc::clone(&seen), resets: Arc::clone(&resets) });
        let events = Arc::new(EventLoop::new().unwrap());
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let memory = memory::allocate(16 << 20).unwrap();
        let window = Windows::new(1).unwrap().window(0);
        let transport = Transport::new(device, 3, memory, Arc::clone(&events), interrupt, window, indirect).unwrap();
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
fn indirect_tables_are_offered_where_they_are_of_use() {
    for indirect in [false, true] {
        let fixture = Fixture::offering(indirect);
        assert_eq!(fixture.read(register::DEVICE_FEATURES) >> VIRTIO_RING_F_INDIRECT_DESC & 1, u32::from(indirect));
    }
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
    assert_eq!(fixture.read(register::INTERRUPT_STATUS), 3);
    fixture.write(register::INTERRUPT_ACK, 1);
    assert_eq!(fixture.read(register::INTERRUPT_STATUS), 3);
    fixture.write(register::INTERRUPT_ACK, 3);
    assert_eq!(fixture.read(register::INTERRUPT_STATUS), 1);
    fixture.write(register::STATUS, 0);
    assert_eq!(fixture.read(register::INTERRUPT_STATUS), 0);
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
fn what_a_driver_reads_is_memory() {
    let fixture = Fixture::new();
    let window = fixture.transport.window.clone();
    let read = |offset| {
        let mut data = [0; 4];
        window.load(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((read(register::MAGIC), read(register::DEVICE_ID), read(register::STATUS)), (0x7472_6976, 42, 0));
    // What is selected is read at once.
    assert_eq!(read(register::DEVICE_FEATURES), 1 << 5 | 3 << 28);
    fixture.write(register::DEVICE_FEATURES_SELECT, 1);
    assert_eq!(read(register::DEVICE_FEATURES), 1);
    assert_eq!(read(register::QUEUE_SIZE_MAX), 256);
    fixture.write(register::QUEUE_SELECT, 1);
    assert_eq!(read(register::QUEUE_SIZE_MAX), 0);
    fixture.start();
    assert_eq!((read(register::STATUS), read(register::QUEUE_READY), read(register::INTERRUPT_STATUS)), (15, 1, 1));
    // A change is there to be read when its interrupt comes.
    fixture.transport.interrupt().config_change();
    assert!(fixture.transport.interrupt().line().read().is_err());
    fixture.write(register::QUEUE_NOTIFY, 0);
    fixture.run_events();
    assert!(fixture.transport.interrupt().line().read().is_ok());
    assert_eq!((read(register::CONFIG_GENERATION), read(register::INTERRUPT_STATUS)), (1, 3));
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

#[test]
fn a_device_goes_on_where_another_rested() {
    let before = Fixture::new();
    before.start();
    before.write(register::QUEUE_NOTIFY, 0);
    before.transport.interrupt().raise();
    let saved = before.transport.rest();
    assert!(saved.active && saved.queues[0].notified);
    // What was read to be written down is still there.
    before.run_events();
    assert_eq!(before.seen.load(Ordering::SeqCst), 1);

    let after = Fixture::new();
    after.transport.restore(&saved).unwrap();
    assert_eq!(after.transport.rest(), saved);
    assert_eq!((after.read(register::STATUS), after.read(register::INTERRUPT_STATUS)), (15, 1));
    assert!(after.transport.interrupt().line().read().is_ok(), "an interrupt that was pending is raised");
    after.run_events();
    assert_eq!(after.seen.load(Ordering::SeqCst), 1, "a notification that was pending is served");
}

#[test]
fn a_device_that_is_another_now_says_so() {
    let before = Fixture::new();
    before.start();
    let good = before.transport.rest();
    let refused = |change: &dyn Fn(&mut TransportState)| {
        let mut saved = good.clone();
        change(&mut saved);
        Fixture::new().transport.restore(&saved).unwrap_err()
    };
    assert!(matches!(refused(&|saved| saved.device_type = 2), RestoreError::Type { found: 2, here: 42 }));
    assert!(matches!(refused(&|saved| saved.driver_features |= 1 << 9), RestoreError::Features { missing: 0x200 }));
    assert!(matches!(refused(&|saved| saved.queues.clear()), RestoreError::Nonsense(_)));
    assert!(matches!(refused(&|saved| saved.status = 1), RestoreError::Nonsense(_)));
    assert!(matches!(refused(&|saved| saved.queues[0].position = None), RestoreError::Nonsense(_)));
    assert!(matches!(refused(&|saved| saved.queues[0].used = 1), RestoreError::Device(_)));
    assert!(matches!(refused(&|saved| saved.queues[0].size = 3), RestoreError::Device(_)));
    assert!(matches!(
        refused(&|saved| saved.device = DeviceState::Block { write_through: true, disk: None }),
        RestoreError::Nonsense(_)
    ));
    // Another configuration is no mistake, and news for the driver.
    let (after, mut saved) = (Fixture::new(), good);
    saved.config[0] = 9;
    after.transport.restore(&saved).unwrap();
    assert_eq!(after.read(register::INTERRUPT_STATUS), 3);
    assert_eq!(after.read(register::CONFIG_GENERATION), saved.generation + 1);
}

proptest! {
    /// Whatever a state says, there is an error or a device that bears all that a driver does next.
    #[test]
    fn any_state_is_taken_or_refused(
        registers in any::<(u32, u32, u32, u32, bool)>(),
        features in any::<u64>(),
        near in any::<bool>(),
        queue in any::<(u32, bool, bool, u64, u64, u64)>(),
        indices in any::<(u16, u16, u16)>(),
    ) {
        let fixture = Fixture::new();
        fixture.start();
        let mut saved = fixture.transport.rest();
        let (size, ready, notified, descriptors, available, used) = queue;
        saved.queues[0].notified = notified;
        saved.queues[0].position = serde_json::from_value(serde_json::json!({
            "available": indices.0, "used": indices.1, "signalled": indices.2,
        })).ok();
        if !near {
            (saved.queue_select, saved.status, saved.interrupt_status, saved.generation, saved.active) = registers;
            (saved.queues[0].size, saved.queues[0].ready, saved.driver_features) = (size, ready, features);
            (saved.queues[0].descriptors, saved.queues[0].available, saved.queues[0].used) = (descriptors, available, used);
        }
        let after = Fixture::new();
        let outcome = after.transport.restore(&saved);
        prop_assert!(!near || outcome.is_ok(), "{outcome:?}");
        after.write(register::QUEUE_NOTIFY, 0);
        after.run_events();
        after.write(register::STATUS, 0);
        after.start();
        prop_assert_eq!(after.read(register::STATUS), 15);
    }
}
