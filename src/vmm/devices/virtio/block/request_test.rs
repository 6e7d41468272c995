// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::super::super::testing::FakeDriver;
use super::*;

const LIMITS: Limits = Limits { sectors: 1000, read_only: false, clears: true };
const READ_ONLY: Limits = Limits { read_only: true, ..LIMITS };
const BASE: u64 = 0x10_0000;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Parses a request of `readable` bytes, cut into buffers of `cut`, and `writable` bytes in one.
fn parse_cut(readable: &[u8], cut: usize, writable: u32, limits: &Limits) -> Result<Request, DeviceError> {
    let mut driver = FakeDriver::new(256);
    let mut queue = driver.queue();
    driver.write(BASE, readable);
    let pieces = (BASE..).step_by(cut).zip(readable.chunks(cut));
    let mut buffers: Vec<_> =
        pieces.map(|(address, piece)| (address, u32::try_from(piece.len()).unwrap(), false)).collect();
    if writable > 0 {
        buffers.push((BASE + 0x80_0000, writable, true));
    }
    driver.add(&buffers);
    Request::parse(&queue.pop().unwrap().unwrap(), limits)
}

fn parse(readable: &[u8], writable: u32) -> Command {
    parse_cut(readable, 1 << 20, writable, &LIMITS).unwrap().command
}

