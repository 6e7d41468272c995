// SPDX-License-Identifier: Apache-2.0
//! The device against a fake driver, with each engine.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use tempfile::NamedTempFile;

use super::super::testing::{FakeDriver, is_readable};
use super::*;

const SIZE: u64 = 4 << 20;
const LENGTH: usize = 4 << 20;
const ENGINES: [Engine; 3] = [Engine::Adaptive, Engine::Ring, Engine::Synchronous];
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
/// Where headers, data and status of request number n are.
const HEADERS: u64 = 0x10_0000;
const STATUS: u64 = 0x18_0000;
const DATA: u64 = 0x20_0000;
/// A status that no device writes.
const UNWRITTEN: u8 = 0xee;

pub(super) struct Bench {
    pub block: Block,
    pub session: Session,
    pub drivers: Vec<FakeDriver>,
    pub file: NamedTempFile,
    next: u64,
}

/// Recognisable content: differs from sector to sector.
pub(super) fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(|at| (at / 512 * 7 + at % 251).to_le_bytes()[0]).collect()
}

impl Bench {
    pub fn new(engine: Engine) -> Self {
        Self::with(engine, false, 1, FLUSH)
    }

    pub fn with(engine: Engine, read_only: bool, queues: u16, features: u64) -> Self {
        let file = NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&pattern(0, LENGTH), 0).unwrap();
        let config = BlockConfig { path: file.path().into(), read_only, serial: Some("coracle-test".into()), queues };
        let mut block = Block::open_with(&config, engine).unwrap();
        let (session, drivers) = FakeDriver::attach(&mut block, features).unwrap();
        Self { block, session, drivers, file, next: 0 }
    }

    /// Adds a request to a queue: header, `payload`, room for `room` bytes, status. Gives its number.
    fn add(&mut self, queue: usize, kind: u32, sector: u64, payload: &[u8], room: u32) -> u64 {
        let number = self.next;
        self.next += 1;
        let (header, status, data) = (HEADERS + number * 16, STATUS + number, DATA + number * 0x2000);
        let driver = &mut self.drivers[queue];
        driver.write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        driver.write(status, &[UNWRITTEN]);
        let mut buffers = vec![(header, 16, false)];
        if !payload.is_empty() {
            driver.write(data, payload);
            buffers.push((data, u32::try_from(payload.len()).unwrap(), false));
        }
        if room > 0 {
            buffers.push((data, room, true));
        }
        buffers.push((status, 1, true));
        driver.add(&buffers);
        number
    }

    pub fn kick(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.block.queue_event(queue, &mut self.session)
    }

    /// Plays the event loop until nothing is in flight.
    pub fn finish(&mut self) -> Result<(), DeviceError> {
        while self.block.worker.in_flight() > 0 {
            let fd = self.block.sources()[0].fd;
            assert!(is_readable(fd, Duration::from_secs(10)), "no completion in ten seconds");
            self.block.source_event(0, EventSet::IN, &mut self.session)?;
        }
        Ok(())
    }

    fn status(&self, number: u64) -> u8 {
        self.drivers[0].read(STATUS + number, 1)[0]
    }

    fn data(&self, number: u64, length: usize) -> Vec<u8> {
        self.drivers[0].read(DATA + number * 0x2000, length)
    }

    /// Does one request; gives its number, status and used length.
    fn request(&mut self, kind: u32, sector: u64, payload: &[u8], room: u32) -> (u64, u8, u32) {
        let number = self.add(0, kind, sector, payload, room);
        self.kick(0).unwrap();
        self.finish().unwrap();
        let (_, length) = self.drivers[0].used().expect("an answer");
        assert_eq!(self.drivers[0].used(), None);
        (number, self.status(number), length)
    }

    pub fn content(&self) -> Vec<u8> {
        std::fs::read(self.file.path()).unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        self.block.metrics().into_iter().find(|(known, _)| *known == name).unwrap().1
    }
}

