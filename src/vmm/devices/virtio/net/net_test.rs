// SPDX-License-Identifier: Apache-2.0
//! The device against a fake driver, with a socket in place of the TAP.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use proptest::prelude::*;

use super::super::DeviceState;
use super::super::testing::{Descriptor, FakeDriver, is_readable};
use super::*;

const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const BUFFERS: u64 = 0x10_0000;
const USED_FLAGS: [u64; 2] = [0x5000, 0x8000 + 0x5000];

struct Bench {
    net: Net,
    session: Session,
    receive: FakeDriver,
    transmit: FakeDriver,
    host: UnixDatagram,
}

/// Two ends of a socket that keeps message boundaries and, like a TAP, cuts off what does not fit.
fn wire() -> (File, UnixDatagram) {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for the two descriptors.
    assert_eq!(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) }, 0);
    // SAFETY: both were just returned by the kernel and nothing else owns them.
    let [ours, theirs] = ends.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (File::from(ours), theirs.into())
}

impl Bench {
    fn new(features: u64) -> Self {
        let (tap, host) = wire();
        let mut net = Net::new(Wire::Tap(Tap::from_socket(tap)), MacAddress::of_tap("test"));
        let (session, mut drivers) = FakeDriver::attach(&mut net, features).unwrap();
        let transmit = drivers.pop().unwrap();
        let receive = drivers.pop().unwrap();
        Self { net, session, receive, transmit, host }
    }

    /// Posts a receive buffer of `length` bytes in slot `slot`.
    fn post(&mut self, slot: u64, length: u32) -> u64 {
        let address = BUFFERS + slot * 0x2000;
        self.receive.add(&[(address, length, true)]);
        address
    }

    fn readable(&mut self) -> Result<(), DeviceError> {
        self.net.source_event(0, EventSet::IN, &mut self.session)
    }

    fn kick(&mut self, queue: usize) -> Result<(), DeviceError> {
        self.net.queue_event(queue, &mut self.session)
    }

    fn metric(&self, name: &str) -> u64 {
        self.net.metrics().into_iter().find(|(metric, _)| *metric == name).unwrap().1
    }

    fn interrupted(&self) -> bool {
        self.receive.interrupt().line().read().is_ok()
    }

    fn received(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; MAX_FRAME + 1];
        let length = self.host.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }
}

/// A frame of `length` bytes, header included, that no other `seed` gives.
fn frame(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0]) ^ at.to_le_bytes()[1]).collect()
}

fn with_count(mut frame: Vec<u8>, buffers: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}

#[test]
fn a_frame_lands_in_one_buffer() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    let address = bench.post(0, 1536);
    bench.post(1, 1536);
    bench.host.send(&frame(1, 100)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.used(), Some((0, 100)));
    assert_eq!(bench.receive.used(), None);
    assert_eq!(bench.receive.read(address, 100), with_count(frame(1, 100), 1));
    assert!(bench.interrupted());
    assert_eq!((bench.metric("rx_packets"), bench.metric("rx_bytes")), (1, 88));
}

#[test]
fn a_long_frame_is_spread_over_buffers() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    let addresses: Vec<_> = (0..6).map(|slot| bench.post(slot, 1500)).collect();
    bench.host.send(&frame(1, 5000)).unwrap();
    bench.host.send(&frame(2, 60)).unwrap();
    bench.readable().unwrap();
    let mut seen = Vec::new();
    for (slot, (address, length)) in (0..).zip(addresses.iter().zip([1500, 1500, 1500, 500])) {
        assert_eq!(bench.receive.used(), Some((slot, length)));
        seen.extend(bench.receive.read(*address, length as usize));
    }
    assert_eq!(seen, with_count(frame(1, 5000), 4));
    assert_eq!(bench.receive.used(), Some((4, 60)));
    assert_eq!(bench.receive.read(addresses[4], 60), with_count(frame(2, 60), 1));
}

#[test]
fn a_frame_waits_for_the_rest_of_its_room() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    let first = bench.post(0, 1000);
    bench.host.send(&frame(7, 2500)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.used(), None, "part of a frame must not be seen");
    let second = bench.post(1, 1000);
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.receive.used(), None);
    let third = bench.post(2, 1000);
    bench.kick(RECEIVE).unwrap();
    let mut seen = Vec::new();
    for (head, address, length) in [(0, first, 1000), (1, second, 1000), (2, third, 500)] {
        assert_eq!(bench.receive.used(), Some((head, length)));
        seen.extend(bench.receive.read(address, length as usize));
    }
    assert_eq!(seen, with_count(frame(7, 2500), 3));
    assert_eq!(bench.metric("rx_drops"), 0);
}

