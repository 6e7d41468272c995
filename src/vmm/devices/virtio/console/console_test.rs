// SPDX-License-Identifier: Apache-2.0
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::testing::FakeDriver;
use super::*;
use proptest::prelude::*;

const ALL: u64 = 1 << feature::SIZE | 1 << feature::EMERG_WRITE;
const BUFFER: u64 = 0x10_0000;

struct Bench {
    console: Console,
    handle: ConsoleHandle,
    session: Session,
    drivers: Vec<FakeDriver>,
    keyboard: PipeWriter,
    screen: PipeReader,
}

impl Bench {
    fn new(features: u64) -> Self {
        let (input, keyboard) = io::pipe().unwrap();
        let (screen, output) = io::pipe().unwrap();
        let output = ConsoleOutput::new().unwrap().to_terminal(File::from(OwnedFd::from(output))).unwrap();
        let (mut console, handle) = Console::new(Some(File::from(OwnedFd::from(input))), output).unwrap();
        let (session, drivers) = FakeDriver::attach(&mut console, features).unwrap();
        Self { console, handle, session, drivers, keyboard, screen }
    }

    fn queue_event(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.console.queue_event(queue, &mut self.session)
    }

    fn source_event(&mut self, id: u16) {
        self.console.source_event(id, EventSet::IN, &mut self.session).unwrap();
    }

    fn metric(&self, name: &str) -> u64 {
        self.console.metrics().iter().find(|(other, _)| *other == name).unwrap().1
    }
}

#[test]
fn what_the_guest_writes_arrives() {
    let mut bench = Bench::new(ALL);
    bench.drivers[TRANSMIT].write(BUFFER, b"hello world\n");
    let head = bench.drivers[TRANSMIT].add(&[(BUFFER, 5, false), (BUFFER + 5, 7, false)]);
    bench.queue_event(TRANSMIT).unwrap();
    assert_eq!(bench.drivers[TRANSMIT].used(), Some((head.into(), 0)));
    let mut text = [0; 12];
    bench.screen.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello world\n");
}

#[test]
fn input_waits_for_buffers_and_fills_only_what_it_needs() {
    let mut bench = Bench::new(ALL);
    bench.keyboard.write_all(b"ls -l\n").unwrap();
    bench.source_event(INPUT);
    assert_eq!(bench.metric("input_bytes"), 0);
    let driver = &mut bench.drivers[RECEIVE];
    let (first, second) = (driver.add(&[(BUFFER, 4, true)]), driver.add(&[(BUFFER + 16, 4096, true)]));
    driver.add(&[(BUFFER + 0x2000, 4096, true)]);
    bench.queue_event(RECEIVE).unwrap();
    let driver = &mut bench.drivers[RECEIVE];
    assert_eq!((driver.used(), driver.used()), (Some((first.into(), 4)), Some((second.into(), 2))));
    assert_eq!(driver.used(), None, "the third buffer waits for more input");
    assert_eq!((driver.read(BUFFER, 5), driver.read(BUFFER + 16, 3)), (b"ls -\0".to_vec(), b"l\n\0".to_vec()));
    bench.keyboard.write_all(b"q").unwrap();
    bench.source_event(INPUT);
    assert_eq!(bench.drivers[RECEIVE].used().map(|used| used.1), Some(1));
    assert_eq!(bench.metric("input_bytes"), 7);
}

#[test]
fn a_long_paste_is_served_in_rounds() {
    let mut bench = Bench::new(ALL);
    bench.keyboard.write_all(&[b'p'; 60]).unwrap();
    for place in 0..60 {
        bench.drivers[RECEIVE].add(&[(BUFFER + place, 1, true)]);
    }
    bench.source_event(INPUT);
    assert_eq!(bench.metric("input_bytes"), BUDGET as u64);
    assert!(bench.drivers[RECEIVE].kick().read().is_ok(), "the rest is rescheduled");
    bench.queue_event(RECEIVE).unwrap();
    assert_eq!(bench.metric("input_bytes"), 60);
}

#[test]
fn the_end_of_input_is_no_error_and_no_loop() {
    let mut bench = Bench::new(ALL);
    bench.drivers[RECEIVE].add(&[(BUFFER, 64, true)]);
    bench.keyboard.write_all(b"bye").unwrap();
    bench.keyboard = io::pipe().unwrap().1;
    bench.source_event(INPUT);
    assert_eq!(bench.drivers[RECEIVE].used().map(|used| used.1), Some(3));
    bench.drivers[RECEIVE].add(&[(BUFFER, 64, true)]);
    bench.source_event(INPUT);
    assert_eq!(bench.drivers[RECEIVE].used(), None);
    assert!(bench.drivers[RECEIVE].kick().read().is_err(), "nothing is left to do");
}

#[test]
fn a_regular_file_is_read_without_being_watched() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"script\n").unwrap();
    io::Seek::rewind(&mut file).unwrap();
    for (input, expected) in [(Some(file), Some(7)), (Some(File::open("/dev/null").unwrap()), None), (None, None)] {
        let (mut console, _handle) = Console::new(input, ConsoleOutput::new().unwrap()).unwrap();
        assert!(console.sources().iter().all(|source| source.id != INPUT));
        let (mut session, mut drivers) = FakeDriver::attach(&mut console, ALL).unwrap();
        drivers[RECEIVE].add(&[(BUFFER, 64, true)]);
        console.queue_event(RECEIVE, &mut session).unwrap();
        assert_eq!(drivers[RECEIVE].used().map(|used| used.1), expected);
    }
}

