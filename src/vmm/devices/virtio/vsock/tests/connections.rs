// SPDX-License-Identifier: Apache-2.0
//! How connections come to be, and their credit.

use super::*;

#[test]
fn a_host_client_reaches_a_guest_port() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 1024\nhello").unwrap();
    let (request, _) = guest.receive();
    assert_eq!((request.op, request.dst_port), (Op::Request.number(), 1024));
    assert!(request.src_port >= FIRST_HOST_PORT);
    assert_eq!((request.buf_alloc, request.fwd_cnt), (credit::BUFFER_SIZE, 0));
    guest.expect_silence();

    let mut peer = Peer::new(Ports { host: request.src_port, guest: 1024 });
    guest.send(&peer.header(Op::Response), &[]);
    let (data, bytes) = guest.receive();
    assert_eq!((data.op, bytes.as_slice()), (Op::Data.number(), b"hello".as_slice()));
    let header = peer.data(b"world");
    guest.send(&header, b"world");
    let expected = format!("OK {}\nworld", request.src_port);
    assert_eq!(read_exact(&mut client, expected.len()), expected.as_bytes());
    assert_eq!((guest.metric("rx_bytes"), guest.metric("tx_bytes")), (5, 5));
    assert_eq!((guest.metric("connections_from_host"), guest.metric("streams")), (1, 1));
}

#[test]
fn a_greeting_may_come_in_pieces() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    for piece in ["CON", "NECT 10", "24"] {
        client.write_all(piece.as_bytes()).unwrap();
        guest.expect_silence();
    }
    client.write_all(b"\n").unwrap();
    assert_eq!(guest.receive().0.dst_port, 1024);
}

#[test]
fn a_bad_greeting_closes_the_connection() {
    let mut guest = Guest::new();
    let long = "x".repeat(40);
    for line in ["GET / HTTP/1.1\n", "CONNECT 99999999999\n", "\n", long.as_str()] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        guest.expect_silence();
        let end = client.read(&mut [0]);
        assert!(matches!(&end, Ok(0)) || end.is_err_and(|error| error.raw_os_error() == Some(libc::ECONNRESET)));
    }
    let client = guest.client();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    drop(guest.client());
    guest.expect_silence();
    assert_eq!((guest.metric("refused"), guest.metric("streams")), (6, 0));
}

#[test]
fn a_port_without_listener_in_the_guest_closes_the_client() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.receive();
    let peer = Peer::new(Ports { host: request.src_port, guest: 7 });
    guest.send(&peer.header(Op::Reset), &[]);
    guest.expect_silence();
    assert_eq!(read_to_end(&mut client), b"");
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    let mut silent = guest.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.receive();
    let ports = Ports { host: request.src_port, guest: 7 };
    guest.let_time_pass();
    guest.expect(ports, Op::Reset);
    assert_eq!((read_to_end(&mut client), read_to_end(&mut silent)), (vec![], vec![]));
    // An answer that comes too late.
    guest.send(&Peer::new(ports).header(Op::Response), &[]);
    guest.expect(ports, Op::Reset);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_forgotten() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 7\n").unwrap();
    let (request, _) = guest.receive();
    drop(client);
    guest.expect(Ports { host: request.src_port, guest: 7 }, Op::Reset);
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn the_guest_reaches_a_listener_on_the_host() {
    let mut guest = Guest::with_layout(Layout::Linear);
    let listener = guest.listener(5000);
    let (mut client, mut peer) = guest.connect_from_guest(&listener, Ports { host: 5000, guest: 9 });
    let header = peer.data(b"ping");
    guest.send(&header, b"ping");
    assert_eq!(read_exact(&mut client, 4), b"ping");
    client.write_all(b"pong").unwrap();
    assert_eq!(guest.receive().1, b"pong");
    assert_eq!((guest.metric("connections_from_guest"), guest.metric("streams")), (1, 1));
}

#[test]
fn the_guest_is_refused_where_nobody_listens() {
    let mut guest = Guest::new();
    let ports = Ports { host: 5000, guest: 9 };
    guest.send(&Peer::new(ports).header(Op::Request), &[]);
    guest.expect(ports, Op::Reset);
    drop(guest.listener(5000));
    guest.send(&Peer::new(ports).header(Op::Request), &[]);
    guest.expect(ports, Op::Reset);
    assert_eq!((guest.metric("refused"), guest.metric("streams")), (2, 0));
}