fn ranges(kind: u32, list: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = header(kind, 0);
    for (sector, count, flags) in list {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

#[test]
fn a_read_is_whole_sectors_within_the_disk() {
    assert_eq!(parse(&header(0, 3), 1024 + 1), Command::Read { offset: 1536, length: 1024 });
    assert_eq!(parse(&header(0, 999), 512 + 1), Command::Read { offset: 999 * 512, length: 512 });
    assert_eq!(parse(&header(0, 1000), 1), Command::Read { offset: 512_000, length: 0 });
    let beyond = [(1000, 513), (999, 1025), (1001, 1), (u64::MAX, 513), (u64::MAX / 512, 513), (1 << 55, 513)];
    let odd = [(0, 512), (0, 514), (0, 2)];
    for (sector, writable) in beyond.into_iter().chain(odd) {
        assert_eq!(parse(&header(0, sector), writable), Command::Refuse(Status::IoError), "{sector} {writable}");
    }
    let with_payload = [header(0, 0), vec![0; 512]].concat();
    assert_eq!(parse(&with_payload, 513), Command::Refuse(Status::IoError));
}

#[test]
fn a_write_is_whole_sectors_within_a_writable_disk() {
    let write = |sector, length| [header(1, sector), vec![7; length]].concat();
    assert_eq!(parse(&write(2, 4096), 1), Command::Write { offset: 1024, length: 4096 });
    for (sector, length, writable) in [(0, 511, 1), (993, 4096, 1), (u64::MAX, 512, 1), (0, 512, 513)] {
        assert_eq!(parse(&write(sector, length), writable), Command::Refuse(Status::IoError), "{sector} {length}");
    }
    let refused = parse_cut(&write(0, 512), 4096, 1, &READ_ONLY).unwrap();
    assert_eq!(refused.command, Command::Refuse(Status::IoError));
}

#[test]
fn buffer_boundaries_mean_nothing() {
    let whole = parse_cut(&[header(1, 2), vec![7; 1024]].concat(), 4096, 1, &LIMITS).unwrap();
    for cut in [5, 7, 16, 17, 512] {
        assert_eq!(parse_cut(&[header(1, 2), vec![7; 1024]].concat(), cut, 1, &LIMITS).unwrap(), whole, "{cut}");
    }
}

#[test]
fn more_data_than_announced_is_refused() {
    let limits = Limits { sectors: 1 << 40, ..LIMITS };
    let length = u32::try_from(MAX_DATA).unwrap();
    assert_eq!(limits.data(0, MAX_DATA), Some(0));
    assert_eq!(limits.data(0, MAX_DATA + 512), None);
    assert_eq!(length, MAX_SEGMENT * MAX_SEGMENTS);
}

#[test]
fn a_request_that_cannot_be_answered_is_the_drivers_error() {
    assert!(matches!(parse_cut(&header(0, 0), 16, 0, &LIMITS), Err(DeviceError::Driver(_))));
    assert!(matches!(parse_cut(&header(0, 0)[..15], 16, 513, &LIMITS), Err(DeviceError::Chain(_))));
}

#[test]
fn ranges_are_checked_one_by_one() {
    let expected = |clearing| Range { offset: 512, length: 1024, clearing };
    assert_eq!(parse(&ranges(11, &[(1, 2, 0)]), 1), Command::Clear(vec![expected(Clearing::Discard)]));
    assert_eq!(parse(&ranges(13, &[(1, 2, 0)]), 1), Command::Clear(vec![expected(Clearing::Zero)]));
    let two = parse(&ranges(13, &[(1, 2, 1), (5, 0, 0), (1, 2, 0)]), 1);
    assert_eq!(two, Command::Clear(vec![expected(Clearing::Unmap), expected(Clearing::Zero)]));
    // Flags that are reserved: any for a discard, all but the first otherwise.
    for (kind, flags) in [(11, 1), (11, 2), (13, 2), (13, 3), (13, 1 << 31)] {
        assert_eq!(parse(&ranges(kind, &[(1, 2, flags)]), 1), Command::Refuse(Status::Unsupported), "{kind} {flags}");
    }
    for bad in [(999, 2), (1000, 1), (u64::MAX, 1), (0, u32::MAX), (0, MAX_RANGE_SECTORS + 1)] {
        let list = [(1, 2, 0), (bad.0, bad.1, 0)];
        assert_eq!(parse(&ranges(11, &list), 1), Command::Refuse(Status::IoError), "{bad:?}");
    }
    let many = vec![(0, 1, 0); usize::try_from(MAX_RANGES).unwrap() + 1];
    assert!(matches!(parse(&ranges(11, &many[1..]), 1), Command::Clear(list) if list.len() == 16));
    for broken in [ranges(11, &many), ranges(11, &[]), ranges(11, &[(0, 1, 0)])[..31].to_vec()] {
        assert_eq!(parse(&broken, 1), Command::Refuse(Status::IoError), "{} bytes", broken.len());
    }
}

#[test]
fn what_the_disk_cannot_do_is_refused() {
    for kind in [11, 13] {
        let request = ranges(kind, &[(1, 2, 0)]);
        let unable = Limits { clears: false, ..LIMITS };
        let command = |limits| parse_cut(&request, 64, 1, limits).unwrap().command;
        assert_eq!(command(&unable), Command::Refuse(Status::Unsupported));
        assert_eq!(command(&Limits { clears: false, ..READ_ONLY }), Command::Refuse(Status::IoError));
    }
    for kind in [2, 3, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(parse(&header(kind, 0), 1), Command::Refuse(Status::Unsupported), "{kind}");
    }
    assert_eq!(parse(&header(4, u64::MAX), 1), Command::Flush);
    assert_eq!(
        parse_cut(&header(8, u64::MAX), 3, 21, &LIMITS).unwrap(),
        Request { command: Command::Identify, room: 20 }
    );
}

proptest! {
    #[test]
    fn whatever_is_accepted_lies_within_the_disk(
        kind in prop_oneof![Just(0u32), Just(1), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0..1100u64, any::<u64>()],
        payload in proptest::collection::vec(any::<u8>(), 0..2100),
        writable in 0..5000u32,
        cut in 1..4096usize,
        limits in (0..1100u64, any::<bool>(), any::<bool>())
            .prop_map(|(sectors, read_only, clears)| Limits { sectors, read_only, clears }),
    ) {
        let readable = [header(kind, sector), payload].concat();
        let cut = cut.max(readable.len() / 200 + 1);
        let Ok(request) = parse_cut(&readable, cut, writable, &limits) else {
            prop_assert_eq!(writable, 0);
            return Ok(());
        };
        prop_assert_eq!(request.room + 1, writable as usize);
        let end = limits.sectors * 512;
        match request.command {
            Command::Read { offset, length } => prop_assert!(offset + length as u64 <= end && length % 512 == 0),
            Command::Write { offset, length } => {
                prop_assert!(offset + length as u64 <= end && length % 512 == 0 && !limits.read_only);
            }
            Command::Clear(ranges) => {
                prop_assert!(!limits.read_only && limits.clears);
                prop_assert!(ranges.iter().all(|range| range.length > 0 && range.offset + range.length <= end));
            }
            Command::Flush | Command::Identify | Command::Refuse(_) => {}
        }
    }
}
