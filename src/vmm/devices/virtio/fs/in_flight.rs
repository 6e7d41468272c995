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
    /// For each head: how much more often it was made available than used. A head that comes back and is made available
    /// again between two looks at one ring may be seen in one of them first, so that only the count is right.
    heads: Vec<i32>,
    /// Whether nothing was missed.
    exact: bool,
}

impl InFlight {
    /// Of a queue that is new.
    pub fn new(rings: Rings) -> Self {
        Self { rings, available: 0, used: 0, heads: vec![0; rings.size.get().into()], exact: true }
    }

    /// Looks at what has come since the last time.
    ///
    /// # Errors
    /// The rings cannot be read.
    pub fn look(&mut self, memory: &Ram) -> Result<(), GuestMemoryError> {
        // The used ring first: what is in it was available before.
        let used = index(memory, self.rings.used)?;
        let available = index(memory, self.rings.available)?;
        self.advance(memory, available, used)
    }

    fn advance(&mut self, memory: &Ram, available: u16, used: u16) -> Result<(), GuestMemoryError> {
        let size = self.rings.size.get();
        if available.wrapping_sub(self.available) > size || used.wrapping_sub(self.used) > size {
            self.exact = false;
            self.heads.fill(0);
        } else {
            while self.available != available {
                let slot = u64::from(self.available % size);
                let head: u16 = memory.read_obj(GuestAddress(self.rings.available + 4 + 2 * slot))?;
                self.count(u16::from_le(head).into(), 1);
                self.available = self.available.wrapping_add(1);
            }
            while self.used != used {
                let slot = u64::from(self.used % size);
                let head: u32 = memory.read_obj(GuestAddress(self.rings.used + 4 + 8 * slot))?;
                self.count(u32::from_le(head), -1);
                self.used = self.used.wrapping_add(1);
            }
        }
        (self.available, self.used) = (available, used);
        // With nothing in flight there is nothing to have missed.
        if available == used && !self.exact {
            self.exact = true;
            self.heads.fill(0);
        }
        Ok(())
    }

    fn count(&mut self, head: u32, more: i32) {
        // A head that cannot be is the driver's mistake, and the back end's to find.
        let place = usize::try_from(head).ok().and_then(|head| self.heads.get_mut(head));
        place.into_iter().for_each(|place| *place = place.saturating_add(more));
    }

    /// Heads of the chains that the back end has, as far as is known.
    pub fn heads(&self) -> Vec<u16> {
        (0u16..).zip(&self.heads).filter_map(|(head, count)| (*count > 0).then_some(head)).collect()
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
    fn a_head_that_comes_back_and_goes_again_between_two_looks_is_in_flight() {
        let mut driver = FakeDriver::new(8);
        let mut queue = driver.queue();
        let mut in_flight = InFlight::new(queue.rings());
        let memory = driver.memory().clone();
        for round in 0..3 {
            driver.set_descriptor(0, Descriptor { address: 0x10_000, length: 16, flags: 2, next: 0 });
            driver.publish(0);
            if round < 2 {
                queue.pop().unwrap().unwrap();
                queue.push(0, 0).unwrap();
            }
        }
        // As one sees it who reads the used index, is held up, and reads the available one.
        for (available, used) in [(1, 0), (2, 0), (3, 1), (3, 2)] {
            in_flight.advance(&memory, available, used).unwrap();
            assert_eq!(in_flight.heads(), [0], "{available} {used}");
        }
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
