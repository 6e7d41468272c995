// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::MetadataExt;

use super::super::testing::FakeDriver;
use super::*;
use proptest::prelude::*;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const ALL: u64 =
    1 << feature::STATS_VQ | 1 << feature::DEFLATE_ON_OOM | 1 << feature::PAGE_POISON | 1 << feature::PAGE_REPORTING;
/// Above the rings of all queues.
const FREE: u64 = 0x40_0000;
const LIST: u64 = 0x10_0000;

struct Bench {
    balloon: Balloon,
    handle: BalloonHandle,
    session: Session,
    drivers: Vec<FakeDriver>,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (mut balloon, handle) = Balloon::new(16 << 20).unwrap();
        let (session, drivers) = FakeDriver::attach(&mut balloon, features).unwrap();
        // Rings and lists take their pages now, so that counts of pages are exact.
        for place in (0..0x2_0000).step_by(4096).chain([LIST]) {
            drivers[0].write(place, &[0; 4096]);
        }
        Self { balloon, handle, session, drivers }
    }

    /// KiB that the guest's memory takes on the host.
    fn host_kib(&self) -> u64 {
        let region = self.session.memory.iter().next().unwrap();
        region.file_offset().unwrap().file().metadata().unwrap().blocks() / 2
    }

    fn serve(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.balloon.queue_event(queue, &mut self.session)
    }

    fn send_pages(&mut self, queue: usize, pages: &[u32]) -> Result<(), DeviceError> {
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.drivers[queue].write(LIST, &list);
        let length = u32::try_from(list.len()).unwrap();
        self.drivers[queue].add(&[(LIST, length, false)]);
        self.serve(queue)
    }

    fn metric(&self, name: &str) -> u64 {
        self.balloon.metrics().iter().find(|(other, _)| *other == name).unwrap().1
    }

    /// Whether there is a change for the driver.
    fn wake(&mut self) -> bool {
        self.drivers[0].interrupt().take_change();
        self.balloon.source_event(0, EventSet::IN, &mut self.session).unwrap();
        self.drivers[0].interrupt().take_change()
    }

    fn config(&self, offset: usize) -> u32 {
        let mut data = [0; 4];
        self.balloon.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }
}

#[test]
fn inflated_pages_leave_the_host_and_come_back_empty() {
    let mut bench = Bench::new(ALL);
    bench.drivers[0].write(FREE, &vec![0xaa; 1 << 20]);
    let before = bench.host_kib();
    // Out of order, doubled, and with a gap at page 10.
    let first = u32::try_from(FREE >> 12).unwrap();
    let mut pages: Vec<u32> = (0..256).filter(|page| *page != 10).map(|page| first + page).rev().collect();
    pages.push(first + 3);
    bench.send_pages(INFLATE, &pages).unwrap();
    assert_eq!(bench.drivers[INFLATE].used(), Some((0, 0)));
    assert_eq!(bench.host_kib(), before - 255 * 4);
    assert_eq!(bench.drivers[0].read(FREE, 4096), [0; 4096]);
    assert_eq!(bench.drivers[0].read(FREE + 10 * 4096, 4096), [0xaa; 4096]);
    assert_eq!(bench.metric("inflated_pages"), 256);
    assert_eq!(bench.metric("discard_failures"), 0);

    bench.send_pages(DEFLATE, &pages).unwrap();
    assert_eq!(bench.metric("deflated_pages"), 256);
    bench.drivers[0].write(FREE, &[1; 4096]);
    assert_eq!(bench.drivers[0].read(FREE, 4096), [1; 4096]);
}

#[test]
fn pages_outside_of_ram_are_the_drivers_error() {
    for page in [4096, 4097, u32::MAX] {
        let mut bench = Bench::new(ALL);
        let error = bench.send_pages(INFLATE, &[page]).unwrap_err();
        assert!(matches!(error, DeviceError::Driver(_)), "{error}");
    }
    // A run that begins in RAM and leaves it.
    let error = Bench::new(ALL).send_pages(INFLATE, &[4094, 4095, 4096]).unwrap_err();
    assert!(matches!(error, DeviceError::Driver(_)), "{error}");
}

