// SPDX-License-Identifier: Apache-2.0
use std::io::Write;

use super::super::testing::FakeDriver;
use super::*;
use proptest::prelude::*;

const REQUEST: u64 = 0x10_0000;
const ANSWER: u64 = 0x20_0000;

fn bench() -> (Pmem, Session, FakeDriver) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[1; 4096]).unwrap();
    let mut pmem = Pmem::open(&PmemConfig { path: file.path().into() }).unwrap();
    let (session, mut drivers) = FakeDriver::attach(&mut pmem, 0).unwrap();
    (pmem, session, drivers.remove(0))
}

#[test]
fn the_driver_learns_where_the_memory_is() {
    let (mut pmem, ..) = bench();
    pmem.place(0x1_0800_0000);
    let mut config = [0xee; 20];
    pmem.read_config(0, &mut config);
    assert_eq!(config[..8], 0x1_0800_0000u64.to_le_bytes());
    assert_eq!(config[8..16], (2u64 << 20).to_le_bytes());
    assert_eq!(config[16..], [0xee; 4]);
}

#[test]
fn a_flush_succeeds_and_anything_else_does_not() {
    let (mut pmem, mut session, mut driver) = bench();
    for (request, answer) in [(FLUSH, OK), (1, EIO), (u32::MAX, EIO)] {
        driver.write(REQUEST, &request.to_le_bytes());
        driver.write(ANSWER, &[0xee; 8]);
        let head = driver.add(&[(REQUEST, 4, false), (ANSWER, 8, true)]);
        pmem.queue_event(0, &mut session).unwrap();
        assert_eq!(driver.used(), Some((head.into(), 4)));
        assert_eq!(driver.read(ANSWER, 4), answer.to_le_bytes());
        assert_eq!(driver.read(ANSWER + 4, 4), [0xee; 4]);
    }
    assert_eq!(pmem.metrics(), [("bytes", 2 << 20), ("flushes", 1), ("rejected_requests", 2)]);
}

#[test]
fn requests_that_are_too_short_are_the_drivers_error() {
    for buffers in [&[(REQUEST, 3, false), (ANSWER, 4, true)][..], &[(REQUEST, 4, false), (ANSWER, 3, true)]] {
        let (mut pmem, mut session, mut driver) = bench();
        driver.add(buffers);
        assert!(matches!(pmem.queue_event(0, &mut session), Err(DeviceError::Chain(_))));
    }
}

proptest! {
    /// Whatever is asked, it is answered in its four bytes or refused, and no other memory changes.
    #[test]
    fn any_requests_are_safe(
        requests in prop::collection::vec(prop::collection::vec((any::<bool>(), 0u64..0x4000, 0u32..9), 1..5), 1..10),
    ) {
        let (mut pmem, mut session, mut driver) = bench();
        for mut buffers in requests {
            buffers.sort_by_key(|buffer| buffer.0);
            let buffers: Vec<_> = buffers.iter().map(|&(writable, place, length)| (ANSWER + place, length, writable)).collect();
            let before = driver.read(ANSWER, 0x5000);
            let head = driver.add(&buffers);
            let result = pmem.queue_event(0, &mut session);
            let mut after = driver.read(ANSWER, 0x5000);
            for &(address, length, writable) in &buffers {
                let start = usize::try_from(address - ANSWER).unwrap();
                let range = start..start + if writable { length as usize } else { 0 };
                after[range.clone()].copy_from_slice(&before[range]);
            }
            prop_assert_eq!(before, after);
            if result.is_err() {
                break;
            }
            prop_assert_eq!(driver.used(), Some((head.into(), 4)));
        }
    }
}