#[test]
fn a_frame_that_can_never_fit_is_dropped() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    for slot in 0..256 {
        bench.post(slot, 20);
    }
    bench.host.send(&frame(1, 256 * 20 + 1)).unwrap();
    bench.host.send(&frame(2, 40)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.metric("rx_drops"), 1);
    assert_eq!((bench.receive.used(), bench.receive.used()), (Some((0, 20)), Some((1, 20))));
}

#[test]
fn without_merging_a_frame_too_long_is_dropped_and_its_buffer_used_again() {
    let mut bench = Bench::new(GUEST_CSUM);
    let address = bench.post(0, 1000);
    bench.post(1, 1000);
    bench.host.send(&frame(1, 1001)).unwrap();
    bench.host.send(&frame(2, 1000)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.used(), Some((0, 1000)));
    assert_eq!(bench.receive.used(), None);
    assert_eq!(bench.receive.read(address, 1000), with_count(frame(2, 1000), 1));
    assert_eq!(bench.metric("rx_drops"), 1);
}

#[test]
fn frames_wait_on_the_host_while_the_driver_has_no_buffers() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    for seed in 0..3 {
        bench.host.send(&frame(seed, 60)).unwrap();
    }
    bench.readable().unwrap();
    assert_eq!(bench.receive.read(USED_FLAGS[0], 2), [0, 0], "the driver must notify of new buffers");
    assert!(bench.receive.kick().read().is_err(), "waiting must not keep the thread busy");
    for slot in 0..3 {
        bench.post(slot, 100);
    }
    bench.kick(RECEIVE).unwrap();
    for head in 0..3 {
        assert_eq!(bench.receive.used(), Some((head, 60)));
    }
    assert_eq!(bench.metric("rx_drops"), 0);
}

#[test]
fn a_flood_is_served_in_portions() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    for slot in 0..200 {
        bench.post(slot, 100);
    }
    for _ in 0..150 {
        bench.host.send(&frame(1, 60)).unwrap();
    }
    bench.readable().unwrap();
    assert_eq!(bench.metric("rx_packets"), 128);
    assert_eq!(bench.receive.kick().read().unwrap(), 1, "the rest is to come without a new event");
    bench.kick(RECEIVE).unwrap();
    assert_eq!(bench.metric("rx_packets"), 150);
}

#[test]
fn the_driver_can_start_on_a_long_batch_before_its_end() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    for slot in 0..20 {
        bench.post(slot, 0x2000);
    }
    for seed in 0..3 {
        bench.host.send(&frame(seed, 40_000)).unwrap();
    }
    bench.readable().unwrap();
    assert_eq!(bench.metric("rx_packets"), 3);
    assert_eq!(bench.receive.interrupt().line().read().unwrap(), 2);
}

#[test]
fn header_flags_are_cleared_for_a_driver_that_does_not_know_them() {
    for (features, flags) in [(MERGEABLE, 0), (MERGEABLE | GUEST_CSUM, 2)] {
        let mut bench = Bench::new(features);
        let address = bench.post(0, 100);
        let mut sent = frame(0, 60);
        sent[0] = 2;
        bench.host.send(&sent).unwrap();
        bench.readable().unwrap();
        assert_eq!(bench.receive.read(address, 1), [flags]);
    }
}

#[test]
fn a_receive_buffer_without_room_for_the_header_is_the_drivers_error() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(0, 11);
    bench.host.send(&frame(1, 60)).unwrap();
    assert!(matches!(bench.readable(), Err(DeviceError::Driver(_))));
}

#[test]
fn both_queues_are_needed() {
    let (tap, _host) = wire();
    let mut net = Net::new(Wire::Tap(Tap::from_socket(tap)), MacAddress::of_tap("test"));
    let (mut session, _drivers) = FakeDriver::attach(&mut net, MERGEABLE).unwrap();
    net.reset(&mut session);
    for missing in [RECEIVE, TRANSMIT] {
        let queue = session.queues[missing].take();
        assert!(matches!(net.activate(&mut session), Err(DeviceError::Driver(_))));
        session.queues[missing] = queue;
    }
    net.activate(&mut session).unwrap();
}