#[test]
fn a_read_gives_the_disks_content() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let (number, status, length) = bench.request(0, 9, &[], 4096);
        assert_eq!((status, length), (0, 4097), "{engine:?}");
        assert_eq!(bench.data(number, 4096), pattern(9 * 512, 4096));
        assert!(bench.drivers[0].interrupt().line().read().is_ok());
        assert_eq!((bench.metric("reads"), bench.metric("read_bytes"), bench.metric("in_flight")), (1, 4096, 0));
    }
}

#[test]
fn a_write_changes_its_sectors_and_no_others() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let mut expected = bench.content();
        expected[5 * 512..13 * 512].fill(0xa5);
        let (_, status, length) = bench.request(1, 5, &[0xa5; 4096], 0);
        assert_eq!((status, length), (0, 1), "{engine:?}");
        assert_eq!(bench.content(), expected);
        assert_eq!((bench.metric("writes"), bench.metric("write_bytes")), (1, 4096));
    }
}

#[test]
fn what_is_out_of_range_or_unknown_is_answered_and_does_nothing() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let before = bench.content();
        for (kind, sector, payload, room, expected) in [
            (0, SIZE / 512, 0, 512, 1),
            (0, u64::MAX, 0, 512, 1),
            (1, SIZE / 512 - 1, 1024, 0, 1),
            (1, 0, 513, 0, 1),
            (0, 0, 0, 100, 1),
            (77, 0, 512, 512, 2),
            (11, 0, 5, 0, 1),
        ] {
            let (number, status, length) = bench.request(kind, sector, &vec![9; payload], room);
            assert_eq!(status, expected, "{engine:?} {kind} {sector}");
            // Nothing before the status was written, so only a status alone may be claimed.
            assert_eq!(length, u32::from(room == 0));
            if payload == 0 {
                assert_eq!(bench.data(number, room as usize), vec![0; room as usize]);
            }
        }
        assert_eq!(bench.content(), before);
        assert_eq!(bench.metric("errors"), 7);
        assert_eq!(bench.metric("reads") + bench.metric("writes"), 0);
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, true, 1, FLUSH);
        let before = bench.content();
        assert_ne!(bench.block.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(bench.block.features() & (1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES), 0);
        assert_eq!(bench.request(1, 0, &[9; 512], 0).1, 1);
        assert_eq!(bench.request(11, 0, &[0; 16], 0).1, 1);
        assert_eq!(bench.request(13, 0, &[0; 16], 0).1, 1);
        assert_eq!(bench.request(4, 0, &[], 0).1, 0);
        assert_eq!(bench.request(0, 0, &[], 512).1, 0);
        assert_eq!(bench.content(), before);
    }
}

#[test]
fn the_serial_is_padded_with_zeroes_and_cut_to_the_room() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let (number, status, length) = bench.request(8, 0, &[], 20);
        assert_eq!((status, length), (0, 21));
        assert_eq!(bench.data(number, 20), b"coracle-test\0\0\0\0\0\0\0\0");
        let (number, status, length) = bench.request(8, 0, &[], 30);
        assert_eq!((status, length), (0, 20));
        assert_eq!(bench.data(number, 30)[20..], [0; 10]);
        let (number, _, length) = bench.request(8, 0, &[], 7);
        assert_eq!(length, 8);
        assert_eq!(bench.data(number, 8), b"coracle\0");
    }
}

