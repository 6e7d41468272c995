// SPDX-License-Identifier: Apache-2.0
//! Block device (virtio 1.3 §5.2) on a raw file or block device.
//!
//! All queues are served by the event-loop thread; waiting for the disk is left to an io_uring (see [`Engine`]).
//! A flush covers the writes that have been answered, as the specification asks for, so it waits for no other.

mod disk;
mod engine;
pub mod request;

use std::mem;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vmm_sys_util::epoll::EventSet;

use super::chain::used_length;
use super::{
    Chain, DeviceError, DeviceState, QueueSize, RestoreError, Session, Source, VirtioDevice, copy_config, device_type,
};
pub use disk::{BlockError, Topology};
pub use engine::Engine;

use disk::Disk;
use engine::{Job, Outcome, Transfer, Work, Worker};
use request::{Command, HEADER, Limits, Request, SECTOR, SERIAL, Status};

/// Most queues: more CPUs than a guest can have.
pub const MAX_QUEUES: u16 = 32;
/// Requests, and bytes moved in this thread, for one event; the rest is left for the next.
const BUDGET: u32 = 512;
const BUDGET_BYTES: usize = 16 << 20;
/// Requests that are given back to the driver at a time: it can go on with them while more are served.
const BATCH: usize = 32;

/// Offsets in configuration space (virtio 1.3 §5.2.4).
mod config {
    pub const CAPACITY: usize = 0;
    pub const SIZE_MAX: usize = 8;
    pub const SEG_MAX: usize = 12;
    pub const BLK_SIZE: usize = 20;
    pub const PHYSICAL_BLOCK_EXP: usize = 24;
    pub const MIN_IO_SIZE: usize = 26;
    pub const OPT_IO_SIZE: usize = 28;
    pub const WRITEBACK: usize = 32;
    pub const NUM_QUEUES: usize = 34;
    pub const MAX_DISCARD_SECTORS: usize = 36;
    pub const MAX_DISCARD_SEG: usize = 40;
    pub const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    pub const SIZE: usize = 60;
}

/// A disk of a guest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// Whether the guest may only read.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest finds as the disk's serial: up to 20 printable ASCII characters.
    #[serde(default)]
    pub serial: Option<String>,
    /// Number of queues: one a CPU is best.
    #[serde(default = "one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

/// The block device.
pub struct Block {
    // Dropped first: what is in flight needs the disk.
    worker: Worker,
    disk: Disk,
    limits: Limits,
    serial: [u8; SERIAL],
    config: [u8; config::SIZE],
    features: u64,
    queues: Vec<QueueSize>,
    /// By queue: done, not yet given back, as `(head, bytes written)`.
    done: Vec<Vec<(u16, u32)>>,
    /// By queue: it has requests that wait for others in flight.
    waiting: Vec<bool>,
    /// The driver is promised that a write that is answered is durable.
    write_through: bool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    write_bytes: u64,
    flushes: u64,
    errors: u64,
}

