// SPDX-License-Identifier: Apache-2.0
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::OwnedFd;

use super::*;
use proptest::prelude::*;

const DATA: u64 = 0;
const ENABLE: u64 = 1;
const IDENTIFICATION: u64 = 2;
const MODEM_CONTROL: u64 = 4;
const STATUS: u64 = 5;

struct Port {
    serial: Serial,
    line: EventFd,
    reader: PipeReader,
}

impl Port {
    fn new() -> Self {
        let (reader, writer) = io::pipe().unwrap();
        let output = ConsoleOutput::new().unwrap().to_terminal(File::from(OwnedFd::from(writer))).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let port = Self { serial: Serial::new(line.try_clone().unwrap(), output), line, reader };
        port.set_patience(Duration::MAX);
        port
    }

    fn read(&self, register: u64) -> u8 {
        let mut data = [0];
        self.serial.read(register, &mut data);
        data[0]
    }

    fn write(&self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }

    fn set_patience(&self, patience: Duration) {
        self.serial.lock().uart.writer_mut().set_patience(patience);
    }

    fn interrupted(&self) -> bool {
        self.line.read().is_ok()
    }
}

#[test]
fn what_the_guest_writes_arrives() {
    let mut port = Port::new();
    for byte in b"hello\n" {
        assert_eq!(port.read(STATUS), TRANSMITTER_EMPTY);
        port.write(DATA, *byte);
    }
    let mut data = [0; 6];
    port.reader.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"hello\n");
    assert_eq!(port.serial.metrics(), [("output_bytes", 6), ("dropped_bytes", 0), ("input_waiting", 0)]);
}

#[test]
fn a_long_paste_reaches_the_guest_whole_and_in_order() {
    let port = Port::new();
    port.write(ENABLE, 1);
    let input: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    assert_eq!(port.serial.enqueue(&input), input.len());
    assert!(port.interrupted());
    let mut seen = Vec::new();
    while port.read(STATUS) & 1 != 0 {
        seen.push(port.read(DATA));
    }
    assert_eq!(seen, input);
    assert!(port.interrupted(), "the second FIFO was announced as well");
}

#[test]
fn input_is_bounded_and_says_how_much_it_took() {
    let port = Port::new();
    let input = vec![b'z'; INPUT_BOUND + 100];
    let taken = port.serial.enqueue(&input);
    assert_eq!(taken, INPUT_BOUND);
    // What went into the FIFO has made room.
    assert_eq!(port.serial.input_room(), 64);
    assert_eq!(port.serial.enqueue(&input), 64);
    assert_eq!(port.serial.enqueue(&input), 0);
}

#[test]
fn input_waits_while_the_port_loops_back() {
    let port = Port::new();
    port.write(MODEM_CONTROL, 0x10);
    assert_eq!(port.serial.enqueue(b"k"), 1);
    assert_eq!(port.read(STATUS) & 1, 0);
    port.write(MODEM_CONTROL, 0);
    assert_eq!((port.read(STATUS) & 1, port.read(DATA)), (1, b'k'));
}

#[test]
fn a_stuck_reader_shows_as_a_busy_transmitter_and_wakes_the_driver_again() {
    let mut port = Port::new();
    port.write(ENABLE, 2);
    let mut written = 0u32;
    while port.read(STATUS) & TRANSMITTER_EMPTY != 0 {
        port.write(DATA, b'f');
        written += 1;
        assert!(written < 2_000_000, "the buffer has a bound");
    }
    port.read(IDENTIFICATION);
    while port.interrupted() {}
    // The reader comes back: the driver, which waits for its interrupt, gets it.
    let mut data = vec![0; 64 << 10];
    port.reader.read_exact(&mut data).unwrap();
    port.serial.flush();
    assert!(port.interrupted());
    assert_eq!(port.read(IDENTIFICATION) & 0xf, 2);
    assert_eq!(port.read(STATUS), TRANSMITTER_EMPTY);
}

#[test]
fn a_reader_that_stays_stuck_is_given_up() {
    let port = Port::new();
    port.write(ENABLE, 2);
    while port.read(STATUS) & TRANSMITTER_EMPTY != 0 {
        port.write(DATA, b'f');
    }
    port.read(IDENTIFICATION);
    while port.interrupted() {}
    port.serial.flush();
    assert!(!port.interrupted());
    port.set_patience(Duration::ZERO);
    port.serial.flush();
    assert!(port.interrupted());
    for _ in 0..10_000 {
        port.write(DATA, b'g');
    }
    let dropped = port.serial.metrics().iter().find(|(name, _)| *name == "dropped_bytes").unwrap().1;
    assert!(dropped > 0);
}

#[test]
fn a_word_goes_to_two_registers() {
    let port = Port::new();
    port.serial.write(6, &[0xaa, 0x55]);
    let mut data = [0; 4];
    port.serial.read(6, &mut data);
    // Modem status cannot be written; scratch can; beyond the last register there is nothing.
    assert_eq!((data[1], data[2], data[3]), (0x55, 0, 0));
}

proptest! {
    /// Whatever the guest does to the registers, the port neither panics nor holds more than its bounds.
    #[test]
    fn any_accesses_are_safe(
        accesses in prop::collection::vec((any::<bool>(), 0u64..300, prop::collection::vec(any::<u8>(), 0..9)), 1..200),
        input in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let port = Port::new();
        for (write, register, mut data) in accesses {
            let register = if register < 256 { register % 8 } else { register };
            if write {
                port.serial.write(register, &data);
            } else {
                port.serial.read(register, &mut data);
            }
            port.serial.enqueue(&input);
            port.serial.flush();
        }
        prop_assert!(port.serial.input_room() <= INPUT_BOUND);
    }
}
