// SPDX-License-Identifier: Apache-2.0
//! From the host to the guest: frames of a TAP are read straight into the buffers that the driver has posted.
//!
//! Buffers stay in hand between frames, so that a frame costs one `readv` and no search. A TAP does not tell how long
//! its next frame is and cuts off what does not fit, so each read ends in a spill buffer of the host's: a frame that
//! runs into it waits there until the driver has posted the rest of the room. Frames of a stream go by way of it whole.

use std::collections::VecDeque;
use std::io;

use super::super::{Chain, DeviceError, Queue};
use super::wire::Wire;
use super::{HEADER, MAX_FRAME, NOTIFY_EVERY};

/// Frames for one event; the rest is left for the next, so that other devices get their turn.
const BUDGET: u32 = 128;
/// The kernel takes 1024 (`UIO_MAXIOV`); one is the spill buffer's, and a chain can add as many as its queue has.
const MAX_VECTORS: usize = 1023 - 256;
/// Frames that are thrown away before a driver starts, at most: twice a TAP's usual queue.
const MAX_STALE: u32 = 1024;
/// Offset of `num_buffers` in the header (virtio 1.3 §5.1.6).
const NUM_BUFFERS: usize = 10;

/// What has become of the host's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// The TAP is there.
    Up,
    /// The TAP has been deleted.
    Gone,
}

/// What came of a look at the host's side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub link: Link,
    /// The driver was interrupted.
    pub interrupted: bool,
}

/// How the driver wants its frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Format {
    /// A frame may take several chains (`VIRTIO_NET_F_MRG_RXBUF`).
    pub mergeable: bool,
    /// Room in bytes that is gathered before a read, where frames may take several chains.
    pub room: usize,
    /// The driver does not know header flags (no `VIRTIO_NET_F_GUEST_CSUM`; virtio 1.3 §5.1.6.4.1).
    pub clear_flags: bool,
}

struct Buffer {
    chain: Chain,
    bytes: usize,
    vectors: usize,
}

/// The vectors of all buffers in hand, in order.
#[derive(Default)]
struct Vectors(Vec<libc::iovec>);

// SAFETY: the pointers lead into guest memory, which lives as long as the chains that are kept beside them, and which
// any thread may access.
unsafe impl Send for Vectors {}

/// A frame of which the first `direct` bytes lie in buffers in hand and the rest in the spill buffer.
#[derive(Clone, Copy)]
struct Parked {
    bytes: usize,
    direct: usize,
}

/// The receiving half of a network device.
pub(super) struct Receiver {
    format: Format,
    held: VecDeque<Buffer>,
    vectors: Vectors,
    room: usize,
    spill: Box<[u8]>,
    parked: Option<Parked>,
    used: Vec<(u16, u32)>,
    /// Bytes given to the driver since it was last told.
    untold: usize,
    /// The driver was interrupted since serving began.
    interrupted: bool,
    /// The TAP has not been read dry since it last had something.
    pending: bool,
    pub packets: u64,
    pub bytes: u64,
    pub drops: u64,
}

impl Receiver {
    pub fn new() -> Self {
        Self {
            format: Format::default(),
            held: VecDeque::new(),
            vectors: Vectors::default(),
            room: 0,
            // One byte more than the longest frame: one that fills it has been cut off.
            spill: vec![0; MAX_FRAME + 1].into_boxed_slice(),
            parked: None,
            used: Vec::new(),
            untold: 0,
            interrupted: false,
            pending: false,
            packets: 0,
            bytes: 0,
            drops: 0,
        }
    }

    /// Gets ready for a new driver, which sees nothing of what came before it: that may have offloads that it has not
    /// agreed to.
    pub fn start(&mut self, format: Format, wire: &mut Wire) {
        self.clear();
        self.format = format;
        for _ in 0..MAX_STALE {
            if self.read(wire).is_err() {
                break;
            }
        }
    }

    /// Lets go of everything that belongs to the driver.
    pub fn clear(&mut self) {
        self.held.clear();
        self.vectors.0.clear();
        self.room = 0;
        self.parked = None;
        self.pending = false;
    }

    /// Puts the chains in hand back into the ring; there they are found again.
    pub fn put_back(&mut self, queue: &mut Queue) {
        self.drops += u64::from(self.parked.take().is_some());
        for _ in self.held.drain(..) {
            queue.undo_pop();
        }
        self.vectors.0.clear();
        self.room = 0;
    }

    /// The TAP has frames.
    pub fn readable(&mut self, wire: &mut Wire, queue: &mut Queue) -> Result<Served, DeviceError> {
        self.pending = true;
        self.serve(wire, queue)
    }

    /// The driver has posted buffers, or asked work is to go on.
    pub fn refilled(&mut self, wire: &mut Wire, queue: &mut Queue) -> Result<Served, DeviceError> {
        if self.pending { self.serve(wire, queue) } else { Ok(Served { link: Link::Up, interrupted: false }) }
    }

