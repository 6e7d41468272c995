// SPDX-License-Identifier: Apache-2.0
//! The first serial port: a 16550 whose registers are those of `vm-superio`, with bounded input and output around it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::vmm::bus::BusDevice;
use crate::vmm::devices::console_output::ConsoleOutput;

const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
/// The divisor latch hides the interrupt enable register.
const DIVISOR_LATCH: u8 = 0x80;
/// Transmitter holding register empty, and transmitter idle.
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Bytes of input that wait for the guest beyond its FIFO.
const INPUT_BOUND: usize = 64 << 10;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = vm_superio::Serial<Line, NoEvents, ConsoleOutput>;

/// A serial port in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Low and high byte.
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    /// Control and status.
    line: [u8; 2],
    /// Control and status.
    modem: [u8; 2],
    scratch: u8,
    /// Input that the guest has not read.
    fifo: Vec<u8>,
    /// The guest may wait to hear that the transmitter is free.
    shown_busy: bool,
}

/// Eight ports, from [`crate::vmm::layout::SERIAL_PORT`] on.
pub struct Serial {
    state: Mutex<State>,
}

struct State {
    uart: Uart,
    /// Input that the FIFO has no room for yet.
    input: VecDeque<u8>,
    /// The guest has read that the transmitter is busy, and may wait for the interrupt that it no longer is.
    shown_busy: bool,
}

impl Serial {
    /// Number of ports.
    pub const LENGTH: u64 = 8;

    /// A port that interrupts on the irqfd `line` and writes to `output`.
    pub fn new(line: EventFd, output: ConsoleOutput) -> Self {
        let uart = Uart::new(Line(line), output);
        Self { state: Mutex::new(State { uart, input: VecDeque::new(), shown_busy: false }) }
    }

    /// Its registers, and the input in its FIFO. What waits beyond that is this terminal's.
    pub fn state(&self) -> SerialState {
        let state = self.lock();
        let uart = state.uart.state();
        SerialState {
            divisor: [uart.baud_divisor_low, uart.baud_divisor_high],
            interrupt_enable: uart.interrupt_enable,
            interrupt_identification: uart.interrupt_identification,
            line: [uart.line_control, uart.line_status],
            modem: [uart.modem_control, uart.modem_status],
            scratch: uart.scratch,
            fifo: uart.in_buffer,
            shown_busy: state.shown_busy,
        }
    }

    /// Takes up where another port was, and interrupts where that had an interrupt pending.
    ///
    /// # Errors
    /// More input than its FIFO holds; or the kernel's, where it gives no timer.
    pub fn restore(&self, saved: &SerialState) -> io::Result<()> {
        let state = &mut *self.lock();
        let [line_control, line_status] = saved.line;
        let [modem_control, modem_status] = saved.modem;
        let registers = vm_superio::serial::SerialState {
            baud_divisor_low: saved.divisor[0],
            baud_divisor_high: saved.divisor[1],
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch: saved.scratch,
            in_buffer: saved.fifo.clone(),
        };
        let line = || state.uart.interrupt_evt().0.try_clone().map(Line);
        let (line, spare) = (line()?, line()?);
        let old = std::mem::replace(&mut state.uart, Uart::new(spare, ConsoleOutput::new()?));
        let new = Uart::from_state(&registers, line, NoEvents, old.into_writer());
        state.uart = new.map_err(|_| io::ErrorKind::InvalidData)?;
        state.shown_busy = saved.shown_busy;
        Ok(())
    }

    /// Gives the guest input; returns how much of it was taken. The rest finds no room until the guest reads.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = bytes.len().min(INPUT_BOUND - state.input.len());
        state.input.extend(bytes.iter().take(taken));
        state.feed();
        taken
    }

    /// Bytes that [`Serial::enqueue`] would take now.
    pub fn input_room(&self) -> usize {
        INPUT_BOUND - self.lock().input.len()
    }

    /// What the event loop waits on for [`Serial::flush`]: readable when it is due.
    pub fn timer(&self) -> RawFd {
        self.lock().uart.writer().timer()
    }

    /// Writes gathered output to the host.
    pub fn flush(&self) {
        let mut state = self.lock();
        state.uart.writer_mut().write_out();
        if state.shown_busy && state.uart.writer().ready() {
            state.transmitter_empty();
        }
    }

    /// Writes what is left of the output, for the end of the VM, and waits for its readers at most `limit`.
    pub fn finish(&self, limit: Duration) {
        self.lock().uart.writer_mut().finish(limit);
    }

    /// Counters for the control socket's `metrics`.
    pub fn metrics(&self) -> Vec<(&'static str, u64)> {
        let state = self.lock();
        let (bytes, dropped) = state.uart.writer().counts();
        vec![("output_bytes", bytes), ("dropped_bytes", dropped), ("input_waiting", state.input.len() as u64)]
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Moves waiting input into the FIFO, as far as there is room.
    fn feed(&mut self) {
        if self.input.is_empty() || self.uart.fifo_capacity() == 0 {
            return;
        }
        let (bytes, _) = self.input.as_slices();
        // Takes nothing in loopback mode. An irqfd that cannot be written has an interrupt pending already.
        if let Ok(count) = self.uart.enqueue_raw_bytes(bytes) {
            self.input.drain(..count.min(self.input.len()));
        }
    }

    /// Interrupts a driver that waits for the transmitter: setting the enable register again does, where it is on.
    fn transmitter_empty(&mut self) {
        if self.uart.read(LINE_CONTROL) & DIVISOR_LATCH == 0 {
            let enabled = self.uart.read(INTERRUPT_ENABLE);
            let _ = self.uart.write(INTERRUPT_ENABLE, enabled);
            self.shown_busy = false;
        }
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.lock();
        // A wider access is split over consecutive ports, as an 8-bit device on a PC sees it.
        for (register, byte) in (offset..).zip(data) {
            let Ok(register) = u8::try_from(register) else { return };
            *byte = state.uart.read(register);
            if register == LINE_STATUS && !state.uart.writer().ready() {
                *byte &= !TRANSMITTER_EMPTY;
                state.shown_busy = true;
            }
        }
        state.feed();
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.lock();
        for (register, byte) in (offset..).zip(data) {
            let Ok(register) = u8::try_from(register) else { return };
            // Fails where the irqfd's counter is full: then an interrupt is pending anyway.
            let _ = state.uart.write(register, *byte);
        }
        state.feed();
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
