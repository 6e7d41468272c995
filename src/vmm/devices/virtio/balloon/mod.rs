// SPDX-License-Identifier: Apache-2.0
//! Traditional memory balloon (virtio 1.3 §5.5): the guest gives memory back, on request and, by free page reporting,
//! of its own accord.
//!
//! The pages' contents are gone with them; a guest that touches one again gets a new page of zeroes.

mod discard;
mod handle;
mod statistics;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;

use super::{
    Chain, DeviceError, DeviceState, QueueSize, RestoreError, Session, Source, VirtioDevice, copy_config, device_type,
};
use crate::vmm::memory::Ram;
use discard::{discard, whole_pages};
use handle::Shared;
pub use handle::{BalloonHandle, TargetError};
pub use statistics::Statistics;

/// Feature bits (virtio 1.3 §5.5.3).
pub mod feature {
    /// The driver sends statistics.
    pub const STATS_VQ: u32 = 1;
    /// The driver takes pages back on its own before it runs out of memory.
    pub const DEFLATE_ON_OOM: u32 = 2;
    /// The driver tells what it fills free pages with.
    pub const PAGE_POISON: u32 = 4;
    /// The driver reports free pages.
    pub const PAGE_REPORTING: u32 = 5;
}

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The statistics queue, where that feature was agreed on.
const STATISTICS: usize = 2;
/// Inflate, deflate, statistics, (free page hints,) reporting. Reporting has number 4 in the specification; Linux leaves
/// no gaps for queues that it does not use and so has it at 3, or at 2 without statistics. Each is one of these.
///
/// Small rings bound what one event costs; Linux needs 32 descriptors for reports, and one for everything else.
const QUEUES: [QueueSize; 5] = {
    let (one, reports) = (QueueSize::new(8).unwrap(), QueueSize::new(64).unwrap());
    [one, one, reports, reports, reports]
};
/// Pages in one request; Linux sends 256 at most.
const MAX_PAGES: usize = 1024;
/// Page frame numbers are of 4 KiB pages, whatever the guest's page size (virtio 1.3 §5.5.6).
const PAGE_SHIFT: u32 = 12;
const PAGE: usize = 1 << PAGE_SHIFT;
/// Offsets in the configuration space.
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// The balloon device.
pub struct Balloon {
    shared: Arc<Shared>,
    /// Head of the buffer with which the driver will be asked for statistics.
    statistics_buffer: Option<u16>,
    poison: u32,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    inflated_pages: u64,
    deflated_pages: u64,
    reported_bytes: u64,
    discard_failures: u64,
}

impl Balloon {
    /// An empty balloon in a guest of `memory_size` bytes, and what steers it.
    ///
    /// # Errors
    /// The kernel's, where it gives no eventfd.
    pub fn new(memory_size: u64) -> io::Result<(Self, BalloonHandle)> {
        let shared = Shared::new(memory_size)?;
        let handle = BalloonHandle(Arc::clone(&shared));
        Ok((Self { shared, statistics_buffer: None, poison: 0, counters: Counters::default() }, handle))
    }

    fn config(&self) -> [u8; 16] {
        let mut config = [0; 16];
        // The third field belongs to free page hints, which are not offered.
        let fields = [self.shared.target(), self.shared.actual(), 0, self.poison];
        for (place, field) in config.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        config
    }