#[test]
fn cleared_ranges_read_as_zeroes_and_the_file_keeps_its_size() {
    for engine in ENGINES {
        for (kind, flags) in [(11u32, 0u32), (13, 0), (13, 1)] {
            let mut bench = Bench::new(engine);
            assert!(bench.block.limits.clears, "the file system of the temporary directory cannot punch holes");
            let mut payload = Vec::new();
            for (sector, count) in [(8u64, 16u32), (100, 3), (SIZE / 512 - 1, 1)] {
                payload.extend([&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat());
            }
            let mut expected = bench.content();
            for (sector, count) in [(8, 16), (100, 3), (LENGTH / 512 - 1, 1)] {
                expected[sector * 512..(sector + count) * 512].fill(0);
            }
            assert_eq!(bench.request(kind, 0, &payload, 0).1, 0, "{engine:?} {kind} {flags}");
            assert!(bench.content() == expected, "{engine:?} {kind} {flags}");
        }
    }
}

#[test]
fn a_flush_is_answered_and_counted() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        assert_eq!(bench.request(4, 0, &[], 0), (0, 0, 1), "{engine:?}");
        assert_eq!(bench.metric("flushes"), 1);
    }
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        let driver = &mut bench.drivers[0];
        // A write: header and data share buffers, the header is split in three.
        driver.write(HEADERS, &[&1u32.to_le_bytes()[..], &[0; 4], &3u64.to_le_bytes(), &[0x5a; 1024]].concat());
        let at = |offset: u64, length| (HEADERS + offset, length, false);
        driver.add(&[at(0, 3), at(3, 8), at(11, 105), at(116, 1), at(117, 923), (STATUS, 1, true)]);
        // A read: the status is the last byte of the data's last buffer, by way of an indirect table.
        driver.write(HEADERS + 0x8000, &[&0u32.to_le_bytes()[..], &[0; 4], &4u64.to_le_bytes()].concat());
        let header = (HEADERS + 0x8000, 16, false);
        driver.add_indirect(0x8_0000, &[header, (DATA, 100, true), (DATA + 0x1000, 413, true)]);
        bench.kick(0).unwrap();
        bench.finish().unwrap();
        // The read need not see the write here: nothing orders the two. A later one must.
        let lengths: Vec<_> = std::iter::from_fn(|| bench.drivers[0].used()).map(|(_, length)| length).collect();
        assert_eq!(lengths.iter().sum::<u32>(), 1 + 513, "{engine:?}");
        assert_eq!(bench.status(0), 0);
        assert_eq!(bench.content()[3 * 512..5 * 512], [0x5a; 1024]);
        let driver = &mut bench.drivers[0];
        driver.add_indirect(0x8_0000, &[header, (DATA, 100, true), (DATA + 0x1000, 413, true)]);
        driver.write(DATA + 0x1000 + 412, &[UNWRITTEN]);
        bench.kick(0).unwrap();
        bench.finish().unwrap();
        let driver = &mut bench.drivers[0];
        assert_eq!(driver.used().unwrap().1, 513);
        assert_eq!(driver.read(DATA, 101), [vec![0x5a; 100], vec![0]].concat());
        assert_eq!(driver.read(DATA + 0x1000, 413), [vec![0x5a; 412], vec![0]].concat());
    }
}

#[test]
fn a_chain_without_header_or_status_is_the_drivers_error() {
    for engine in ENGINES {
        for buffers in [
            &[(HEADERS, 16, false)][..],
            &[(HEADERS, 8, false), (STATUS, 1, true)],
            &[(STATUS, 1, true)],
            &[(HEADERS, 16, false), (1 << 40, 1, true)],
        ] {
            let mut bench = Bench::new(engine);
            bench.drivers[0].add(buffers);
            assert!(bench.kick(0).is_err(), "{engine:?} {buffers:?}");
            bench.block.reset(&mut bench.session);
        }
    }
}

