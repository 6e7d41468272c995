// SPDX-License-Identifier: Apache-2.0
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use super::super::testing::FakeDriver;
use super::*;

/// A back end that says yes to all, and touches no queue; it ends with its socket.
fn backend() -> (Backend, UnixStream, JoinHandle<()>) {
    let (ours, its) = UnixStream::pair().unwrap();
    let mut socket = its.try_clone().unwrap();
    let playing = thread::spawn(move || {
        let mut header = [0; 12];
        while socket.read_exact(&mut header).is_ok() {
            let mut payload = vec![0; usize::from(header[8])];
            socket.read_exact(&mut payload).unwrap();
            // Features: those that are needed. Base of a queue: its number.
            let answer: u64 = match header[0] {
                1 => 1 << 32 | 1 << 28,
                11 => payload[0].into(),
                _ => continue,
            };
            let words = [header[0].into(), 5, 8u32].map(u32::to_ne_bytes);
            socket.write_all(&[words.as_flattened(), &answer.to_ne_bytes()].concat()).unwrap();
        }
    });
    (Backend::greet(ours).unwrap(), its, playing)
}

/// The start of a FUSE request.
fn request(operation: u32, unique: u64) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[..4].copy_from_slice(&40u32.to_le_bytes());
    bytes[4..8].copy_from_slice(&operation.to_le_bytes());
    bytes[8..16].copy_from_slice(&unique.to_le_bytes());
    bytes
}

fn answer(error: i32, unique: u64) -> Vec<u8> {
    [&16u32.to_le_bytes()[..], &error.to_le_bytes()[..], &unique.to_le_bytes()[..]].concat()
}

const FUSE_READ: u32 = 15;
const EIO: i32 = -5;

#[test]
fn the_tag_is_in_the_configuration() {
    let (connection, _its, _) = backend();
    let fs = Fs::new("data", connection).unwrap();
    let mut config = [0xff; 44];
    fs.read_config(0, &mut config);
    assert_eq!(
        (&config[..5], config[35], &config[36..]),
        (&b"data\0"[..], 0, &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..])
    );
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(matches!(Fs::new(tag, backend().0), Err(FsError::Tag)), "{tag:?}");
    }
}

#[test]
fn notifications_reach_the_back_end_and_its_interrupts_the_driver() {
    let (connection, _its, _) = backend();
    let mut fs = Fs::new("data", connection).unwrap();
    let (mut session, mut drivers) = FakeDriver::attach(&mut fs, 0).unwrap();
    drivers[1].write(0x10_0000, &request(FUSE_READ, 1));
    drivers[1].add(&[(0x10_0000, 40, false), (0x20_0000, 4096, true)]);
    fs.queue_event(1, &mut session).unwrap();
    assert_eq!((fs.kicks[1].read().unwrap(), fs.kicks[0].read().is_err()), (1, true));
    fs.reset(&mut session);
    assert!(fs.backend.is_some());
}