impl Block {
    /// Opens and locks the disk; nothing is opened later.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn open(config: &BlockConfig) -> Result<Self, BlockError> {
        Self::open_with(config, Engine::Adaptive)
    }

    /// As [`Block::open`], with a given engine.
    ///
    /// # Errors
    /// As [`Block::open`], and where [`Engine::Ring`] is asked for and there is no io_uring.
    pub fn open_with(config: &BlockConfig, engine: Engine) -> Result<Self, BlockError> {
        let path = &config.path;
        if !(1..=MAX_QUEUES).contains(&config.queues) {
            return Err(BlockError::Queues { path: path.clone(), queues: config.queues, max: MAX_QUEUES });
        }
        let mut serial = [0; SERIAL];
        if let Some(text) = &config.serial {
            if !(1..=SERIAL).contains(&text.len()) || !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                return Err(BlockError::Serial { path: path.clone(), serial: text.clone() });
            }
            put(&mut serial, 0, text.as_bytes());
        }
        let disk = Disk::open(path, config.read_only)?;
        let system = |source| BlockError::System { path: path.clone(), what: "make an io_uring for it", source };
        let worker = Worker::new(engine).map_err(system)?;
        let limits = Limits { sectors: disk.size() / SECTOR, read_only: disk.read_only(), clears: disk.clears() };
        let queues = usize::from(config.queues);
        Ok(Self {
            worker,
            limits,
            serial,
            config: space(&disk, &limits, config.queues),
            features: offered(&limits, config.queues),
            disk,
            queues: vec![QueueSize::DEFAULT; queues],
            done: vec![Vec::with_capacity(BATCH); queues],
            waiting: vec![false; queues],
            write_through: false,
            counters: Counters::default(),
        })
    }

    /// Serves a queue until it is empty, the budget is used up, or no more can be in flight.
    fn serve(&mut self, number: usize, session: &mut Session) -> Result<(), DeviceError> {
        let (mut budget, mut bytes) = (BUDGET, BUDGET_BYTES);
        session.queue(number)?.disable_notification()?;
        loop {
            let queue = session.queue(number)?;
            if budget == 0 || bytes == 0 {
                queue.reschedule();
                break;
            }
            if self.worker.is_full() {
                if let Some(waiting) = self.waiting.get_mut(number) {
                    *waiting = true;
                }
                break;
            }
            if let Some(chain) = queue.pop()? {
                budget -= 1;
                bytes = bytes.saturating_sub(self.begin(number, chain)?);
                if self.done.get(number).is_some_and(|done| done.len() >= BATCH) {
                    self.give_back(number, session)?;
                }
                continue;
            }
            // Before going to sleep: what is done by now goes back, and a driver that was quick is served on.
            self.settle(session)?;
            let queue = session.queue(number)?;
            if !queue.enable_notification()? {
                return Ok(());
            }
            queue.disable_notification()?;
        }
        self.settle(session)
    }

    /// Does or starts one request; gives the bytes that were moved here and now.
    fn begin(&mut self, number: usize, chain: Chain) -> Result<usize, DeviceError> {
        let Request { command, room } = Request::parse(&chain, &self.limits)?;
        let durable = self.write_through;
        let work = match command {
            Command::Read { offset, length } => {
                let vectors = chain.writer().io_vectors(length)?.collect();
                Work::Transfer(Transfer::new(false, false, offset, length, vectors))
            }
            Command::Write { offset, length } => {
                let mut reader = chain.reader();
                reader.skip(HEADER)?;
                Work::Transfer(Transfer::new(true, durable, offset, length, reader.io_vectors(length)?.collect()))
            }
            Command::Flush => Work::Flush,
            Command::Clear(ranges) => Work::Clear { ranges, tried_other: false, durable },
            Command::Identify => {
                let part = self.serial.get(..room.min(SERIAL)).unwrap_or_default();
                chain.writer().write_all(part)?;
                self.answer(number, &chain, room, part.len(), Status::Ok)?;
                return Ok(0);
            }
            Command::Refuse(status) => {
                self.answer(number, &chain, room, 0, status)?;
                return Ok(0);
            }
        };
        self.count(&work);
        let job = Job::new(number, chain, room, work);
        if job.is_empty() {
            self.answer(number, &job.chain, room, 0, Status::Ok)?;
            return Ok(0);
        }
        let bytes = job.left();
        let handled = self.worker.handle(job, self.disk.as_raw_fd());
        match handled.map_err(|source| DeviceError::Host { what: "starting disk I/O", source })? {
            Outcome::Done(job, status) => {
                self.finish(&job, status)?;
                Ok(bytes)
            }
            Outcome::Started => Ok(0),
        }
    }

    fn count(&mut self, work: &Work) {
        let counters = &mut self.counters;
        match work {
            Work::Transfer(transfer) if transfer.is_write() => {
                counters.writes += 1;
                counters.write_bytes += transfer.left();
            }
            Work::Transfer(transfer) => {
                counters.reads += 1;
                counters.read_bytes += transfer.left();
            }
            Work::Flush => counters.flushes += 1,
            Work::Clear { .. } => {}
        }
    }

    fn finish(&mut self, job: &Job, status: Status) -> Result<(), DeviceError> {
        self.answer(job.queue, &job.chain, job.room, job.filled(), status)
    }

    /// Writes the status, and notes the chain as done with the first `filled` of its `room` writable bytes written.
    fn answer(
        &mut self,
        number: usize,
        chain: &Chain,
        room: usize,
        filled: usize,
        status: Status,
    ) -> Result<(), DeviceError> {
        let mut writer = chain.writer();
        writer.skip(room)?;
        writer.write_all(&[status.byte()])?;
        self.counters.errors += u64::from(status != Status::Ok);
        // The used length may only claim bytes that were written from the first on (virtio 1.3 §2.7.8.2), so the status
        // counts only where there is no gap before it.
        let written = if filled == room { room + 1 } else { filled };
        if let Some(done) = self.done.get_mut(number) {
            done.push((chain.head(), used_length(written)));
        }
        Ok(())
    }

    /// Sends off what was started, takes in what has come back, and gives all that is done to the driver.
    fn settle(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let host = |source| DeviceError::Host { what: "waiting for disk I/O", source };
        self.worker.submit().map_err(host)?;
        if self.worker.in_flight() > 0 {
            let mut finished = Vec::new();
            let reaped = self.worker.reap(self.disk.as_raw_fd(), |job, status| finished.push((job, status)));
            for (job, status) in finished {
                self.finish(&job, status)?;
            }
            reaped.map_err(host)?;
        }
        (0..self.done.len()).try_for_each(|number| self.give_back(number, session))
    }

    /// Gives what is done on a queue to the driver: one interrupt for all, if any.
    fn give_back(&mut self, number: usize, session: &mut Session) -> Result<(), DeviceError> {
        let Some(done) = self.done.get_mut(number) else { return Ok(()) };
        if !done.is_empty() {
            let queue = session.queue(number)?;
            queue.push_batch(done)?;
            done.clear();
            queue.notify_driver()?;
        }
        Ok(())
    }

    fn set_write_through(&mut self, write_through: bool) {
        self.write_through = write_through;
        put(&mut self.config, config::WRITEBACK, &[u8::from(!write_through)]);
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        device_type::BLOCK
    }

    fn name(&self) -> &str {
        "block"
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &self.queues
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8], session: Option<&mut Session>) {
        // The one writable field (virtio 1.3 §5.2.5.1).
        if session.is_some_and(|session| session.has(VIRTIO_BLK_F_CONFIG_WCE)) && offset == config::WRITEBACK {
            match data {
                [0] => self.set_write_through(true),
                [1] => self.set_write_through(false),
                _ => {}
            }
        }
    }

    fn activate(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        session.queue(0)?;
        // A driver that cannot flush counts on each write being durable (virtio 1.3 §5.2.5.2).
        self.set_write_through(!session.has(VIRTIO_BLK_F_FLUSH));
        Ok(())
    }

    fn reset(&mut self, _session: &mut Session) {
        self.worker.cancel();
        self.done.iter_mut().for_each(Vec::clear);
        self.waiting.fill(false);
    }

    /// What the disk is at work on is finished, not cancelled; what waits for that is left in the ring.
    fn rest(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.settle(session)?;
        while self.worker.in_flight() > 0 {
            self.worker.wait().map_err(|source| DeviceError::Host { what: "waiting for disk I/O", source })?;
            self.settle(session)?;
        }
        for number in 0..self.waiting.len() {
            if self.waiting.get_mut(number).is_some_and(mem::take) {
                session.queue(number)?.reschedule();
            }
        }
        Ok(())
    }

    fn state(&self) -> DeviceState {
        DeviceState::Block { write_through: self.write_through, disk: self.disk.identity() }
    }

    fn restore(&mut self, state: &DeviceState, _session: Option<&mut Session>) -> Result<(), RestoreError> {
        let DeviceState::Block { write_through, disk } = state else {
            return Err(RestoreError::Nonsense("it is not that of a disk"));
        };
        if let Some(then) = disk {
            self.disk.check_identity(then)?;
        }
        self.set_write_through(*write_through);
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        self.serve(queue, session)
    }

    fn sources(&self) -> Vec<Source> {
        self.worker.descriptor().map(|fd| Source { fd, id: 0, events: EventSet::IN }).into_iter().collect()
    }

    fn source_event(&mut self, _id: u16, _events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        self.settle(session)?;
        for number in 0..self.waiting.len() {
            if self.waiting.get_mut(number).is_some_and(mem::take) {
                self.serve(number, session)?;
            }
        }
        Ok(())
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        vec![
            ("reads", counters.reads),
            ("writes", counters.writes),
            ("read_bytes", counters.read_bytes),
            ("write_bytes", counters.write_bytes),
            ("flushes", counters.flushes),
            ("errors", counters.errors),
            ("in_flight", u64::try_from(self.worker.in_flight()).unwrap_or(u64::MAX)),
        ]
    }
}