#[test]
fn a_new_driver_gets_nothing_of_the_old_one() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    let old = bench.post(0, 40);
    bench.host.send(&frame(1, 60)).unwrap();
    bench.readable().unwrap();
    bench.host.send(&frame(2, 60)).unwrap();
    bench.net.reset(&mut bench.session);
    let before = bench.receive.read(old, 40);
    let (session, mut drivers) = FakeDriver::attach(&mut bench.net, MERGEABLE | GUEST_CSUM).unwrap();
    bench.session = session;
    let old_memory = std::mem::replace(&mut bench.receive, drivers.remove(0));
    let address = bench.post(0, 100);
    bench.readable().unwrap();
    assert_eq!(bench.receive.used(), None, "frames from before are stale");
    bench.host.send(&frame(3, 60)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.read(address, 60), with_count(frame(3, 60), 1));
    assert_eq!(old_memory.read(old, 40), before, "memory of an ended session must stay as it was");
}

#[test]
fn a_deleted_interface_takes_the_link_down_once() {
    let mut bench = Bench::new(MERGEABLE);
    bench.post(0, 100);
    let mut status = [9; 2];
    bench.net.read_config(config::STATUS, &mut status);
    assert_eq!(status, [1, 0]);
    let Bench { mut net, mut session, host, receive, .. } = bench;
    drop(host);
    for _ in 0..2 {
        net.source_event(0, EventSet::HANG_UP, &mut session).unwrap();
        net.read_config(config::STATUS, &mut status);
        assert_eq!(status, [0, 0]);
    }
    assert!(receive.interrupt().take_change());
}

#[test]
fn a_chain_is_sent_as_one_frame() {
    let mut bench = Bench::new(MERGEABLE);
    let sent = frame(5, 3000);
    bench.transmit.write(0x10_0000, &sent[..12]);
    bench.transmit.write(0x20_0000, &sent[12..1000]);
    bench.transmit.write(0x30_0000, &sent[1000..]);
    bench.transmit.add(&[(0x10_0000, 12, false), (0x20_0000, 988, false), (0x30_0000, 2000, false)]);
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(bench.received(), Some(sent));
    assert_eq!(bench.transmit.used(), Some((0, 0)));
    assert!(bench.interrupted());
    assert_eq!((bench.metric("tx_packets"), bench.metric("tx_bytes")), (1, 2988));
}

/// An acknowledgement in TCP over IPv4, with its header.
fn acknowledgement() -> Vec<u8> {
    let mut frame = vec![0; HEADER + 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 2, 192, 0, 2, 1]);
    frame.extend([0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

impl Bench {
    fn transmit(&mut self, frame: &[u8]) {
        self.transmit.write(0x20_0000, frame);
        self.transmit.add(&[(0x20_0000, u32::try_from(frame.len()).unwrap(), false)]);
        self.kick(TRANSMIT).unwrap();
        assert_eq!(self.received().as_deref(), Some(frame));
        assert!(self.transmit.used().is_some(), "it is given back at once");
    }
}

#[test]
fn the_driver_need_not_hear_of_each_acknowledgement() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    bench.post(0, 1536);
    bench.post(1, 1536);
    bench.transmit(&acknowledgement());
    assert!(!bench.interrupted());
    // It does with the next interrupt, which is one for both.
    bench.host.send(&frame(1, 100)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.interrupt().line().read().unwrap(), 1);
    assert_eq!(bench.session.queue(TRANSMIT).unwrap().untold(), 0);
    // Or with that of something that it waits for,
    bench.transmit(&acknowledgement());
    assert!(!bench.interrupted());
    bench.transmit(&frame(1, 100));
    assert!(bench.interrupted());
    // or when they are many,
    for _ in 1..ACKNOWLEDGEMENTS {
        bench.transmit(&acknowledgement());
        assert!(!bench.interrupted());
    }
    bench.transmit(&acknowledgement());
    assert!(bench.interrupted());
    // or before the device rests,
    bench.transmit(&acknowledgement());
    bench.net.rest(&mut bench.session).unwrap();
    assert!(bench.interrupted());
    // or after a while.
    bench.transmit(&acknowledgement());
    assert!(!bench.interrupted());
    let timer = bench.net.sources().into_iter().find(|source| source.id == TIMER).expect("a timer");
    assert!(is_readable(timer.fd, Duration::from_secs(10)));
    bench.net.source_event(TIMER, EventSet::IN, &mut bench.session).unwrap();
    assert!(bench.interrupted());
}

#[test]
fn an_answer_that_is_there_already_comes_with_the_same_interrupt() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    bench.post(0, 1536);
    bench.transmit.write(0x20_0000, &frame(1, 100));
    bench.transmit.add(&[(0x20_0000, 100, false)]);
    bench.host.send(&frame(2, 60)).unwrap();
    bench.kick(TRANSMIT).unwrap();
    assert_eq!((bench.transmit.used(), bench.receive.used()), (Some((0, 0)), Some((0, 60))));
    assert_eq!(bench.receive.interrupt().line().read().unwrap(), 1);
}

