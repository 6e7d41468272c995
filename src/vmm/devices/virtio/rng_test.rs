// SPDX-License-Identifier: Apache-2.0
use super::super::testing::FakeDriver;
use super::*;

fn bench() -> (Rng, Session, FakeDriver) {
    let mut rng = Rng::new();
    let (session, mut drivers) = FakeDriver::attach(&mut rng, 0).unwrap();
    (rng, session, drivers.remove(0))
}

#[test]
fn requests_are_filled_to_their_end_and_not_beyond() {
    let (mut rng, mut session, mut driver) = bench();
    driver.add(&[(0x10_0000, 1000, true), (0x20_0000, 5000, true)]);
    rng.queue_event(0, &mut session).unwrap();
    assert_eq!(driver.used(), Some((0, 6000)));
    assert!(driver.interrupt().line().read().is_ok());
    for (address, length) in [(0x10_0000, 1000), (0x20_0000, 5000)] {
        // 1000 random bytes lack one of the 256 values 5 times in all; 150 missing means that they are not random.
        let data = driver.read(address, length);
        let distinct = (0..=255u8).filter(|byte| data.contains(byte)).count();
        assert!(distinct > 200, "{distinct} values in {length} bytes");
        assert!(data[length - 16..].iter().any(|&byte| byte != 0));
        assert_eq!(driver.read(address + length as u64, 64), [0; 64]);
    }
}

#[test]
fn two_requests_differ() {
    let (mut rng, mut session, mut driver) = bench();
    driver.add(&[(0x10_0000, 32, true)]);
    driver.add(&[(0x20_0000, 32, true)]);
    rng.queue_event(0, &mut session).unwrap();
    assert_ne!(driver.read(0x10_0000, 32), driver.read(0x20_0000, 32));
}

#[test]
fn a_huge_request_gets_a_part() {
    let (mut rng, mut session, mut driver) = bench();
    driver.add(&[(0x10_0000, 1 << 20, true)]);
    rng.queue_event(0, &mut session).unwrap();
    assert_eq!(driver.used(), Some((0, 32 << 10)));
    assert_eq!(rng.metrics(), [("requests", 1), ("bytes", 32 << 10)]);
}

#[test]
fn a_request_without_room_is_the_drivers_error() {
    let (mut rng, mut session, mut driver) = bench();
    driver.write(0x10_0000, &[7; 16]);
    driver.add(&[(0x10_0000, 16, false)]);
    assert!(matches!(rng.queue_event(0, &mut session), Err(DeviceError::Driver(_))));
    assert_eq!(driver.read(0x10_0000, 16), [7; 16]);
}
