// SPDX-License-Identifier: Apache-2.0
//! The descriptors of a chain that is known by its head, as the iterator of virtio-queue gives those that are next.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::super::super::memory::Ram;
use super::queue::QueueSize;

/// Bytes of a descriptor (virtio 1.3 §2.7.5).
const DESCRIPTOR: u64 = 16;

/// Reads one descriptor after the other, each once; ends without a word where the chain leads out of its table.
pub struct Walk<'a> {
    memory: &'a Ram,
    table: u64,
    length: u64,
    next: Option<u16>,
    indirect: bool,
}

impl<'a> Walk<'a> {
    /// From the descriptor `head` in the table at `table`.
    pub fn new(memory: &'a Ram, table: u64, size: QueueSize, head: u16) -> Self {
        Self { memory, table, length: size.get().into(), next: Some(head), indirect: false }
    }
}

impl Iterator for Walk<'_> {
    type Item = Descriptor;

    fn next(&mut self) -> Option<Descriptor> {
        let index = u64::from(self.next.take()?);
        let place = self.table.checked_add(index * DESCRIPTOR).filter(|_| index < self.length)?;
        let descriptor: Descriptor = self.memory.read_obj(GuestAddress(place)).ok()?;
        if descriptor.refers_to_indirect_table() {
            // Tables do not nest, and are whole (virtio 1.3 §2.7.5.3.1).
            let length = u64::from(descriptor.len());
            if self.indirect || descriptor.has_next() || !length.is_multiple_of(DESCRIPTOR) {
                return None;
            }
            (self.table, self.length, self.indirect) = (descriptor.addr().0, length / DESCRIPTOR, true);
            self.next = Some(0);
            return self.next();
        }
        self.next = descriptor.has_next().then(|| descriptor.next());
        Some(descriptor)
    }
}
