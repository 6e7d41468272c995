// SPDX-License-Identifier: Apache-2.0
//! Descriptor chains: copied once from guest memory, range-checked here and nowhere else.
//!
//! After [`Chain::copy`] the guest can still change the *contents* of its buffers, never where they are or how long.

use std::io;
use std::sync::Arc;

use smallvec::SmallVec;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::super::super::memory::Ram;
use super::queue::QueueSize;

/// Why a chain cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// It ends in the middle: a loop, an index beyond the table, a table outside of RAM, or more than 4 GiB in all.
    #[error("descriptor chain {head} does not end, or leads outside of its table")]
    Unterminated {
        /// Its first descriptor.
        head: u16,
    },
    /// It has more descriptors than its queue.
    #[error("descriptor chain {head} is longer than its queue")]
    TooLong {
        /// Its first descriptor.
        head: u16,
    },
    /// A buffer that is empty or not wholly in RAM.
    #[error("buffer of {length} bytes at {address:#x} is empty or outside of RAM")]
    Buffer {
        /// Guest address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// Device-readable buffers must come first (virtio 1.3 §2.7.4.2).
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// Its first descriptor.
        head: u16,
    },
    /// The chain is shorter than what it must hold.
    #[error("descriptor chain too short: {wanted} bytes wanted, {left} left")]
    Short {
        /// Bytes wanted.
        wanted: usize,
        /// Bytes left.
        left: usize,
    },
}

/// A buffer of a chain, known to lie in RAM, and looked up there once.
#[derive(Clone, Copy, Debug)]
struct Span {
    address: GuestAddress,
    host: *mut u8,
    length: usize,
}

// SAFETY: `host` leads into RAM, which the span's chain keeps mapped, at the same place for all threads.
unsafe impl Send for Span {}

impl Span {
    fn find(memory: &Ram, descriptor: Descriptor) -> Result<Self, ChainError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        let found = usize::try_from(length).ok().filter(|length| *length > 0);
        match found.and_then(|length| memory.get_slice(address, length).ok()) {
            Some(slice) => Ok(Self { address, host: slice.ptr_guard_mut().as_ptr(), length: slice.len() }),
            None => Err(ChainError::Buffer { address: address.0, length }),
        }
    }
}

/// One request of a driver: buffers to read, then buffers to write.
#[derive(Debug)]
pub struct Chain {
    /// Keeps mapped what the spans lead to.
    _memory: Arc<Ram>,
    head: u16,
    /// Most chains have no more, and so need no memory of their own.
    spans: SmallVec<[Span; 3]>,
    /// How many of them are readable; they come first.
    readable: usize,
}

impl Chain {
    /// Walks the chain once, copying and checking each descriptor.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub fn copy(
        memory: &Arc<Ram>,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        size: QueueSize,
    ) -> Result<Self, ChainError> {
        let mut chain = Self { _memory: Arc::clone(memory), head, spans: SmallVec::new(), readable: 0 };
        let (mut count, mut open) = (0u32, true);
        for descriptor in descriptors {
            count += 1;
            // Indirect tables may be longer than the queue, chains may not (virtio 1.3 §2.7.5.3.1).
            if count > u32::from(size.get()) {
                return Err(ChainError::TooLong { head });
            }
            let span = Span::find(memory, descriptor)?;
            if !descriptor.is_write_only() {
                if chain.readable < chain.spans.len() {
                    return Err(ChainError::Order { head });
                }
                chain.readable += 1;
            }
            chain.spans.push(span);
            open = descriptor.has_next();
        }
        // The iterator of virtio-queue stops without a word where the chain is broken: its last descriptor tells.
        if open { Err(ChainError::Unterminated { head }) } else { Ok(chain) }
    }

    /// Number of the first descriptor; what [`super::Queue::push`] takes.
    pub fn head(&self) -> u16 {
        self.head
    }

    fn readable(&self) -> &[Span] {
        self.spans.get(..self.readable).unwrap_or_default()
    }

    fn writable(&self) -> &[Span] {
        self.spans.get(self.readable..).unwrap_or_default()
    }

    /// A cursor over what the driver wrote for the device.
    pub fn reader(&self) -> Reader<'_> {
        Reader(Cursor::new(self.readable()))
    }

    /// A cursor over what the device is to fill.
    pub fn writer(&self) -> Writer<'_> {
        Writer(Cursor::new(self.writable()))
    }

    /// Bytes that the driver wrote for the device.
    pub fn readable_len(&self) -> usize {
        self.readable().iter().map(|span| span.length).sum()
    }

    /// Bytes that the device may fill.
    pub fn writable_len(&self) -> usize {
        self.writable().iter().map(|span| span.length).sum()
    }

    /// The writable buffers as `(guest address, bytes)`, for devices to which the place itself matters.
    pub fn writable_spans(&self) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
        self.writable().iter().map(|span| (span.address, span.length))
    }
}

