// SPDX-License-Identifier: Apache-2.0
//! Which chains of a queue are with a back end: what has to be given back for it once it has died.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::super::queue::Rings;
use crate::vmm::memory::Ram;

/// Follows both rings of one queue, which others work on.
///
/// It has to look at least once in as many chains as the queue has descriptors: older entries of a ring are written over.
#[derive(Debug)]
pub struct InFlight {
    rings: Rings,
    /// Up to where the rings have been looked at.
    available: u16,
    used: u16,
    /// For each head: made available more often than used.
    heads: Vec<bool>,
    /// Whether nothing was missed.
    exact: bool,
}

impl InFlight {
    /// Of a queue that is new.
    pub fn new(rings: Rings) -> Self {
        Self { rings, available: 0, used: 0, heads: vec![false; rings.size.get().into()], exact: true }
    }

    /// Looks at what has come since the last time.
    ///
    /// # Errors
    /// The rings cannot be read.
    pub fn look(&mut self, memory: &Ram) -> Result<(), GuestMemoryError> {
        // The used ring first, or a chain could seem to be used before it was available.
        let used = index(memory, self.rings.used)?;
        let available = index(memory, self.rings.available)?;
        let size = self.rings.size.get();
        if available.wrapping_sub(self.available) > size || used.wrapping_sub(self.used) > size {
            self.exact = false;
            self.heads.fill(false);
        } else {
            while self.available != available {
                let slot = u64::from(self.available % size);
                let head: u16 = memory.read_obj(GuestAddress(self.rings.available + 4 + 2 * slot))?;
                self.set(u16::from_le(head).into(), true);
                self.available = self.available.wrapping_add(1);
            }
            while self.used != used {
                let slot = u64::from(self.used % size);
                let head: u32 = memory.read_obj(GuestAddress(self.rings.used + 4 + 8 * slot))?;
                self.set(u32::from_le(head), false);
                self.used = self.used.wrapping_add(1);
            }
        }
        (self.available, self.used) = (available, used);
        // With nothing in flight there is nothing to have missed.
        self.exact |= available == used;
        Ok(())
    }

    fn set(&mut self, head: u32, with_backend: bool) {
        // A head that cannot be is the driver's mistake, and the back end's to find.
        let place = usize::try_from(head).ok().and_then(|head| self.heads.get_mut(head));
        place.into_iter().for_each(|place| *place = with_backend);
    }

    /// Heads of the chains that the back end has, as far as is known.
    pub fn heads(&self) -> Vec<u16> {
        (0u16..).zip(&self.heads).filter_map(|(head, with_backend)| with_backend.then_some(head)).collect()
    }

    /// Whether [`InFlight::heads`] are all.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Where a device goes on with the rings: `(available, used)`.
    pub fn position(&self) -> (u16, u16) {
        (self.available, self.used)
    }
}

/// The index of a ring, before which all entries are there.
fn index(memory: &Ram, ring: u64) -> Result<u16, GuestMemoryError> {
    memory.load::<u16>(GuestAddress(ring + 2), Ordering::Acquire).map(u16::from_le)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Descriptor, FakeDriver};
    use super::*;

    #[test]
    fn what_is_used_is_no_more_in_flight_however_often_the_rings_wrap() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        let mut in_flight = InFlight::new(queue.rings());
        let memory = driver.memory().clone();
        for _ in 0..20_000 {
            let (first, second) = (driver.add(&[(0x10_000, 16, true)]), driver.add(&[(0x10_000, 16, true)]));
            in_flight.look(&memory).unwrap();
            let mut both = [first, second];
            both.sort_unstable();
            assert_eq!(in_flight.heads(), both);
            for _ in 0..2 {
                let head = queue.pop().unwrap().unwrap().head();
                queue.push(head, 0).unwrap();
            }
        }
        in_flight.look(&memory).unwrap();
        assert!(in_flight.heads().is_empty());
        assert_eq!(in_flight.position(), (40_000, 40_000));
    }

    #[test]
    fn one_that_is_slow_stays_in_flight_while_others_overtake_it() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        let mut in_flight = InFlight::new(queue.rings());
        let memory = driver.memory().clone();
        let add = |driver: &mut FakeDriver, head| {
            driver.set_descriptor(head, Descriptor { address: 0x10_000, length: 16, flags: 2, next: 0 });
            driver.publish(head);
        };
        add(&mut driver, 0);
        queue.pop().unwrap().unwrap();
        for round in 0..100 {
            let head = 1 + round % 7;
            add(&mut driver, head);
            in_flight.look(&memory).unwrap();
            assert_eq!(in_flight.heads(), [0, head]);
            queue.pop().unwrap().unwrap();
            queue.push(head, 0).unwrap();
        }
        in_flight.look(&memory).unwrap();
        assert_eq!((in_flight.heads(), in_flight.is_exact()), (vec![0], true));
    }

    #[test]
    fn to_have_missed_some_is_known_until_all_are_back() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        let mut in_flight = InFlight::new(queue.rings());
        let memory = driver.memory().clone();
        for _ in 0..9 {
            driver.add(&[(0x10_000, 16, true)]);
            let head = queue.pop().unwrap().unwrap().head();
            queue.push(head, 0).unwrap();
        }
        driver.add(&[(0x10_000, 16, true)]);
        in_flight.look(&memory).unwrap();
        assert!(!in_flight.is_exact());
        let head = queue.pop().unwrap().unwrap().head();
        queue.push(head, 0).unwrap();
        in_flight.look(&memory).unwrap();
        assert!(in_flight.is_exact());
    }
}