#[test]
fn clients_wait_for_a_driver() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v.sock");
    let mut device = Vsock::open(&VsockConfig { path: path.clone(), cid: 3 }).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"CONNECT 1\n").unwrap();
    let (mut session, mut drivers) = FakeDriver::attach(&mut device, 0).unwrap();
    drivers[RX].add(&[(0x10_0000, 4096, true)]);
    // One event for the client, one for its line.
    device.source_event(0, EventSet::IN, &mut session).unwrap();
    device.source_event(0, EventSet::IN, &mut session).unwrap();
    assert_eq!(drivers[RX].used(), Some((0, 44)));
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut guest = Guest::new();
    let listener = guest.listener(1);
    let mut peer = Peer::new(Ports { host: 1, guest: 9 });
    peer.buf_alloc = 5000;
    guest.send(&peer.header(Op::Request), &[]);
    guest.expect(peer.ports, Op::Response);
    let mut client = listener.accept().unwrap().0;
    let all = pattern(0, 20_000);
    client.write_all(&all).unwrap();
    guest.pump();
    let received = |guest: &mut Guest| -> Vec<u8> { guest.inbox.drain(..).flat_map(|(_, data)| data).collect() };
    assert_eq!(received(&mut guest), all[..5000]);
    guest.expect_silence();

    // The guest says nothing for a while: it is asked, once.
    guest.let_time_pass();
    guest.expect(peer.ports, Op::CreditRequest);
    guest.let_time_pass();
    guest.expect_silence();
    peer.received = 3000;
    guest.send(&peer.header(Op::CreditUpdate), &[]);
    guest.pump();
    assert_eq!(received(&mut guest), all[5000..8000]);
    // Less room than what is on its way is no room.
    peer.buf_alloc = 1000;
    guest.send(&peer.header(Op::CreditUpdate), &[]);
    guest.expect_silence();
    (peer.received, peer.buf_alloc) = (8000, 1 << 20);
    guest.send(&peer.header(Op::CreditUpdate), &[]);
    guest.pump();
    assert_eq!(received(&mut guest), all[8000..]);
}

#[test]
fn credit_is_told_when_asked_for_and_when_half_of_it_is_used() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let data = pattern(1, 100_000);
    for part in data.chunks(50_000) {
        let header = peer.data(part);
        guest.send(&header, part);
    }
    guest.expect_silence();
    assert_eq!(read_exact(&mut client, 100_000), data);
    guest.send(&peer.header(Op::CreditRequest), &[]);
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.buf_alloc, header.fwd_cnt), (Op::CreditUpdate.number(), 256 << 10, 100_000));
    for part in data.chunks(50_000).chain(data.chunks(40_000).take(1)) {
        let header = peer.data(part);
        guest.send(&header, part);
    }
    let (header, _) = guest.receive();
    assert_eq!((header.op, header.fwd_cnt), (Op::CreditUpdate.number(), 240_000));
}

#[test]
fn a_transport_reset_is_told_and_ends_all() {
    let mut guest = Guest::new();
    let (mut client, _) = guest.connect_from_host(5);
    assert!(!guest.device.transport_reset(&mut guest.session).unwrap());
    assert_eq!(read_to_end(&mut client), b"");
    let head = guest.event.add(&[(0x2_0000, 4, true)]);
    guest.event.write(0x2_0000, &[0xff; 4]);
    assert!(guest.device.transport_reset(&mut guest.session).unwrap());
    assert_eq!(guest.event.used(), Some((head.into(), 4)));
    assert_eq!(guest.event.read(0x2_0000, 4), [0; 4]);
    // A driver that acts on it only now would end a new connection too: that waits for the buffer to come back.
    let mut early = guest.client();
    early.write_all(b"CONNECT 5\n").unwrap();
    guest.let_time_pass();
    guest.expect_silence();
    assert!(matches!(guest.device.state(), DeviceState::Vsock { connected: true, .. }));
    guest.event.add(&[(0x2_0000, 4, true)]);
    guest.let_time_pass();
    assert_eq!(guest.receive().0.op, Op::Request.number());
}

#[test]
fn a_restored_guest_is_told_only_of_what_it_knew() {
    let mut guest = Guest::new();
    let quiet = guest.device.state();
    assert!(matches!(quiet, DeviceState::Vsock { cid: 3, connected: false, .. }), "{quiet:?}");
    let (_client, _) = guest.connect_from_host(5);
    let busy = guest.device.state();
    assert!(matches!(busy, DeviceState::Vsock { connected: true, .. }), "{busy:?}");
    let moved = DeviceState::Vsock { cid: 4, connected: false, next_host_port: FIRST_HOST_PORT };
    for (state, told) in [(quiet, false), (busy, true), (moved, true)] {
        let mut clone = Guest::new();
        let head = clone.event.add(&[(0x2_0000, 4, true)]);
        clone.device.restore(&state, Some(&mut clone.session)).unwrap();
        assert_eq!(clone.event.used(), told.then_some((head.into(), 4)), "{state:?}");
        clone.event.add(&[(0x2_0000, 4, true)]);
        clone.let_time_pass();
        clone.connect_from_host(5);
    }
    assert!(guest.device.restore(&DeviceState::Plain, None).is_err());
}

#[test]
fn configuration() {
    let guest = Guest::new();
    let mut cid = [0xff; 12];
    guest.device.read_config(0, &mut cid);
    assert_eq!(cid, [3, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    let config: VsockConfig = serde_json::from_str(r#"{"path":"/x"}"#).unwrap();
    assert_eq!(config, VsockConfig { path: "/x".into(), cid: 3 });
    assert!(serde_json::from_str::<VsockConfig>(r#"{"path":"/x","port":1}"#).is_err());
    for cid in [0, 1, 2, 0xffff_ffff, 1 << 32 | 3] {
        let result = Vsock::open(&VsockConfig { path: "/nowhere/x".into(), cid });
        assert!(matches!(result.err(), Some(VsockError::Cid { .. })), "{cid}");
    }
}
