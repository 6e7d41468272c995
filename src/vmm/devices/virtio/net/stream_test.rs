// SPDX-License-Identifier: Apache-2.0
//! The device against a fake driver, with a socket in place of passt.

use proptest::prelude::*;
use virtio_bindings::virtio_net::*;
use vmm_sys_util::epoll::EventSet;

use super::super::super::testing::FakeDriver;
use super::super::super::{Session, VirtioDevice};
use super::super::{MacAddress, Net, RECEIVE, TRANSMIT, Wire};
use super::*;

const BUFFERS: u64 = 0x10_0000;

struct Bench {
    net: Net,
    session: Session,
    receive: FakeDriver,
    transmit: FakeDriver,
    host: UnixStream,
}

impl Bench {
    fn new() -> Self {
        let (ours, host) = UnixStream::pair().unwrap();
        for end in [&ours, &host] {
            end.set_nonblocking(true).unwrap();
        }
        let mut net = Net::new(Wire::Stream(FrameStream::new(ours)), MacAddress::of_tap("test"));
        let (session, mut drivers) = FakeDriver::attach(&mut net, 1 << VIRTIO_NET_F_MRG_RXBUF).unwrap();
        let transmit = drivers.pop().unwrap();
        let receive = drivers.pop().unwrap();
        Self { net, session, receive, transmit, host }
    }

    fn event(&mut self, events: EventSet) {
        self.net.source_event(0, events, &mut self.session).unwrap();
    }

    fn metric(&self, name: &str) -> u64 {
        self.net.metrics().into_iter().find(|(metric, _)| *metric == name).unwrap().1
    }
}

fn frame(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0]) ^ at.to_le_bytes()[1]).collect()
}

fn on_the_wire(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes(), frame].concat()
}

#[test]
fn offloads_are_not_offered_and_large_packets_are() {
    let bench = Bench::new();
    let features = bench.net.features();
    for bit in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_TSO4] {
        assert_eq!(features >> bit & 1, 0, "feature {bit}");
    }
    let mut mtu = [0; 2];
    bench.net.read_config(10, &mut mtu);
    assert_eq!((features >> VIRTIO_NET_F_MTU & 1, u16::from_le_bytes(mtu)), (1, FRAME_STREAM_MTU));
}

#[test]
fn a_frame_arrives_when_its_last_byte_has_come() {
    let mut bench = Bench::new();
    bench.receive.add(&[(BUFFERS, 1500, true)]);
    let bytes = on_the_wire(&frame(3, 100));
    for part in [&bytes[..2], &bytes[2..50], &bytes[50..]] {
        assert_eq!(bench.receive.used(), None);
        bench.host.write_all(part).unwrap();
        bench.event(EventSet::IN);
    }
    assert_eq!(bench.receive.used(), Some((0, 112)));
    let mut wanted = vec![0; HEADER];
    wanted[10] = 1;
    wanted.extend(frame(3, 100));
    assert_eq!(bench.receive.read(BUFFERS, 112), wanted);
}

#[test]
fn a_frame_is_sent_without_its_header() {
    let mut bench = Bench::new();
    let sent = frame(5, 300);
    bench.transmit.write(BUFFERS, &[&[0xff; HEADER][..], &sent].concat());
    bench.transmit.add(&[(BUFFERS, 100, false), (BUFFERS + 100, 212, false)]);
    bench.net.queue_event(TRANSMIT, &mut bench.session).unwrap();
    assert_eq!(bench.transmit.used(), Some((0, 0)));
    let mut seen = [0; 400];
    let count = bench.host.read(&mut seen).unwrap();
    assert_eq!(seen[..count], on_the_wire(&sent));
}