    fn serve(&mut self, wire: &mut Wire, queue: &mut Queue) -> Result<Served, DeviceError> {
        let mut link = Link::Up;
        self.interrupted = false;
        let mut budget = BUDGET;
        queue.disable_notification()?;
        loop {
            if budget == 0 {
                queue.reschedule();
                break;
            }
            budget -= 1;
            self.gather(queue)?;
            if let Some(parked) = self.parked {
                if parked.bytes <= self.room {
                    self.parked = None;
                    self.deliver(parked, queue)?;
                    continue;
                }
                if self.vectors.0.len() >= usize::from(queue.size().get()) {
                    // The driver has no descriptor left to post more room with: waiting would be for ever.
                    self.parked = None;
                    self.drops += 1;
                    continue;
                }
            }
            if self.held.is_empty() || self.parked.is_some() {
                if queue.enable_notification()? {
                    queue.disable_notification()?;
                    continue;
                }
                // `pending` stays: the driver's next notification goes on here.
                break;
            }
            match self.read(wire) {
                Ok(frame) => self.take(frame, queue)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.pending = false;
                    if error.kind() != io::ErrorKind::WouldBlock {
                        link = Link::Gone;
                    }
                    break;
                }
            }
        }
        self.tell(queue)?;
        Ok(Served { link, interrupted: self.interrupted })
    }

    /// Takes chains until there is room for a frame, or no more are posted.
    fn gather(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        while !self.has_room() {
            let Some(chain) = queue.pop()? else { break };
            let bytes = chain.writable_len();
            if bytes < HEADER {
                return Err(DeviceError::Driver("a receive buffer is smaller than the packet header"));
            }
            let before = self.vectors.0.len();
            self.vectors.0.extend(chain.writer().io_vectors(bytes)?);
            self.held.push_back(Buffer { chain, bytes, vectors: self.vectors.0.len() - before });
            self.room += bytes;
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        if self.format.mergeable {
            self.room >= self.format.room.max(self.parked.map_or(0, |parked| parked.bytes))
                || self.vectors.0.len() > MAX_VECTORS
        } else {
            !self.held.is_empty()
        }
    }

    /// Reads one frame into the buffers in hand, then the spill buffer.
    fn read(&mut self, wire: &mut Wire) -> io::Result<Parked> {
        let tap = match wire {
            Wire::Tap(tap) => tap,
            Wire::Stream(stream) => return Ok(Parked { bytes: stream.receive(&mut self.spill)?, direct: 0 }),
        };
        let spill = libc::iovec { iov_base: self.spill.as_mut_ptr().cast(), iov_len: self.spill.len() };
        self.vectors.0.push(spill);
        // SAFETY: the vectors lead into guest memory, kept by the chains in hand and never borrowed as a slice, and
        // into `spill`, which is borrowed mutably here.
        let result = unsafe { tap.receive(&self.vectors.0) };
        self.vectors.0.pop();
        match result? {
            // Only the socket of tests gives an empty read, when its peer is closed.
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(Parked { bytes, direct: bytes.min(self.room) }),
        }
    }

    /// Decides on a frame that was just read.
    fn take(&mut self, frame: Parked, queue: &mut Queue) -> Result<(), DeviceError> {
        if !(HEADER..=MAX_FRAME).contains(&frame.bytes) {
            self.drops += 1;
        } else if frame.bytes <= self.room {
            self.deliver(frame, queue)?;
        } else if self.format.mergeable {
            self.parked = Some(frame);
        } else {
            self.drops += 1;
        }
        Ok(())
    }

    /// Gives the frame to the driver, in as many chains as it fills.
    fn deliver(&mut self, frame: Parked, queue: &mut Queue) -> Result<(), DeviceError> {
        self.used.clear();
        let (mut done, mut vectors) = (0, 0);
        let mut first = None;
        while done < frame.bytes {
            let Some(buffer) = self.held.pop_front() else { break };
            let end = frame.bytes.min(done + buffer.bytes);
            if end > frame.direct {
                let start = done.max(frame.direct);
                let mut writer = buffer.chain.writer();
                writer.skip(start - done)?;
                writer.write_all(self.spill.get(start - frame.direct..end - frame.direct).unwrap_or_default())?;
            }
            self.used.push((buffer.chain.head(), super::super::chain::used_length(end - done)));
            self.room -= buffer.bytes;
            vectors += buffer.vectors;
            done = end;
            first.get_or_insert(buffer.chain);
        }
        self.vectors.0.drain(..vectors);
        if let Some(first) = first {
            let mut header = first.writer();
            if self.format.clear_flags {
                header.clone().write_all(&[0])?;
            }
            header.skip(NUM_BUFFERS)?;
            let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
            header.write_all(&count.to_le_bytes())?;
        }
        self.packets += 1;
        self.bytes += (frame.bytes - HEADER) as u64;
        queue.push_batch(&self.used)?;
        self.untold += frame.bytes;
        if self.untold >= NOTIFY_EVERY { self.tell(queue) } else { Ok(()) }
    }

    fn tell(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        self.untold = 0;
        self.interrupted |= queue.interrupt_driver()?;
        Ok(())
    }
}