#[test]
fn a_slow_reader_holds_the_guest_and_a_stuck_one_is_given_up() {
    let mut bench = Bench::new(ALL);
    bench.console.shared.output().set_patience(Duration::MAX);
    let mut sent = 0;
    let held = loop {
        bench.drivers[TRANSMIT].add(&[(BUFFER, 4096, false)]);
        bench.queue_event(TRANSMIT).unwrap();
        sent += 1;
        if bench.drivers[TRANSMIT].used().is_none() {
            break sent;
        }
        assert!(sent < 1000, "the buffer has a bound");
    };
    // The reader comes back: the timer's next event takes what was held.
    bench.screen.read_exact(&mut [0; 64 << 10]).unwrap();
    bench.source_event(TIMER);
    assert!(bench.drivers[TRANSMIT].used().is_some());
    assert_eq!(bench.metric("output_bytes"), held * 4096);
    // It stays away: once it is given up, the guest goes on, and what it writes is dropped.
    for _ in 0..60 {
        bench.drivers[TRANSMIT].add(&[(BUFFER, 4096, false)]);
    }
    bench.console.shared.output().set_patience(Duration::ZERO);
    bench.queue_event(TRANSMIT).unwrap();
    bench.queue_event(TRANSMIT).unwrap();
    assert_eq!(bench.metric("output_bytes"), (held + 60) * 4096);
    assert!(bench.metric("dropped_bytes") > 0);
}

#[test]
fn the_size_reaches_the_driver() {
    for (features, interrupt) in [(ALL, true), (0, false)] {
        let mut bench = Bench::new(features);
        bench.handle.resize(132, 43);
        bench.source_event(RESIZED);
        assert_eq!(bench.drivers[0].interrupt().take_change(), interrupt);
        let mut config = [0xee; 14];
        bench.console.read_config(0, &mut config);
        assert_eq!(config, [132, 0, 43, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee]);
    }
}

#[test]
fn emergency_characters_need_no_driver() {
    let mut bench = Bench::new(ALL);
    for character in b"oops\n" {
        bench.console.write_config(EMERGENCY, &u32::from(*character).to_le_bytes(), None);
    }
    bench.console.write_config(4, b"x", None);
    bench.console.write_config(EMERGENCY, &[], None);
    let mut text = [0; 5];
    bench.screen.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"oops\n");
    assert_eq!(bench.metric("output_bytes"), 5);
}

#[test]
fn nonsense_is_the_drivers_error() {
    let mut bench = Bench::new(ALL);
    bench.keyboard.write_all(b"k").unwrap();
    bench.drivers[RECEIVE].add(&[(BUFFER, 16, false)]);
    assert!(matches!(bench.queue_event(RECEIVE), Err(DeviceError::Driver(_))));
    let mut bench = Bench::new(ALL);
    bench.drivers[TRANSMIT].add(&[(BUFFER, (1 << 20) + 1, false)]);
    assert!(matches!(bench.queue_event(TRANSMIT), Err(DeviceError::Driver(_))));
}

#[test]
fn a_driver_may_leave_queues_out() {
    let mut bench = Bench::new(ALL);
    bench.session.queues.iter_mut().for_each(|queue| *queue = None);
    bench.keyboard.write_all(b"k").unwrap();
    bench.source_event(INPUT);
    bench.source_event(TIMER);
}

#[test]
fn the_last_words_are_written() {
    let mut bench = Bench::new(ALL);
    bench.drivers[TRANSMIT].write(BUFFER, b"no newline");
    bench.drivers[TRANSMIT].add(&[(BUFFER, 10, false)]);
    bench.queue_event(TRANSMIT).unwrap();
    bench.handle.finish(Duration::from_secs(1));
    let mut text = [0; 10];
    bench.screen.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"no newline");
}

proptest! {
    /// Whatever the driver offers, what it reads is what was typed, in order, and nothing else in memory changes.
    #[test]
    fn any_buffers_are_safe(
        chains in prop::collection::vec(
            (0usize..2, prop::collection::vec((any::<bool>(), 0u64..0x8000, 0u32..0x2000), 1..4)),
            1..20,
        ),
        typed in prop::collection::vec(1u8.., 0..2000),
    ) {
        let mut bench = Bench::new(ALL);
        bench.keyboard.write_all(&typed).unwrap();
        for (queue, mut buffers) in chains {
            buffers.sort_by_key(|buffer| buffer.0);
            let place = |(writable, place, length): (bool, u64, u32)| (BUFFER + place, length, writable);
            let buffers: Vec<_> = buffers.into_iter().map(place).collect();
            let before = bench.drivers[0].read(BUFFER, 0xa000);
            let taken = usize::try_from(bench.metric("input_bytes")).unwrap();
            bench.drivers[queue].add(&buffers);
            let result = bench.queue_event(queue);
            let given = usize::try_from(bench.metric("input_bytes")).unwrap();
            // What was typed meanwhile lies in the writable buffers, in order, and all else is as it was.
            let (mut expected, mut left) = (before, &typed[taken..given]);
            for (address, length, _) in buffers.into_iter().filter(|buffer| buffer.2) {
                let (now, later) = left.split_at(left.len().min(length as usize));
                let start = usize::try_from(address - BUFFER).unwrap();
                expected[start..start + now.len()].copy_from_slice(now);
                left = later;
            }
            prop_assert!(left.is_empty());
            prop_assert_eq!(bench.drivers[0].read(BUFFER, 0xa000), expected);
            if result.is_err() {
                break;
            }
        }
    }
}