#[test]
fn lists_that_are_too_long_or_cut_are_refused() {
    for length in [2, 7, 4 * 1024 + 4] {
        let mut bench = Bench::new(ALL);
        bench.drivers[INFLATE].add(&[(LIST, length, false)]);
        assert!(matches!(bench.serve(INFLATE), Err(DeviceError::Driver(_))), "{length}");
    }
    let mut bench = Bench::new(ALL);
    bench.drivers[INFLATE].add(&[(LIST, 4 * 1024, false)]);
    bench.serve(INFLATE).unwrap();
}

#[test]
fn the_target_reaches_the_driver_once_for_each_change() {
    let mut bench = Bench::new(ALL);
    assert!(!bench.wake());
    bench.handle.set_target_mib(3).unwrap();
    assert!(bench.wake());
    assert!(!bench.wake());
    assert_eq!((bench.config(0), bench.config(4)), (768, 0));
    bench.balloon.write_config(4, &768u32.to_le_bytes(), None);
    assert_eq!((bench.handle.target_mib(), bench.handle.actual_mib(), bench.config(4)), (3, 3, 768));
    bench.handle.set_target_mib(3).unwrap();
    assert!(bench.wake());
    let error = bench.handle.set_target_mib(17).unwrap_err();
    assert_eq!(error, TargetError { asked_mib: 17, memory_mib: 16 });
    assert_eq!(error.to_string(), "a balloon of 17 MiB is more than the guest's 16 MiB of memory");
    assert_eq!(bench.handle.target_mib(), 3);
}

#[test]
fn statistics_come_on_request() {
    let mut bench = Bench::new(ALL);
    let send = |bench: &mut Bench, free: u64| {
        let mut entries = Vec::new();
        for (tag, value) in [(4u16, free), (5, 16 << 20), (9, 1), (77, 5)] {
            entries.extend_from_slice(&tag.to_le_bytes());
            entries.extend_from_slice(&value.to_le_bytes());
        }
        // Half an entry at the end is not read.
        entries.extend_from_slice(&[0; 5]);
        bench.drivers[STATISTICS].write(LIST, &entries);
        let head = bench.drivers[STATISTICS].add(&[(LIST, 45, false)]);
        bench.serve(STATISTICS).unwrap();
        head
    };
    assert_eq!(bench.handle.statistics(), None);
    let head = send(&mut bench, 1 << 20);
    let statistics = bench.handle.statistics().unwrap();
    assert!(statistics.at_ns > 0);
    let expected = Statistics {
        at_ns: statistics.at_ns,
        free: Some(1 << 20),
        total: Some(16 << 20),
        huge_page_failures: Some(1),
        ..Statistics::default()
    };
    assert_eq!(statistics, expected);
    assert_eq!(bench.drivers[STATISTICS].used(), None, "the buffer is kept until somebody asks");

    bench.handle.request_statistics();
    bench.wake();
    assert_eq!(bench.drivers[STATISTICS].used(), Some((head.into(), 0)));
    bench.handle.request_statistics();
    bench.wake();
    assert_eq!(bench.drivers[STATISTICS].used(), None, "there is no buffer to ask with");
    send(&mut bench, 2 << 20);
    assert_eq!(bench.handle.statistics().unwrap().free, Some(2 << 20));
}

#[test]
fn a_driver_with_two_statistics_buffers_gets_one_back() {
    let mut bench = Bench::new(ALL);
    bench.drivers[STATISTICS].add(&[(LIST, 10, false)]);
    bench.drivers[STATISTICS].add(&[(LIST, 10, false)]);
    bench.serve(STATISTICS).unwrap();
    assert_eq!(bench.drivers[STATISTICS].used(), Some((0, 0)));
    assert_eq!(bench.drivers[STATISTICS].used(), None);
}

