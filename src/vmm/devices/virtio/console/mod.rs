// SPDX-License-Identifier: Apache-2.0
//! Console (virtio 1.3 §5.3): one port, with the terminal's size and an emergency write.

mod handle;
mod input;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::{Chain, DeviceError, QueueSize, Session, Source, VirtioDevice, copy_config, device_type};
use crate::vmm::devices::console_output::ConsoleOutput;
pub use handle::ConsoleHandle;
use handle::Shared;
use input::Input;

/// Feature bits (virtio 1.3 §5.3.3).
pub mod feature {
    /// The configuration space has the terminal's size.
    pub const SIZE: u32 = 0;
    /// The configuration space has a field to write characters to.
    pub const EMERG_WRITE: u32 = 2;
}

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const QUEUES: [QueueSize; 2] = [QueueSize::new(64).unwrap(), QueueSize::new(64).unwrap()];
/// Offset of `emerg_wr` in the configuration space, after `cols`, `rows` and `max_nr_ports`.
const EMERGENCY: usize = 8;
/// Bytes that are read for one buffer of the guest, and copied at a time.
const PIECE: usize = 4096;
/// Largest write of a driver; Linux writes a page at most.
const MAX_WRITE: usize = 1 << 20;
/// Buffers that one event serves; the rest comes with the next.
const BUDGET: usize = 32;

const INPUT: u16 = 0;
const TIMER: u16 = 1;
const RESIZED: u16 = 2;

/// The console device.
pub struct Console {
    shared: Arc<Shared>,
    input: Option<Input>,
    input_bytes: u64,
}

impl Console {
    /// A console that reads `input` and writes to `output`, and what resizes it.
    ///
    /// # Errors
    /// The kernel's, where it gives no descriptors or cannot make `input` non-blocking.
    pub fn new(input: Option<File>, output: ConsoleOutput) -> io::Result<(Self, ConsoleHandle)> {
        let shared = Shared::new(output)?;
        let handle = ConsoleHandle(Arc::clone(&shared));
        let input = input.map(Input::new).transpose()?;
        Ok((Self { shared, input, input_bytes: 0 }, handle))
    }

    /// Fills the driver's buffers with input, as long as there is both.
    fn receive(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        // A driver may do without one of the queues, and then hears nothing of its side.
        let (Some(input), Ok(queue)) = (&mut self.input, session.queue(RECEIVE)) else { return Ok(()) };
        for _ in 0..BUDGET {
            if !input.ready {
                return Ok(queue.notify_driver()?);
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    continue;
                }
                return Ok(queue.notify_driver()?);
            };
            let mut writer = chain.writer();
            let mut buffer = [0; PIECE];
            let room = buffer.get_mut(..writer.remaining().min(PIECE)).unwrap_or_default();
            if room.is_empty() {
                return Err(DeviceError::Driver("a buffer for console input has no room"));
            }
            let bytes = input.read(room);
            if bytes.is_empty() {
                queue.undo_pop();
            } else {
                writer.write_all(bytes)?;
                self.input_bytes += bytes.len() as u64;
                queue.push(chain.head(), super::chain::used_length(bytes.len()))?;
            }
        }
        queue.notify_driver()?;
        queue.reschedule();
        Ok(())
    }

    /// Takes what the driver wrote, as long as the output's readers keep up. Linux waits for each write with interrupts
    /// off, but the output gives up on a reader after a second.
    fn transmit(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let Ok(queue) = session.queue(TRANSMIT) else { return Ok(()) };
        let mut output = self.shared.output();
        for _ in 0..BUDGET {
            if !output.ready() {
                // The timer goes on with this.
                return Ok(queue.notify_driver()?);
            }
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    continue;
                }
                return Ok(queue.notify_driver()?);
            };
            write(&chain, &mut output)?;
            queue.push(chain.head(), 0)?;
        }
        queue.notify_driver()?;
        queue.reschedule();
        Ok(())
    }
}

fn write(chain: &Chain, output: &mut ConsoleOutput) -> Result<(), DeviceError> {
    let mut reader = chain.reader();
    if reader.remaining() > MAX_WRITE {
        return Err(DeviceError::Driver("more than 1 MiB is written to the console at once"));
    }
    let mut buffer = [0; PIECE];
    while reader.remaining() > 0 {
        let piece = buffer.get_mut(..reader.remaining().min(PIECE)).unwrap_or_default();
        reader.read_exact(piece)?;
        output.push(piece);
    }
    Ok(())
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        device_type::CONSOLE
    }

    fn name(&self) -> &str {
        "console"
    }

    fn features(&self) -> u64 {
        1 << feature::SIZE | 1 << feature::EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        // One port, which matters only with a feature that is not offered; the last field reads as zero.
        let [a, b, c, d] = self.shared.size();
        copy_config(&[a, b, c, d, 1, 0, 0, 0, 0, 0, 0, 0], offset, data);
    }

    /// A character for `emerg_wr` is written whether or not a driver is active: it is what a kernel has before that,
    /// and when all else has failed.
    fn write_config(&mut self, offset: usize, data: &[u8], _session: Option<&mut Session>) {
        if let (EMERGENCY, Some(character)) = (offset, data.first()) {
            self.shared.output().push(&[*character]);
        }
    }

    fn activate(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        if let Some(input) = &mut self.input {
            input.ready = true;
        }
        Ok(())
    }

    fn reset(&mut self, _session: &mut Session) {
        // Nothing watches the timer until the next driver comes.
        self.shared.output().write_out();
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        match queue {
            RECEIVE => self.receive(session),
            _ => self.transmit(session),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let own = [(TIMER, self.shared.output().timer()), (RESIZED, self.shared.resized().as_raw_fd())];
        let mut sources: Vec<_> = own.into_iter().map(|(id, fd)| Source { fd, id, events: EventSet::IN }).collect();
        if let Some(fd) = self.input.as_ref().and_then(Input::descriptor) {
            sources.push(Source { fd, id: INPUT, events: EventSet::IN | EventSet::EDGE_TRIGGERED });
        }
        sources
    }

    fn source_event(&mut self, id: u16, _events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        match id {
            INPUT => {
                if let Some(input) = &mut self.input {
                    input.ready = true;
                }
                self.receive(session)
            }
            TIMER => {
                self.shared.output().write_out();
                self.transmit(session)
            }
            _ => {
                // Another event may have emptied the counter; then there is nothing to read.
                let _ = self.shared.resized().read();
                if session.has(feature::SIZE) {
                    session.interrupt.config_change();
                }
                Ok(())
            }
        }
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let (output, dropped) = self.shared.output().counts();
        vec![("output_bytes", output), ("dropped_bytes", dropped), ("input_bytes", self.input_bytes)]
    }
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