#[test]
fn a_dead_back_ends_requests_and_all_later_ones_are_answered_with_eio() {
    let (connection, its, playing) = backend();
    let mut fs = Fs::new("data", connection).unwrap();
    let (mut session, mut drivers) = FakeDriver::attach(&mut fs, 0).unwrap();
    let (high, requests) = drivers.split_at_mut(1);
    for (place, unique) in [(0x10_0000, 7u64), (0x11_0000, 8), (0x12_0000, 9)] {
        requests[0].write(place, &request(FUSE_READ, unique));
        requests[0].add(&[(place, 40, false), (place + 0x1000, 4096, true)]);
        fs.queue_event(1, &mut session).unwrap();
    }
    // It answers the second, without a word of ours.
    let queue = session.queue(1).unwrap();
    let heads = [(); 3].map(|()| queue.pop().unwrap().unwrap().head());
    queue.push(heads[1], 20).unwrap();
    // One that nobody has been told of yet, and one by an indirect table.
    high[0].write(0x30_0000, &request(FUSE_FORGET, 0));
    high[0].add(&[(0x30_0000, 40, false)]);
    requests[0].write(0x13_0000, &request(FUSE_READ, 10));
    requests[0].add_indirect(0x14_0000, &[(0x13_0000, 40, false), (0x13_1000, 16, true)]);
    its.shutdown(std::net::Shutdown::Both).unwrap();
    playing.join().unwrap();
    fs.source_event(0, EventSet::IN | EventSet::HANG_UP, &mut session).unwrap();
    assert_eq!(requests[0].used(), Some((heads[1].into(), 20)));
    let mut given_back: Vec<_> = std::iter::from_fn(|| requests[0].used()).collect();
    given_back.sort_unstable();
    assert_eq!(given_back, [(heads[0].into(), 16), (heads[2].into(), 16), (6, 16)]);
    for (place, unique) in [(0x10_1000, 7), (0x12_1000, 9), (0x13_1000, 10)] {
        assert_eq!(requests[0].read(place, 16), answer(EIO, unique), "{place:#x}");
    }
    assert_eq!((high[0].used(), high[0].used()), (Some((0, 0)), None));
    // Later ones.
    requests[0].write(0x15_0000, &request(FUSE_READ, 11));
    requests[0].add(&[(0x15_0000, 40, false), (0x15_1000, 4096, true)]);
    fs.queue_event(1, &mut session).unwrap();
    assert_eq!(requests[0].used().map(|(_, written)| written), Some(16));
    assert_eq!(requests[0].read(0x15_1000, 16), answer(EIO, 11));
    assert!(session.interrupt.line().read().is_ok());
    // A driver that starts anew finds it dead too.
    fs.reset(&mut session);
    let (mut session, mut drivers) = FakeDriver::attach(&mut fs, 0).unwrap();
    drivers[1].write(0x10_0000, &request(26, 1));
    drivers[1].add(&[(0x10_0000, 40, false), (0x20_0000, 80, true)]);
    fs.queue_event(1, &mut session).unwrap();
    assert_eq!(drivers[1].read(0x20_0000, 16), answer(EIO, 1));
}

#[test]
fn what_a_dead_back_end_has_done_is_told_though_it_has_told_nothing() {
    let (connection, its, _) = backend();
    let mut fs = Fs::new("data", connection).unwrap();
    let (mut session, mut drivers) = FakeDriver::attach(&mut fs, 0).unwrap();
    drivers[1].write(0x10_0000, &request(FUSE_READ, 1));
    drivers[1].add(&[(0x10_0000, 40, false), (0x20_0000, 80, true)]);
    fs.queue_event(1, &mut session).unwrap();
    let queue = session.queue(1).unwrap();
    let head = queue.pop().unwrap().unwrap().head();
    queue.push(head, 16).unwrap();
    its.shutdown(std::net::Shutdown::Both).unwrap();
    fs.source_event(0, EventSet::IN, &mut session).unwrap();
    assert!(session.interrupt.line().read().is_ok());
    assert_eq!((drivers[1].used(), drivers[1].used()), (Some((head.into(), 16)), None));
}

#[test]
fn a_request_that_is_none_is_the_drivers_error() {
    let (connection, its, _) = backend();
    let mut fs = Fs::new("data", connection).unwrap();
    let (mut session, mut drivers) = FakeDriver::attach(&mut fs, 0).unwrap();
    its.shutdown(std::net::Shutdown::Both).unwrap();
    fs.source_event(0, EventSet::IN, &mut session).unwrap();
    drivers[1].add(&[(0x10_0000, 8, false), (0x20_0000, 80, true)]);
    assert!(matches!(fs.queue_event(1, &mut session), Err(DeviceError::Chain(_))));
    drivers[1].write(0x10_0000, &request(FUSE_READ, 1));
    drivers[1].add(&[(0x10_0000, 40, false), (0x20_0000, 8, true)]);
    assert!(matches!(fs.queue_event(1, &mut session), Err(DeviceError::Chain(_))));
}