#[test]
fn frames_of_impossible_length_are_dropped() {
    let mut bench = Bench::new(MERGEABLE);
    for length in [1, 11, 12, 25, 65575, 1 << 20] {
        bench.transmit.add(&[(0x20_0000, length, false)]);
    }
    bench.transmit.add(&[(0x20_0000, 64, true)]);
    bench.transmit.add(&[(0x20_0000, 65574, false)]);
    bench.kick(TRANSMIT).unwrap();
    for head in 0..8 {
        assert_eq!(bench.transmit.used(), Some((head, 0)));
    }
    assert_eq!((bench.metric("tx_drops"), bench.metric("tx_packets")), (7, 1));
    assert_eq!(bench.received().map(|frame| frame.len()), Some(65574));
}

#[test]
fn a_full_tap_holds_frames_back_and_takes_them_later_in_order() {
    let mut bench = Bench::new(MERGEABLE);
    for seed in 0..8 {
        let address = 0x20_0000 + u64::from(seed) * 0x2_0000;
        bench.transmit.write(address, &frame(seed, 50_000));
        bench.transmit.add(&[(address, 50_000, false)]);
    }
    bench.kick(TRANSMIT).unwrap();
    let accepted = bench.metric("tx_packets");
    assert!((1..8).contains(&accepted), "the socket takes some and not all: {accepted}");
    assert!(bench.net.blocked && bench.transmit.kick().read().is_err(), "waiting must not keep the thread busy");
    let mut seen = 0;
    while seen < 8 {
        let received = bench.received().expect("a frame");
        assert_eq!(received, frame(seen, 50_000));
        seen += 1;
        bench.net.source_event(0, EventSet::OUT, &mut bench.session).unwrap();
    }
    assert_eq!((bench.metric("tx_packets"), bench.metric("tx_drops"), bench.net.blocked), (8, 0, false));
}

#[test]
fn a_refused_frame_is_dropped_and_the_device_lives() {
    let mut bench = Bench::new(MERGEABLE);
    bench.transmit.add(&[(0x20_0000, 100, false)]);
    drop(std::mem::replace(&mut bench.host, wire().1));
    bench.kick(TRANSMIT).unwrap();
    assert_eq!(bench.transmit.used(), Some((0, 0)));
    assert_eq!(bench.metric("tx_drops"), 1);
}