#[derive(Clone)]
struct Cursor<'a> {
    spans: &'a [Span],
    /// Bytes of the first span that are done.
    offset: usize,
    done: usize,
}

impl<'a> Cursor<'a> {
    fn new(spans: &'a [Span]) -> Self {
        Self { spans, offset: 0, done: 0 }
    }

    fn remaining(&self) -> usize {
        self.spans.iter().map(|span| span.length).sum::<usize>() - self.offset
    }

    /// The next `count` bytes as consecutive pieces, and moves past them.
    fn take(&mut self, count: usize) -> Result<Pieces<'a>, ChainError> {
        let left = self.remaining();
        if count > left {
            return Err(ChainError::Short { wanted: count, left });
        }
        let pieces = Pieces { spans: self.spans, offset: self.offset, left: count };
        self.offset += count;
        self.done += count;
        while let Some((first, rest)) = self.spans.split_first()
            && self.offset >= first.length
        {
            self.offset -= first.length;
            self.spans = rest;
        }
        Ok(pieces)
    }

    fn io_vectors(&mut self, count: usize) -> Result<impl Iterator<Item = libc::iovec> + use<'a>, ChainError> {
        let vector = |piece: VolatileSlice| libc::iovec {
            iov_base: piece.ptr_guard_mut().as_ptr().cast(),
            iov_len: piece.len(),
        };
        Ok(self.take(count)?.map(vector))
    }
}

/// Consecutive pieces of a chain's buffers.
struct Pieces<'a> {
    spans: &'a [Span],
    /// Bytes of the first span that are done.
    offset: usize,
    /// Bytes to come.
    left: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = VolatileSlice<'a>;

    fn next(&mut self) -> Option<VolatileSlice<'a>> {
        let (first, rest) = self.spans.split_first().filter(|_| self.left > 0)?;
        let offset = std::mem::take(&mut self.offset);
        let length = self.left.min(first.length - offset);
        self.left -= length;
        self.spans = rest;
        // SAFETY: the piece lies within the span, which the chain that is borrowed for 'a keeps mapped.
        Some(unsafe { VolatileSlice::new(first.host.add(offset), length) })
    }
}

/// Reads what the driver wrote, from the start of the chain on.
#[derive(Clone)]
pub struct Reader<'a>(Cursor<'a>);

impl<'a> Reader<'a> {
    /// Bytes not yet read.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// [`ChainError::Short`]; then nothing was read.
    pub fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ChainError> {
        let mut rest = buffer;
        for piece in self.0.take(rest.len())? {
            let (now, later) = rest.split_at_mut(piece.len());
            piece.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    /// Reads a structure in the guest's (little-endian) layout.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn read_obj<T: ByteValued + Default>(&mut self) -> Result<T, ChainError> {
        let mut value = T::default();
        self.read_exact(value.as_mut_slice())?;
        Ok(value)
    }

    /// Skips `count` bytes.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn skip(&mut self, count: usize) -> Result<(), ChainError> {
        self.0.take(count).map(drop)
    }

    /// The next `count` bytes as I/O vectors for a system call that *reads* them, e.g. `pwritev`.
    ///
    /// The vectors point into guest memory and are good as long as the [`Chain`] lives.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn io_vectors(&mut self, count: usize) -> Result<impl Iterator<Item = libc::iovec> + use<'a>, ChainError> {
        self.0.io_vectors(count)
    }
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.remaining());
        let wanted = buffer.get_mut(..count).unwrap_or_default();
        self.read_exact(wanted).map_err(|error| io::Error::new(io::ErrorKind::UnexpectedEof, error.to_string()))?;
        Ok(count)
    }
}

/// Fills what the driver left for the device, from its start on.
#[derive(Clone)]
pub struct Writer<'a>(Cursor<'a>);

impl<'a> Writer<'a> {
    /// Bytes not yet written.
    pub fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// Bytes written or skipped so far.
    pub fn written(&self) -> usize {
        self.0.done
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// [`ChainError::Short`]; then nothing was written.
    pub fn write_all(&mut self, data: &[u8]) -> Result<(), ChainError> {
        let mut rest = data;
        for piece in self.0.take(rest.len())? {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// Writes a structure in the guest's (little-endian) layout.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn write_obj<T: ByteValued>(&mut self, value: T) -> Result<(), ChainError> {
        self.write_all(value.as_slice())
    }

    /// Skips `count` bytes.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn skip(&mut self, count: usize) -> Result<(), ChainError> {
        self.0.take(count).map(drop)
    }

    /// The next `count` bytes as I/O vectors for a system call that *fills* them, e.g. `preadv`.
    ///
    /// The vectors point into guest memory and are good as long as the [`Chain`] lives.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn io_vectors(&mut self, count: usize) -> Result<impl Iterator<Item = libc::iovec> + use<'a>, ChainError> {
        self.0.io_vectors(count)
    }
}

