// SPDX-License-Identifier: Apache-2.0
//! Guests that break the rules.

use super::*;
use crate::vmm::devices::virtio::testing::Descriptor;
use proptest::prelude::*;

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let data = pattern(0, 64 << 10);
    // The socket takes some, the device holds the rest, and the fifth packet is one too many until that is told.
    for _ in 0..4 {
        let header = peer.data(&data);
        guest.post(&header, &data);
    }
    let header = peer.data(&data);
    guest.post(&header, &data);
    guest.device.queue_event(TX, &mut guest.session).unwrap();
    guest.expect(peer.ports, Op::Reset);
    assert_eq!(guest.metric("streams"), 0);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert!(rest.len() <= 256 << 10);
}

#[test]
fn packets_that_do_not_fit_their_connection_reset_it() {
    let mut guest = Guest::new();
    let bad: [fn(Header) -> Header; 7] = [
        |header| Header { op: Op::Request.number(), ..header },
        |header| Header { op: Op::Response.number(), ..header },
        |header| Header { op: 0, ..header },
        |header| Header { op: 8, ..header },
        |header| Header { op: u16::MAX, ..header },
        |header| Header { op: Op::Data.number(), length: 5, ..header },
        |header| Header { op: Op::Data.number(), length: u32::MAX, ..header },
    ];
    for change in bad {
        let (mut client, peer) = guest.connect_from_host(5);
        guest.send(&change(peer.header(Op::Data)), b"four");
        guest.expect(peer.ports, Op::Reset);
        guest.expect_silence();
        assert_eq!(read_to_end(&mut client), b"");
        assert_eq!(guest.metric("streams"), 0);
    }
    assert_eq!(guest.metric("malformed"), 7);
    // Data behind the end of data, and before a beginning.
    let (_client, mut peer) = guest.connect_from_host(5);
    guest.send(&peer.shutdown(SHUTDOWN_SEND), &[]);
    let header = peer.data(b"x");
    guest.send(&header, b"x");
    guest.expect(peer.ports, Op::Reset);
    let mut client = guest.client();
    client.write_all(b"CONNECT 6\n").unwrap();
    let (request, _) = guest.receive();
    let mut peer = Peer::new(Ports { host: request.src_port, guest: 6 });
    let header = peer.data(b"x");
    guest.send(&header, b"x");
    guest.expect(peer.ports, Op::Reset);
}

#[test]
fn packets_of_no_connection_are_answered_with_a_reset_or_not_at_all() {
    let mut guest = Guest::new();
    let peer = Peer::new(Ports { host: 77, guest: 88 });
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(&peer.header(op), &[]);
        guest.expect(peer.ports, Op::Reset);
    }
    guest.send(&peer.header(Op::Reset), &[]);
    guest.send(&Header { src_cid: 4, ..peer.header(Op::Data) }, &[]);
    guest.expect_silence();
    let other = Header { dst_cid: 9, kind: 2, ..peer.header(Op::Request) };
    guest.send(&other, &[]);
    assert_eq!(guest.receive().0, other.reset());
}

#[test]
fn empty_data_does_nothing() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.connect_from_host(5);
    guest.send(&peer.header(Op::Data), &[]);
    guest.expect_silence();
    client.write_all(b"x").unwrap();
    assert_eq!(guest.receive().1, b"x");
}

#[test]
fn without_receive_buffers_answers_wait_and_packets_with_them() {
    let mut guest = Guest::new();
    guest.refill = false;
    let peer = Peer::new(Ports { host: 77, guest: 88 });
    // Use up what is posted, then as many as are kept.
    for _ in 0..64 + MAX_RESETS {
        guest.send(&peer.header(Op::Data), &[]);
    }
    assert_eq!(guest.tx_outstanding, 0);
    for _ in 0..10 {
        guest.send(&peer.header(Op::Data), &[]);
    }
    assert_eq!((guest.tx_outstanding, guest.device.resets.len()), (10, MAX_RESETS));
    guest.inbox.clear();
    guest.refill = true;
    guest.pump();
    assert_eq!((guest.tx_outstanding, guest.device.resets.len()), (0, 0));
    guest.pump();
    assert_eq!(guest.inbox.len(), MAX_RESETS + 10);
}

#[test]
fn a_receive_buffer_without_room_needs_a_reset() {
    for length in [1, 43, 44] {
        let mut guest = Guest::new();
        guest.refill = false;
        let (mut client, _) = guest.connect_from_host(5);
        for _ in 0..63 {
            client.write_all(b"x").unwrap();
            guest.pump();
        }
        guest.rx.add(&[(RX_BUFFERS, length, true)]);
        client.write_all(b"x").unwrap();
        let result = guest.device.source_event(0, EventSet::IN, &mut guest.session);
        assert!(matches!(result, Err(DeviceError::Chain(_) | DeviceError::Driver(_))), "{length}");
    }
}