#[test]
fn configuration_is_strict() {
    let good: NetConfig = serde_json::from_str(r#"{"backend":{"tap":"tap0"},"mac":"02:00:00:00:00:07"}"#).unwrap();
    assert_eq!(good.mac.unwrap().bytes(), [2, 0, 0, 0, 0, 7]);
    assert_eq!(serde_json::from_str::<NetConfig>(r#"{"backend":{"passt":"/s"}}"#).unwrap().mac, None);
    for bad in [
        r#"{}"#,
        r#"{"backend":{"tap":"t"},"mtu":1}"#,
        r#"{"backend":{"tap":"t","passt":"/s"}}"#,
        r#"{"backend":{"tap":"t"},"mac":"01:00:00:00:00:00"}"#,
    ] {
        assert!(serde_json::from_str::<NetConfig>(bad).is_err(), "{bad}");
    }
}

proptest! {
    /// Frames arrive whole and in order in whatever buffers there are, and nothing beyond the buffers is touched.
    #[test]
    fn every_frame_arrives_or_is_counted(
        mergeable in any::<bool>(),
        buffers in prop::collection::vec(12u32..6000, 1..60),
        frames in prop::collection::vec(26usize..9000, 1..20),
        late in 0usize..60,
    ) {
        let mut bench = Bench::new(GUEST_CSUM | if mergeable { MERGEABLE } else { 0 });
        for slot in 0..60 {
            bench.receive.write(BUFFERS + slot * 0x2000, &[0xaa; 0x2000]);
        }
        let mut slots = (0..).zip(buffers.clone());
        for (slot, length) in slots.by_ref().take(buffers.len() - late.min(buffers.len())) {
            bench.post(slot, length);
        }
        for (seed, &length) in (0..).zip(&frames) {
            bench.host.send(&frame(seed, length)).unwrap();
        }
        bench.readable().unwrap();
        for (slot, length) in slots {
            bench.post(slot, length);
            bench.kick(RECEIVE).unwrap();
        }
        let mut sent = (0..).zip(&frames).map(|(seed, &length)| frame(seed, length));
        let mut delivered = 0;
        while let Some((head, length)) = bench.receive.used() {
            let piece = |head: u32, length: u32| bench.receive.read(BUFFERS + u64::from(head) * 0x2000, length as usize);
            let mut seen = piece(head, length);
            let count = u16::from_le_bytes([seen[10], seen[11]]);
            for _ in 1..count {
                let (head, length) = bench.receive.used().expect("all pieces of a frame at once");
                let piece = bench.receive.read(BUFFERS + u64::from(head) * 0x2000, length as usize);
                seen.extend(piece);
            }
            // Frames that were dropped on the way are missing, those that are here are whole.
            prop_assert!(sent.any(|frame| with_count(frame, count) == seen));
            delivered += 1;
        }
        prop_assert_eq!(delivered, bench.metric("rx_packets"));
        for (slot, length) in (0u64..).zip(&buffers) {
            let rest = bench.receive.read(BUFFERS + slot * 0x2000 + u64::from(*length), 0x2000 - *length as usize);
            prop_assert!(rest.iter().all(|&byte| byte == 0xaa), "buffer {} overrun", slot);
        }
    }

    /// Whatever the rings hold, the device neither panics nor hangs.
    #[test]
    fn arbitrary_rings_are_survived(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>()), 32),
        near in any::<bool>(),
        heads in prop::collection::vec((any::<bool>(), any::<u16>()), 1..64),
        frames in prop::collection::vec(0usize..5000, 1..8),
        mergeable in any::<bool>(),
    ) {
        let mut bench = Bench::new(if mergeable { MERGEABLE } else { 0 });
        for (slot, (address, length, flags, next)) in (0u16..).zip(table) {
            let descriptor = if near {
                let flags = if slot < 16 { (flags % 8) | 2 } else { (flags % 8) & !2 };
                Descriptor { address: address % 0x80_0000 + 0x10_0000, length: length % 0x3000, flags, next: next % 17 }
            } else {
                Descriptor { address, length, flags, next }
            };
            let driver = if slot < 16 { &mut bench.receive } else { &mut bench.transmit };
            driver.set_descriptor(slot % 16, descriptor);
        }
        for length in frames {
            if length > 0 {
                bench.host.send(&frame(1, length)).unwrap();
            }
        }
        for (receive, head) in heads {
            let head = if near { head % 16 } else { head };
            let driver = if receive { &mut bench.receive } else { &mut bench.transmit };
            driver.publish(head);
            let result = if receive { bench.readable() } else { bench.kick(TRANSMIT) };
            if result.is_err() {
                // The transport ends the session, as here.
                bench.net.reset(&mut bench.session);
                break;
            }
        }
    }
}

#[test]
fn at_rest_no_buffer_is_in_hand_and_none_is_lost() {
    let mut bench = Bench::new(MERGEABLE | GUEST_CSUM);
    let address = bench.post(0, 1536);
    bench.post(1, 1536);
    // Read dry: both buffers are in hand.
    bench.readable().unwrap();
    bench.net.rest(&mut bench.session).unwrap();
    let position = bench.session.queue(RECEIVE).unwrap().position();
    assert_eq!(position, bench.receive.queue().position(), "as if none had been taken");
    // The device itself goes on, and so does another one from there.
    bench.host.send(&frame(1, 100)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.used(), Some((0, 100)));
    bench.session.queue(RECEIVE).unwrap().set_position(position);
    let (tap, host) = wire();
    bench.net = Net::new(Wire::Tap(Tap::from_socket(tap)), MacAddress::of_tap("other"));
    bench.host = host;
    bench.net.activate(&mut bench.session).unwrap();
    bench.net.restore(&DeviceState::Plain, Some(&mut bench.session)).unwrap();
    bench.host.send(&frame(2, 100)).unwrap();
    bench.readable().unwrap();
    assert_eq!(bench.receive.read(address, 100), with_count(frame(2, 100), 1));
}