/// A request's size or a count of bytes as virtio wants it in the used ring.
pub fn used_length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Descriptor, FakeDriver};
    use super::super::{Queue, QueueError};
    use super::*;
    use proptest::prelude::*;

    fn error(queue: &mut Queue) -> ChainError {
        match queue.pop() {
            Err(QueueError::Chain(error)) => error,
            other => panic!("expected a chain error, got {:?}", other.map(|chain| chain.map(|chain| chain.head()))),
        }
    }

    #[test]
    fn reads_and_writes_cross_buffers() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        driver.write(0x10_000, &[1, 2, 3]);
        driver.write(0x20_000, &[4, 5, 6, 7, 8]);
        driver.add(&[(0x10_000, 3, false), (0x20_000, 5, false), (0x30_000, 2, true), (0x40_000, 6, true)]);
        let chain = queue.pop().unwrap().unwrap();
        let mut reader = chain.reader();
        assert_eq!(reader.read_obj::<u32>().unwrap(), 0x0403_0201);
        assert_eq!(reader.read_obj::<u64>(), Err(ChainError::Short { wanted: 8, left: 4 }));
        assert_eq!(reader.read_obj::<u32>().unwrap(), 0x0807_0605);
        let mut writer = chain.writer();
        writer.write_obj(0x0102_0304_0506_0708u64).unwrap();
        assert_eq!(writer.write_all(&[0]), Err(ChainError::Short { wanted: 1, left: 0 }));
        assert_eq!(writer.written(), 8);
        assert_eq!(driver.read(0x30_000, 2), [8, 7]);
        assert_eq!(driver.read(0x40_000, 6), [6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn loops_and_wild_links_end() {
        for next in [0, 1, 8, u16::MAX] {
            let mut driver = FakeDriver::new(8);
            let mut queue = driver.queue();
            driver.set_descriptor(0, Descriptor { address: 0x10_000, length: 16, flags: 1, next });
            driver.set_descriptor(1, Descriptor { address: 0x10_000, length: 16, flags: 1, next: 0 });
            driver.publish(0);
            assert_eq!(error(&mut queue), ChainError::Unterminated { head: 0 }, "{next}");
        }
    }

    #[test]
    fn buffers_must_be_in_ram_and_not_empty() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        let end = driver.memory_size();
        for (address, length) in [(0x10_000, 0), (end - 8, 9), (end, 1), (u64::MAX, 2), (0, u32::MAX)] {
            driver.add(&[(address, length, true)]);
            assert_eq!(error(&mut queue), ChainError::Buffer { address, length });
        }
    }

    #[test]
    fn readable_after_writable_is_refused() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        driver.add(&[(0x10_000, 16, true), (0x20_000, 16, false)]);
        assert_eq!(error(&mut queue), ChainError::Order { head: 0 });
    }

    #[test]
    fn indirect_chains_are_bounded_by_the_queue() {
        for (entries, fits) in [(8, true), (9, false)] {
            let mut driver = FakeDriver::new(8);
            let mut queue = driver.queue();
            driver.add_indirect(0x50_000, &vec![(0x10_000, 4, false); entries]);
            assert_eq!(queue.pop().is_ok(), fits, "{entries}");
        }
    }

    proptest! {
        /// Whatever the table and rings hold, popping ends, never panics, and gives only buffers in RAM.
        #[test]
        fn arbitrary_rings_are_safe(
            table in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()), 16),
            near in any::<bool>(),
            heads in prop::collection::vec(any::<u16>(), 1..16),
        ) {
            let mut driver = FakeDriver::new(16);
            let mut queue = driver.queue();
            for (slot, (address, length, flags, next)) in (0..16).zip(table) {
                // Half of the runs stay near valid values, else nearly every chain dies at its first descriptor.
                let descriptor = if near {
                    Descriptor { address: address % 0x20_0000, length: length % 0x1000, flags: flags % 8, next: next % 17 }
                } else {
                    Descriptor { address, length, flags, next }
                };
                driver.set_descriptor(slot, descriptor);
            }
            for head in heads {
                driver.publish(if near { head % 16 } else { head });
                if let Ok(Some(chain)) = queue.pop() {
                    for (address, length) in chain.writable_spans() {
                        prop_assert!(address.0 + length as u64 <= driver.memory_size());
                    }
                    let mut all = vec![0; chain.readable_len()];
                    prop_assert!(chain.reader().read_exact(&mut all).is_ok());
                    prop_assert!(chain.writer().write_all(&vec![0; chain.writable_len().min(1 << 20)]).is_ok());
                }
            }
        }
    }
}
