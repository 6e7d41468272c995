// SPDX-License-Identifier: Apache-2.0
//! All streams of a device: found by number or by ports, and queued for their turn to send to the guest.

use std::collections::{HashMap, VecDeque};

use super::packet::Ports;
use super::stream::Stream;

/// Streams at once, whatever their state: each costs a descriptor, and at worst [`super::credit::BUFFER_SIZE`] bytes.
pub const MAX_STREAMS: usize = 1024;

/// A stream's number: its slot, and which of the slot's tenants it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    slot: u32,
    tenant: u32,
}

impl Id {
    /// The number as epoll carries it.
    pub fn pack(self) -> u64 {
        u64::from(self.tenant) << 32 | u64::from(self.slot)
    }

    /// The number that epoll has carried.
    pub fn unpack(data: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = data.to_le_bytes();
        Self { slot: u32::from_le_bytes([a, b, c, d]), tenant: u32::from_le_bytes([e, f, g, h]) }
    }
}

#[derive(Debug, Default)]
struct Slot {
    tenant: u32,
    stream: Option<Stream>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, Id>,
    turns: VecDeque<Id>,
}

impl Table {
    /// Number of streams.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether [`Table::insert`] would refuse.
    pub fn is_full(&self) -> bool {
        self.len() >= MAX_STREAMS
    }

    /// Takes a stream in; gives it back where the table is full.
    ///
    /// # Errors
    /// The stream, unchanged.
    pub fn insert(&mut self, stream: Stream) -> Result<Id, Box<Stream>> {
        if self.is_full() {
            return Err(Box::new(stream));
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot::default());
                u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
            }
        };
        let mut id = Id { slot, tenant: 0 };
        if let Some(place) = usize::try_from(slot).ok().and_then(|slot| self.slots.get_mut(slot)) {
            id.tenant = place.tenant;
            place.stream = Some(stream);
        }
        Ok(id)
    }

    /// The stream with this number, where it still is.
    pub fn get_mut(&mut self, id: Id) -> Option<&mut Stream> {
        let slot = self.slots.get_mut(usize::try_from(id.slot).ok()?)?;
        if slot.tenant == id.tenant { slot.stream.as_mut() } else { None }
    }

    /// The stream that the guest knows by these ports.
    pub fn find(&self, ports: Ports) -> Option<Id> {
        self.by_ports.get(&ports).copied()
    }

    /// Lets packets with these ports reach the stream.
    pub fn bind(&mut self, ports: Ports, id: Id) {
        self.by_ports.insert(ports, id);
    }

    /// Undoes [`Table::bind`], where these ports are this stream's.
    pub fn unbind(&mut self, ports: Ports, id: Id) {
        if self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
    }

    /// Takes a stream out, and with it everything that leads to it.
    pub fn remove(&mut self, id: Id) -> Option<Stream> {
        let stream = self.get_mut(id)?;
        let (ports, queued) = (stream.ports, stream.queued);
        self.unbind(ports, id);
        if queued {
            self.turns.retain(|other| *other != id);
        }
        let slot = self.slots.get_mut(usize::try_from(id.slot).ok()?)?;
        slot.tenant = slot.tenant.wrapping_add(1);
        self.free.push(id.slot);
        slot.stream.take()
    }

    /// Queues a stream for its turn, unless it waits already.
    pub fn queue(&mut self, id: Id) {
        if let Some(stream) = self.get_mut(id)
            && !std::mem::replace(&mut stream.queued, true)
        {
            self.turns.push_back(id);
        }
    }

    /// The stream whose turn it is; it stays first in the queue.
    pub fn next_turn(&self) -> Option<Id> {
        self.turns.front().copied()
    }

    /// The first in the queue has had its turn.
    pub fn end_turn(&mut self) {
        if let Some(id) = self.turns.pop_front()
            && let Some(stream) = self.get_mut(id)
        {
            stream.queued = false;
        }
    }

    /// The numbers of all streams.
    pub fn ids(&self) -> Vec<Id> {
        let numbered = (0..).zip(&self.slots);
        numbered
            .filter(|(_, slot)| slot.stream.is_some())
            .map(|(number, slot)| Id { slot: number, tenant: slot.tenant })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn stream() -> Stream {
        Stream::greeting(UnixStream::pair().unwrap().0.into())
    }

    #[test]
    fn a_number_outlives_its_stream_without_reaching_the_next() {
        let mut table = Table::default();
        let first = table.insert(stream()).unwrap();
        table.queue(first);
        table.remove(first).unwrap();
        let second = table.insert(stream()).unwrap();
        assert_eq!((first.slot, table.len()), (second.slot, 1));
        assert!(table.get_mut(first).is_none() && table.remove(first).is_none());
        assert!(table.get_mut(Id::unpack(second.pack())).is_some());
        assert_eq!(table.next_turn(), None);
    }

    #[test]
    fn ports_lead_to_a_stream_until_it_goes() {
        let mut table = Table::default();
        let id = table.insert(stream()).unwrap();
        let ports = Ports { host: 1, guest: 2 };
        table.get_mut(id).unwrap().ports = ports;
        table.bind(ports, id);
        assert_eq!(table.find(ports), Some(id));
        table.remove(id);
        assert_eq!(table.find(ports), None);
    }

    #[test]
    fn turns_go_round() {
        let mut table = Table::default();
        let ids: Vec<_> = (0..3).map(|_| table.insert(stream()).unwrap()).collect();
        for id in [ids[0], ids[1], ids[1], ids[2]] {
            table.queue(id);
        }
        table.end_turn();
        table.queue(ids[0]);
        let order: Vec<_> = std::iter::from_fn(|| {
            let id = table.next_turn()?;
            table.end_turn();
            Some(id)
        })
        .collect();
        assert_eq!(order, [ids[1], ids[2], ids[0]]);
    }
}