#[test]
fn a_reader_that_is_slow_loses_nothing() {
    let mut bench = Bench::new();
    let sent = frame(9, 60_000);
    bench.transmit.write(BUFFERS, &[&[0; HEADER][..], &sent].concat());
    let (mut posted, mut seen) = (0, Vec::new());
    let mut chunk = vec![0; 100_000];
    while posted < 100 || bench.metric("tx_packets") < 100 {
        if posted < 100 {
            bench.transmit.add(&[(BUFFERS, 60_012, false)]);
            posted += 1;
            bench.net.queue_event(TRANSMIT, &mut bench.session).unwrap();
        }
        if bench.metric("tx_packets") < posted || posted == 100 {
            let count = bench.host.read(&mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..count]);
            bench.event(EventSet::OUT);
        }
        while bench.transmit.used().is_some() {}
    }
    let whole = on_the_wire(&sent);
    while seen.len() < 100 * whole.len() {
        bench.event(EventSet::OUT);
        let count = bench.host.read(&mut chunk).unwrap();
        seen.extend_from_slice(&chunk[..count]);
    }
    assert!(seen.chunks(whole.len()).all(|piece| piece == whole));
    assert_eq!(bench.metric("tx_drops"), 0);
}

#[test]
fn the_link_goes_down_when_the_other_side_goes_or_talks_nonsense() {
    for nonsense in [&[][..], &[0xff; 8]] {
        let mut bench = Bench::new();
        bench.receive.add(&[(BUFFERS, 1500, true)]);
        bench.host.write_all(nonsense).unwrap();
        if nonsense.is_empty() {
            drop(std::mem::replace(&mut bench.host, UnixStream::pair().unwrap().0));
        }
        bench.event(EventSet::IN);
        let mut status = [1; 2];
        bench.net.read_config(6, &mut status);
        assert_eq!(status, [0; 2]);
        bench.transmit.add(&[(BUFFERS, 100, false)]);
        bench.net.queue_event(TRANSMIT, &mut bench.session).unwrap();
        assert!(bench.transmit.used().is_some(), "frames vanish, as with a cable that is pulled");
    }
}

proptest! {
    /// Frames arrive whole and in order, however the stream is cut into pieces and whatever buffers there are.
    #[test]
    fn every_frame_arrives(
        buffers in prop::collection::vec(100_u32..4000, 16),
        lengths in prop::collection::vec(0_usize..3000, 1..20),
        cuts in prop::collection::vec(1_usize..4000, 1..40),
    ) {
        let mut bench = Bench::new();
        let frames: Vec<_> = (0..).zip(&lengths).map(|(seed, &length)| frame(seed, length)).collect();
        let stream: Vec<u8> = frames.iter().flat_map(|frame| on_the_wire(frame)).collect();
        let mut sent = frames.iter().filter(|frame| frame.len() >= 14);
        let (mut rest, mut cuts) = (stream.as_slice(), cuts.iter().cycle());
        let mut free: Vec<u64> = (0..16).collect();
        let mut slots = std::collections::HashMap::new();
        let mut idle = 0;
        while idle < 3 {
            for slot in free.drain(..) {
                let head = bench.receive.add(&[(BUFFERS + slot * 0x2000, buffers[usize::try_from(slot).unwrap()], true)]);
                slots.insert(u32::from(head), slot);
            }
            let cut = (*cuts.next().unwrap()).min(rest.len());
            bench.host.write_all(&rest[..cut]).unwrap();
            rest = &rest[cut..];
            bench.net.queue_event(RECEIVE, &mut bench.session).unwrap();
            bench.event(EventSet::IN);
            idle = if rest.is_empty() { idle + 1 } else { 0 };
            let (mut seen, mut left) = (Vec::new(), 0);
            while let Some((head, length)) = bench.receive.used() {
                let slot = slots[&head];
                let piece = bench.receive.read(BUFFERS + slot * 0x2000, usize::try_from(length).unwrap());
                free.push(slot);
                if left == 0 {
                    left = u16::from_le_bytes([piece[10], piece[11]]);
                }
                seen.extend(piece);
                left -= 1;
                if left == 0 {
                    prop_assert_eq!(Some(&seen[HEADER..]), sent.next().map(Vec::as_slice));
                    seen.clear();
                    idle = 0;
                }
            }
            prop_assert_eq!(left, 0, "a frame comes whole");
        }
        prop_assert_eq!(sent.next(), None);
    }
}