#[test]
fn packets_in_odd_pieces_arrive_whole() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let header = peer.data(b"in pieces");
    guest.tx.write(0x20_0000, &header.to_bytes());
    guest.tx.write(0x20_0000 + 44, b"in pieces and more");
    let cut = |at: u64, length| (0x20_0000 + at, length, false);
    guest.tx_outstanding += 2;
    guest.tx.add(&[cut(0, 1), cut(1, 42), cut(43, 3), cut(46, 1), cut(47, 15)]);
    guest.device.queue_event(TX, &mut guest.session).unwrap();
    assert_eq!(read_exact(&mut client, 9), b"in pieces");
    let short = header.to_bytes()[..40].to_vec();
    guest.tx.write(0x20_0000, &short);
    guest.tx.add(&[cut(0, 40)]);
    guest.device.queue_event(TX, &mut guest.session).unwrap();
    assert_eq!(guest.metric("malformed"), 1);
    guest.expect_silence();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Packets near the valid ones, in any order, on connections in any state: no panic, bounded memory, every
    /// packet used, and the device serves a good client afterwards.
    #[test]
    fn any_packets_leave_the_device_working(
        packets in prop::collection::vec(
            ((0u32..6, 0u32..6, 0u16..10, any::<u32>(), 0u32..0x6000), (any::<u32>(), any::<u32>(), 0u8..40, any::<bool>())), 1..150),
    ) {
        let mut guest = Guest::new();
        let listener = guest.listener(1);
        listener.set_nonblocking(true).unwrap();
        let mut clients: Vec<_> = (2..5).map(|port| guest.connect_from_host(port).0).collect();
        for ((host, port, op, flags, length), (buf_alloc, fwd_cnt, oddity, act)) in packets {
            let host = if host > 1 { FIRST_HOST_PORT + host - 2 } else { host };
            let mut header = Peer::new(Ports { host, guest: port }).header(Op::Data);
            (header.op, header.flags, header.length) = (op, flags, length);
            (header.buf_alloc, header.fwd_cnt) = (buf_alloc, fwd_cnt);
            match oddity {
                0 => header.kind = 2,
                1 => header.dst_cid = 1 << 40 | 2,
                2 => header.src_cid = 0,
                3 => header.length = u32::MAX,
                _ => {}
            }
            guest.send(&header, &vec![1; usize::try_from(length).unwrap()]);
            if act {
                clients.extend(listener.accept().map(|(client, _)| client));
                for client in &mut clients {
                    client.set_nonblocking(true).unwrap();
                    let _ = client.write(&[2; 3000]);
                    let _ = client.read(&mut [0; 5000]);
                }
                guest.pump();
            }
            prop_assert!(guest.device.resets.len() <= MAX_RESETS + 1);
        }
        guest.pump();
        prop_assert_eq!(guest.tx_outstanding, 0);
        guest.inbox.clear();
        let (mut client, mut peer) = guest.connect_from_host(100);
        let header = peer.data(b"fine");
        guest.send(&header, b"fine");
        prop_assert_eq!(read_exact(&mut client, 4), b"fine");
    }

    /// Any descriptors in the tx and rx rings: errors at most.
    #[test]
    fn any_rings_end_without_panic(
        table in prop::collection::vec((0u64..0x110_0000, 0u32..0x3000, 0u16..8, 0u16..130), 32),
        heads in prop::collection::vec(0u16..34, 1..40),
        rx in any::<bool>(),
    ) {
        let mut guest = Guest::new();
        let (mut client, _) = guest.connect_from_host(2);
        client.write_all(&[1; 10_000]).unwrap();
        let driver = if rx { &mut guest.rx } else { &mut guest.tx };
        for (slot, (address, length, flags, next)) in (0..32).zip(table) {
            driver.set_descriptor(slot, Descriptor { address, length, flags, next });
        }
        for head in heads {
            driver.publish(head);
        }
        for _ in 0..4 {
            let served = guest.device.queue_event(TX, &mut guest.session).is_ok();
            if !served || guest.device.source_event(0, EventSet::IN, &mut guest.session).is_err() {
                guest.device.reset(&mut guest.session);
                prop_assert_eq!(guest.metric("streams"), 0);
                break;
            }
        }
    }
}
