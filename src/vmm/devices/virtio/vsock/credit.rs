// SPDX-License-Identifier: Apache-2.0
//! Credit of one connection, both ways (virtio 1.3 §5.10.6.3). All counters are of bytes and wrap at 2^32.

/// Bytes of guest data that a connection holds at most for a host reader that is slow: what the guest is told.
///
/// Four of the largest packets that Linux sends, so that one can be on its way while another is written.
pub const BUFFER_SIZE: u32 = 256 << 10;

/// Bytes that leave the buffer before the guest is told of it without being asked.
const UPDATE_AFTER: u32 = BUFFER_SIZE / 2;

/// What each side may still send to the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credit {
    received: u32,
    forwarded: u32,
    /// `forwarded`, as the guest knows it.
    advertised: u32,
    sent: u32,
    peer_size: u32,
    peer_forwarded: u32,
}

impl Credit {
    /// Counts `length` bytes from the guest; `false` where it had no credit for them, and then nothing is counted.
    #[must_use]
    pub fn receive(&mut self, length: u32) -> bool {
        let outstanding = self.received.wrapping_sub(self.advertised);
        let within = BUFFER_SIZE.checked_sub(outstanding).is_some_and(|left| length <= left);
        if within {
            self.received = self.received.wrapping_add(length);
        }
        within
    }

    /// `length` bytes of what was received need no room any more.
    pub fn forward(&mut self, length: u32) {
        self.forwarded = self.forwarded.wrapping_add(length);
    }

    /// Whether the guest should be told that there is room again.
    pub fn update_due(&self) -> bool {
        self.forwarded.wrapping_sub(self.advertised) >= UPDATE_AFTER
    }

    /// `(buf_alloc, fwd_cnt)` for a packet that goes to the guest now.
    pub fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (BUFFER_SIZE, self.forwarded)
    }

    /// Takes the guest's credit fields, which every packet of a connection carries.
    pub fn learn(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_size = buf_alloc;
        self.peer_forwarded = fwd_cnt;
    }

    /// Bytes that may be sent to the guest. Nonsense in its counters only takes credit away from itself.
    pub fn available(&self) -> u32 {
        self.peer_size.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// Counts `length` bytes to the guest.
    pub fn send(&mut self, length: u32) {
        self.sent = self.sent.wrapping_add(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_byte_too_many_is_refused_and_not_counted() {
        let mut credit = Credit::default();
        assert!(credit.receive(BUFFER_SIZE - 1));
        assert!(!credit.receive(2));
        assert!(credit.receive(1));
        assert!(!credit.receive(1));
        credit.forward(BUFFER_SIZE);
        // The guest does not know yet, so whoever sends now does not look at its credit.
        assert!(!credit.receive(1));
        credit.advertise();
        assert!(credit.receive(BUFFER_SIZE));
        assert!(!credit.receive(u32::MAX));
    }

    #[test]
    fn absurd_counters_of_the_guest_give_no_credit() {
        let mut credit = Credit::default();
        credit.learn(1000, 1);
        assert_eq!(credit.available(), 0);
        credit.learn(1000, u32::MAX);
        assert_eq!(credit.available(), 999);
        credit.learn(0, 0);
        assert_eq!(credit.available(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        GuestSends(u32),
        HostReads(u32),
        Tell,
        HostSends(u32),
        GuestReads(u32),
        GuestTells(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..2 * BUFFER_SIZE).prop_map(Step::GuestSends),
            (0..2 * BUFFER_SIZE).prop_map(Step::HostReads),
            Just(Step::Tell),
            (0..1u32 << 20).prop_map(Step::HostSends),
            (0..1u32 << 20).prop_map(Step::GuestReads),
            (0..1u32 << 20).prop_map(Step::GuestTells),
        ]
    }

    proptest! {
        /// Against a model with counters that do not wrap: neither side ever holds more than it has room for, and a
        /// guest that keeps to what it was told is never refused.
        #[test]
        fn neither_buffer_overflows(steps in prop::collection::vec(step(), 1..200), start in any::<u32>()) {
            let mut credit = Credit { received: start, forwarded: start, advertised: start, sent: start, peer_size: 0, peer_forwarded: start };
            let (mut received, mut forwarded, mut told) = (0u64, 0u64, 0u64);
            let (mut sent, mut read, mut size, mut known) = (0u64, 0u64, 0u64, (0u64, 0u64));
            for step in steps {
                match step {
                    Step::GuestSends(length) => {
                        let allowed = received + u64::from(length) - told <= u64::from(BUFFER_SIZE);
                        prop_assert_eq!(credit.receive(length), allowed);
                        received += if allowed { length.into() } else { 0 };
                        prop_assert!(received - forwarded <= u64::from(BUFFER_SIZE));
                    }
                    Step::HostReads(length) => {
                        let length = u64::from(length).min(received - forwarded);
                        credit.forward(u32::try_from(length).unwrap());
                        forwarded += length;
                        prop_assert_eq!(credit.update_due(), forwarded - told >= u64::from(UPDATE_AFTER));
                    }
                    Step::Tell => {
                        credit.advertise();
                        told = forwarded;
                    }
                    Step::HostSends(length) => {
                        let length = length.min(credit.available());
                        credit.send(length);
                        sent += u64::from(length);
                        prop_assert!(sent <= known.0 + known.1);
                    }
                    Step::GuestReads(length) => read += u64::from(length).min(sent - read),
                    Step::GuestTells(new_size) => {
                        size = u64::from(new_size).max(sent - read);
                        known = (size, read);
                        let fwd_cnt = start.wrapping_add(u32::try_from(read).unwrap());
                        credit.learn(u32::try_from(size).unwrap(), fwd_cnt);
                    }
                }
                prop_assert!(sent - read <= size.max(known.0));
            }
            // No stall: with everything read, a guest without credit is told.
            credit.forward(u32::try_from(received - forwarded).unwrap());
            prop_assert!(credit.update_due() || credit.receive(UPDATE_AFTER));
        }
    }
}