#[test]
fn reported_pages_leave_the_host_whatever_the_queues_number() {
    // As Linux numbers them without and with statistics, and as the specification does.
    for (features, queue) in [(ALL & !(1 << feature::STATS_VQ), 2), (ALL, 3), (ALL, 4)] {
        let mut bench = Bench::new(features);
        bench.drivers[queue].write(FREE, &vec![0xaa; 4 << 20]);
        let before = bench.host_kib();
        let last = FREE + (3 << 20) + 100;
        bench.drivers[queue].add(&[(FREE, 2 << 20, true), (last, 8192, true)]);
        bench.serve(queue).unwrap();
        assert_eq!(bench.drivers[queue].used(), Some((0, 0)));
        assert_eq!(bench.host_kib(), before - 2048 - 4, "queue {queue}");
        assert_eq!(bench.metric("reported_bytes"), (2 << 20) + 4096);
        assert_eq!(bench.drivers[queue].read(last, 100), [0xaa; 100], "a page that was reported in part stays");
    }
}

#[test]
fn poisoned_pages_stay() {
    let mut bench = Bench::new(ALL);
    bench.balloon.write_config(12, &0xaaaa_aaaau32.to_le_bytes(), None);
    bench.drivers[3].write(FREE, &[0xaa; 4096]);
    bench.drivers[3].add(&[(FREE, 4096, true)]);
    bench.serve(3).unwrap();
    assert_eq!(bench.drivers[3].read(FREE, 4096), [0xaa; 4096]);
    assert_eq!(bench.metric("reported_bytes"), 0);
}

#[test]
fn features_that_were_not_agreed_on_have_no_queues() {
    let mut bench = Bench::new(0);
    for queue in [2, 3, 4, 5] {
        assert!(matches!(bench.serve(queue), Err(DeviceError::Driver(_))), "{queue}");
    }
}

#[test]
fn a_reset_forgets_what_the_driver_said() {
    let mut bench = Bench::new(ALL);
    bench.handle.set_target_mib(2).unwrap();
    bench.balloon.write_config(4, &512u32.to_le_bytes(), None);
    bench.balloon.write_config(12, &1u32.to_le_bytes(), None);
    bench.drivers[STATISTICS].add(&[(LIST, 10, false)]);
    bench.serve(STATISTICS).unwrap();
    bench.balloon.reset(&mut bench.session);
    assert_eq!([0, 4, 8, 12].map(|offset| bench.config(offset)), [512, 0, 0, 0]);
    assert_eq!(bench.handle.statistics(), None);
    // The old buffer is not given to the next driver.
    bench.handle.request_statistics();
    bench.wake();
    assert_eq!(bench.drivers[STATISTICS].used(), None);
}

proptest! {
    /// Whatever the driver sends, the device ends each event, and pages it was not told of keep their content.
    #[test]
    fn any_requests_are_safe(
        features in prop::sample::select(vec![0, ALL, ALL & !(1 << feature::STATS_VQ), 1 << feature::STATS_VQ]),
        requests in prop::collection::vec(
            (0usize..6, prop::collection::vec((any::<bool>(), FREE - 0x1000..0x120_0000, 0u32..0x3000), 1..6)),
            1..20,
        ),
        pages in prop::collection::vec(0u32..5000, 64),
    ) {
        let mut bench = Bench::new(features);
        let list: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        bench.drivers[0].write(LIST, &list);
        bench.drivers[0].write(FREE, &vec![0xaa; 0x1000]);
        let (mut named, page) = (pages.contains(&0x400), FREE..FREE + 0x1000);
        for (queue, mut buffers) in requests {
            buffers.sort_by_key(|buffer| buffer.0);
            named |= buffers.iter().any(|(_, address, length)| *address < page.end && address + u64::from(*length) > page.start);
            // Half of the readable buffers are part of the list above.
            let buffers: Vec<_> = buffers
                .into_iter()
                .map(|(writable, address, length)| match address % 2 {
                    0 if !writable => (LIST, (length % 260) & !3, writable),
                    _ => (address, length, writable),
                })
                .collect();
            if let Some(driver) = bench.drivers.get_mut(queue) {
                driver.add(&buffers);
            }
            // An error ends the session; the driver would have to start anew.
            if bench.serve(queue).is_err() {
                break;
            }
            bench.handle.request_statistics();
            bench.wake();
        }
        // What else was taken for a list is zeroes or poison, neither of which names this page.
        if !named {
            prop_assert_eq!(bench.drivers[0].read(FREE, 0x1000), vec![0xaa; 0x1000]);
        }
    }
}