    fn inflate(&mut self, chain: &Chain, memory: &Ram) -> Result<u32, DeviceError> {
        let mut pages = page_numbers(chain)?;
        self.counters.inflated_pages += pages.len() as u64;
        pages.sort_unstable();
        pages.dedup();
        // One call for each run of neighbours.
        for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            if let Some(first) = run.first() {
                self.discard(memory, GuestAddress(u64::from(*first) << PAGE_SHIFT), run.len() * PAGE)?;
            }
        }
        Ok(0)
    }

    /// Nothing to do but count: a page comes back when the guest touches it.
    fn deflate(&mut self, chain: &Chain) -> Result<u32, DeviceError> {
        self.counters.deflated_pages += page_numbers(chain)?.len() as u64;
        Ok(0)
    }

    fn report(&mut self, chain: &Chain, memory: &Ram) -> Result<u32, DeviceError> {
        // Reported pages have to come back with what the driver fills free pages with (virtio 1.3 §5.5.6.7.2), and
        // ours come back with zeroes.
        if self.poison != 0 {
            return Ok(0);
        }
        for (address, length) in chain.writable_spans() {
            if let Some((address, length)) = whole_pages(address, length) {
                self.counters.reported_bytes += length as u64;
                self.discard(memory, address, length)?;
            }
        }
        Ok(0)
    }

    fn discard(&mut self, memory: &Ram, address: GuestAddress, length: usize) -> Result<(), DeviceError> {
        match discard(memory, address, length) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DeviceError::Driver("a page for the balloon is outside of RAM"))
            }
            // The page stays in use on the host, which is a loss for the host and none for the guest.
            Err(_) => {
                self.counters.discard_failures += 1;
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Takes what the driver tells, and keeps its buffer until the next wish: to give it back is to ask again.
    fn take_statistics(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let queue = session.queue(STATISTICS)?;
        // A driver has one such buffer; one that refills while it is served does not hold this thread.
        for _ in 0..queue.size().get() {
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    continue;
                }
                return Ok(());
            };
            self.shared.set_statistics(Some(Statistics::read(&chain)?));
            if let Some(older) = self.statistics_buffer.replace(chain.head()) {
                queue.push(older, 0)?;
                queue.notify_driver()?;
            }
        }
        queue.reschedule();
        Ok(())
    }

    fn ask_for_statistics(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        if let Some(head) = self.statistics_buffer.take() {
            let queue = session.queue(STATISTICS)?;
            queue.push(head, 0)?;
            queue.notify_driver()?;
        }
        Ok(())
    }
}

/// The page frame numbers in a request.
fn page_numbers(chain: &Chain) -> Result<Vec<u32>, DeviceError> {
    let mut reader = chain.reader();
    let bytes = reader.remaining();
    if !bytes.is_multiple_of(4) || bytes / 4 > MAX_PAGES {
        return Err(DeviceError::Driver("a list of pages is too long, or ends within a page number"));
    }
    (0..bytes / 4).map(|_| Ok(u32::from_le(reader.read_obj()?))).collect()
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        device_type::BALLOON
    }

    fn name(&self) -> &str {
        "balloon"
    }

    fn features(&self) -> u64 {
        1 << feature::STATS_VQ | 1 << feature::DEFLATE_ON_OOM | 1 << feature::PAGE_POISON | 1 << feature::PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8], _session: Option<&mut Session>) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            ACTUAL => self.shared.set_actual(value),
            POISON => self.poison = value,
            _ => {}
        }
    }

    fn reset(&mut self, _session: &mut Session) {
        self.statistics_buffer = None;
        self.poison = 0;
        self.shared.set_actual(0);
        self.shared.set_statistics(None);
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon {
            target: self.shared.target(),
            actual: self.shared.actual(),
            poison: self.poison,
            statistics_buffer: self.statistics_buffer,
        }
    }

    fn restore(&mut self, state: &DeviceState, _session: Option<&mut Session>) -> Result<(), RestoreError> {
        let DeviceState::Balloon { target, actual, poison, statistics_buffer } = *state else {
            return Err(RestoreError::Nonsense("it is not that of a balloon"));
        };
        self.shared.set_target(target);
        self.shared.set_actual(actual);
        self.poison = poison;
        self.statistics_buffer = statistics_buffer;
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        let memory = Arc::clone(&session.memory);
        match queue {
            INFLATE => session.queue(queue)?.serve(|chain| self.inflate(chain, &memory)),
            DEFLATE => session.queue(queue)?.serve(|chain| self.deflate(chain)),
            STATISTICS if session.has(feature::STATS_VQ) => self.take_statistics(session),
            _ if session.has(feature::PAGE_REPORTING) => {
                session.queue(queue)?.serve(|chain| self.report(chain, &memory))
            }
            _ => Err(DeviceError::Driver("a queue is used whose feature was not agreed on")),
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.shared.wake().as_raw_fd(), id: 0, events: EventSet::IN }]
    }

    fn source_event(&mut self, _id: u16, _events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        // Another event may have emptied the counter; then there is nothing to read.
        let _ = self.shared.wake().read();
        if self.shared.take_target_change() {
            session.interrupt.config_change();
        }
        if self.shared.take_statistics_wish() && session.has(feature::STATS_VQ) {
            self.ask_for_statistics(session)?;
        }
        Ok(())
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters { inflated_pages, deflated_pages, reported_bytes, discard_failures } = self.counters;
        vec![
            ("target_pages", self.shared.target().into()),
            ("actual_pages", self.shared.actual().into()),
            ("inflated_pages", inflated_pages),
            ("deflated_pages", deflated_pages),
            ("reported_bytes", reported_bytes),
            ("discard_failures", discard_failures),
        ]
    }
}

#[cfg(test)]
mod tests;