#[test]
fn many_requests_on_several_queues_are_all_answered_once() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, false, 4, FLUSH);
        assert_eq!(bench.block.config[config::NUM_QUEUES], 4);
        assert_ne!(bench.block.features() & 1 << VIRTIO_BLK_F_MQ, 0);
        // 85 requests of three descriptors fill a queue of 256: more in all than may be in flight.
        let numbers: Vec<_> = (0..85 * 4)
            .zip([0, 1, 2, 3].into_iter().cycle())
            .map(|(n, queue)| bench.add(queue, 0, n * 8 % 8192, &[], 4096))
            .collect();
        for queue in 0..4 {
            bench.kick(queue).unwrap();
        }
        bench.finish().unwrap();
        for driver in &mut bench.drivers {
            let answers: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
            assert_eq!(answers.len(), 85, "{engine:?}");
            assert!(answers.iter().all(|(_, length)| *length == 4097));
        }
        for number in numbers {
            assert_eq!(bench.status(number), 0);
            assert_eq!(bench.data(number, 4096), pattern(number * 8 % 8192 * 512, 4096), "{engine:?} {number}");
        }
    }
}

#[test]
fn after_a_reset_nothing_touches_guest_memory() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        // Out of the page cache, so that the reads take their time.
        let fd = bench.file.as_file().as_raw_fd();
        bench.file.as_file().sync_all().unwrap();
        // SAFETY: integers go in.
        assert_eq!(unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
        for n in 0..80 {
            bench.add(0, 0, n * 100, &[], 4096);
        }
        bench.kick(0).unwrap();
        bench.block.reset(&mut bench.session);
        assert_eq!(bench.block.worker.in_flight(), 0);
        bench.drivers[0].write(DATA, &vec![0x11; 80 * 0x2000]);
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(bench.drivers[0].read(DATA, 80 * 0x2000).iter().all(|byte| *byte == 0x11), "{engine:?}");
        // The next driver finds a working disk, and no leftovers.
        let (session, drivers) = FakeDriver::attach(&mut bench.block, FLUSH).unwrap();
        (bench.session, bench.drivers, bench.next) = (session, drivers, 0);
        let (number, status, _) = bench.request(0, 1, &[], 512);
        assert_eq!((status, bench.data(number, 512)), (0, pattern(512, 512)));
    }
}

#[test]
fn a_file_that_was_cut_short_gives_an_error() {
    for engine in ENGINES {
        let mut bench = Bench::new(engine);
        bench.file.as_file().set_len(1024).unwrap();
        let (number, status, length) = bench.request(0, 0, &[], 4096);
        assert_eq!((status, length), (1, 1024), "{engine:?}");
        assert_eq!(bench.data(number, 1024), pattern(0, 1024));
    }
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, false, 1, 0);
        assert_eq!(bench.block.config[config::WRITEBACK], 0);
        assert_eq!(bench.request(1, 5, &[0xa5; 4096], 0).1, 0);
        assert_eq!(bench.content()[5 * 512..13 * 512], [0xa5; 4096]);
        assert_eq!(bench.request(13, 0, &[0; 16], 0).1, 0);
        // The field is not this driver's to write: it has not agreed on the feature.
        bench.block.write_config(config::WRITEBACK, &[1], Some(&mut bench.session));
        assert!(bench.block.write_through);
    }
}

#[test]
fn the_cache_mode_is_the_drivers_choice() {
    let mut bench = Bench::with(Engine::Adaptive, false, 1, FLUSH | 1 << VIRTIO_BLK_F_CONFIG_WCE);
    let read = |bench: &mut Bench, data: &[u8], offset| {
        bench.block.write_config(offset, data, Some(&mut bench.session));
        let mut value = [9];
        bench.block.read_config(config::WRITEBACK, &mut value);
        assert_eq!(bench.block.write_through, value == [0]);
        value[0]
    };
    assert_eq!(read(&mut bench, &[], config::WRITEBACK), 1);
    assert_eq!(read(&mut bench, &[0], config::WRITEBACK), 0);
    assert_eq!(read(&mut bench, &[2], config::WRITEBACK), 0);
    assert_eq!(read(&mut bench, &[1, 0], config::WRITEBACK), 0);
    assert_eq!(read(&mut bench, &[1], config::WRITEBACK), 1);
    assert_eq!(read(&mut bench, &[0], config::WRITEBACK - 1), 1);
}