fn offered(limits: &Limits, queues: u16) -> u64 {
    let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX
        | 1 << VIRTIO_BLK_F_SEG_MAX
        | 1 << VIRTIO_BLK_F_BLK_SIZE
        | 1 << VIRTIO_BLK_F_TOPOLOGY
        | 1 << VIRTIO_BLK_F_FLUSH
        | 1 << VIRTIO_BLK_F_CONFIG_WCE;
    features |= u64::from(limits.read_only) << VIRTIO_BLK_F_RO;
    features |= u64::from(limits.clears) << VIRTIO_BLK_F_DISCARD;
    features |= u64::from(limits.clears) << VIRTIO_BLK_F_WRITE_ZEROES;
    features | u64::from(queues > 1) << VIRTIO_BLK_F_MQ
}

fn space(disk: &Disk, limits: &Limits, queues: u16) -> [u8; config::SIZE] {
    let mut space = [0; config::SIZE];
    let Topology { logical, physical, minimum, optimal } = disk.topology();
    let exponent = (physical / logical).trailing_zeros().to_le_bytes()[0];
    let minimum = u16::try_from(minimum / logical).unwrap_or(u16::MAX);
    put(&mut space, config::CAPACITY, &limits.sectors.to_le_bytes());
    put(&mut space, config::SIZE_MAX, &request::MAX_SEGMENT.to_le_bytes());
    put(&mut space, config::SEG_MAX, &request::MAX_SEGMENTS.to_le_bytes());
    put(&mut space, config::BLK_SIZE, &logical.to_le_bytes());
    put(&mut space, config::PHYSICAL_BLOCK_EXP, &[exponent]);
    put(&mut space, config::MIN_IO_SIZE, &minimum.to_le_bytes());
    put(&mut space, config::OPT_IO_SIZE, &(optimal / logical).to_le_bytes());
    put(&mut space, config::WRITEBACK, &[1]);
    put(&mut space, config::NUM_QUEUES, &queues.to_le_bytes());
    if limits.clears {
        put(&mut space, config::MAX_DISCARD_SECTORS, &request::MAX_RANGE_SECTORS.to_le_bytes());
        put(&mut space, config::MAX_DISCARD_SEG, &request::MAX_RANGES.to_le_bytes());
        // Less than a physical block would free nothing.
        put(&mut space, config::DISCARD_SECTOR_ALIGNMENT, &(physical / 512).to_le_bytes());
        put(&mut space, config::MAX_WRITE_ZEROES_SECTORS, &request::MAX_RANGE_SECTORS.to_le_bytes());
        put(&mut space, config::MAX_WRITE_ZEROES_SEG, &request::MAX_RANGES.to_le_bytes());
        put(&mut space, config::WRITE_ZEROES_MAY_UNMAP, &[1]);
    }
    space
}

fn put(config: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in config.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

#[cfg(test)]
#[path = "property_test.rs"]
mod property_tests;
#[cfg(test)]
#[path = "block_test.rs"]
mod tests;