#[test]
fn configuration_space_tells_of_the_disk() {
    let bench = Bench::new(Engine::Adaptive);
    let word = |offset| {
        let mut raw = [0; 4];
        bench.block.read_config(offset, &mut raw);
        u32::from_le_bytes(raw)
    };
    assert_eq!((word(config::CAPACITY), word(4)), (8192, 0));
    assert_eq!((word(config::SIZE_MAX), word(config::SEG_MAX)), (128 << 10, 254));
    assert_eq!(word(config::BLK_SIZE), 512);
    assert_eq!(word(config::MAX_DISCARD_SEG), 16);
    let mut beyond = [7; 8];
    bench.block.read_config(config::SIZE - 4, &mut beyond);
    assert_eq!(beyond, [1, 0, 0, 0, 7, 7, 7, 7]);
}

#[test]
fn bad_settings_are_refused() {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let good = BlockConfig { path: file.path().into(), read_only: false, serial: None, queues: 1 };
    for serial in ["", "123456789012345678901", "tab\t", "ü"] {
        let config = BlockConfig { serial: Some(serial.into()), ..good.clone() };
        assert!(matches!(Block::open(&config), Err(BlockError::Serial { .. })), "{serial:?}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        assert!(matches!(Block::open(&BlockConfig { queues, ..good.clone() }), Err(BlockError::Queues { .. })));
    }
    Block::open(&BlockConfig { serial: Some("12345678901234567890".into()), queues: MAX_QUEUES, ..good }).unwrap();
    let text = r#"{"path": "a.img"}"#;
    let config: BlockConfig = serde_json::from_str(text).unwrap();
    assert_eq!(config, BlockConfig { path: "a.img".into(), read_only: false, serial: None, queues: 1 });
    assert!(serde_json::from_str::<BlockConfig>(r#"{"path": "a.img", "format": "qcow2"}"#).is_err());
}

#[test]
fn at_rest_all_is_answered_and_another_disk_goes_on() {
    for engine in ENGINES {
        let mut bench = Bench::with(engine, false, 1, FLUSH);
        let reads: Vec<_> = (0..32).map(|sector| bench.add(0, 0, sector, &[], 512)).collect();
        bench.kick(0).unwrap();
        bench.block.rest(&mut bench.session).unwrap();
        assert_eq!(bench.block.worker.in_flight(), 0);
        let answered = std::iter::from_fn(|| bench.drivers[0].used()).count();
        assert_eq!(answered, reads.len(), "{engine:?}");
        let (state, position) = (bench.block.state(), bench.session.queue(0).unwrap().position());

        // The same file, then a changed one, then another that is named anew.
        let config = BlockConfig { path: bench.file.path().into(), read_only: false, serial: None, queues: 1 };
        bench.block.worker.cancel();
        let mut bench_of = |file: NamedTempFile| {
            let old = std::mem::replace(&mut bench.file, file);
            let config = BlockConfig { path: bench.file.path().into(), ..config.clone() };
            drop(old);
            bench.block = Block::open_with(&config, engine).unwrap();
            bench.block.activate(&mut bench.session).unwrap();
            bench.session.queue(0).unwrap().set_position(position);
        };
        let other = NamedTempFile::new().unwrap();
        other.as_file().set_len(2 * SIZE).unwrap();
        bench_of(other);
        let DeviceState::Block { write_through, disk: Some(_) } = state.clone() else { panic!("{state:?}") };
        let error = bench.block.restore(&state, Some(&mut bench.session)).unwrap_err();
        assert!(matches!(&error, RestoreError::File(why) if why.contains("another size")), "{error}");
        let anew = DeviceState::Block { write_through, disk: None };
        bench.block.restore(&anew, Some(&mut bench.session)).unwrap();
        let (_, status, _) = bench.request(0, SIZE / 512 + 5, &[], 512);
        assert_eq!(status, 0);
        assert!(bench.block.restore(&DeviceState::Plain, None).is_err());
    }
}
