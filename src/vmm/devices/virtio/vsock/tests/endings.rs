// SPDX-License-Identifier: Apache-2.0
//! How connections end: by halves, in good order, and abruptly.

use super::*;
use std::io::ErrorKind;
use std::net::Shutdown;

#[test]
fn the_host_finishes_writing_and_reads_on() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().1, b"question");
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_SEND);
    let header = peer.data(b"answer");
    guest.send(&header, b"answer");
    guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(peer.ports, Op::Reset);
    assert_eq!(read_to_end(&mut client), b"answer");
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn the_guest_finishes_writing_and_reads_on() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let header = peer.data(b"question");
    guest.send(&header, b"question");
    guest.send(&peer.shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(read_to_end(&mut client), b"question");
    client.write_all(b"answer").unwrap();
    assert_eq!(guest.receive().1, b"answer");
    drop(client);
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_BOTH);
    guest.send(&peer.header(Op::Reset), &[]);
    guest.expect_silence();
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn the_guest_stops_reading() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    guest.send(&peer.shutdown(SHUTDOWN_RECEIVE), &[]);
    guest.expect_silence();
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let header = peer.data(b"still here");
    guest.send(&header, b"still here");
    assert_eq!(read_exact(&mut client, 10), b"still here");
    drop(client);
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_BOTH);
}

#[test]
fn the_host_stops_reading() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    client.shutdown(Shutdown::Read).unwrap();
    let data = pattern(0, 50_000);
    for round in 0..20 {
        // All of it is dropped, none of it blocks the guest.
        let header = peer.data(&data);
        guest.send(&header, &data);
        if round == 0 {
            assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_RECEIVE);
        }
        guest.pump();
        for (header, _) in std::mem::take(&mut guest.inbox) {
            assert_eq!(header.op, Op::CreditUpdate.number());
        }
    }
    client.write_all(b"talks on").unwrap();
    assert_eq!(guest.receive().1, b"talks on");
    drop(client);
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_BOTH);
}

#[test]
fn a_client_that_closes_leaves_nothing_unread() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let data = pattern(3, 150_000);
    client.write_all(&data).unwrap();
    drop(client);
    let mut received = Vec::new();
    loop {
        let (header, bytes) = guest.receive();
        if header.op != Op::Data.number() {
            assert_eq!((header.op, header.flags), (Op::Shutdown.number(), SHUTDOWN_BOTH));
            break;
        }
        received.extend(bytes);
    }
    assert!(received == data);
    // What the guest had on its way to nobody is dropped.
    let header = peer.data(b"late");
    guest.send(&header, b"late");
    guest.expect_silence();
    assert_eq!(guest.metric("streams"), 1);
    guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(peer.ports, Op::Reset);
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn a_client_that_closes_with_unread_data_ends_the_connection() {
    let mut guest = Guest::new();
    let (client, mut peer) = guest.connect_from_host(5);
    let header = peer.data(b"never read");
    guest.send(&header, b"never read");
    drop(client);
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_BOTH);
}

#[test]
fn a_guest_that_does_not_finish_is_reset() {
    let mut guest = Guest::new();
    let (client, peer) = guest.connect_from_host(5);
    drop(client);
    assert_eq!(guest.expect(peer.ports, Op::Shutdown), SHUTDOWN_BOTH);
    guest.let_time_pass();
    guest.expect(peer.ports, Op::Reset);
    assert_eq!(guest.metric("streams"), 0);
}

#[test]
fn what_a_guest_wrote_before_it_closed_still_arrives() {
    let mut guest = Guest::new();
    let (mut client, mut peer) = guest.connect_from_host(5);
    let mut all = Vec::new();
    // More than the socket holds: the rest waits in the device.
    while !guest.has_backlog(peer.ports) {
        let part = pattern(all.len(), 60_000);
        let header = peer.data(&part);
        guest.send(&header, &part);
        all.extend(part);
        guest.pump();
        guest.inbox.clear();
    }
    guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(peer.ports, Op::Reset);
    // The ports are free at once.
    guest.send(&peer.header(Op::CreditRequest), &[]);
    guest.expect(peer.ports, Op::Reset);
    assert_eq!(guest.metric("streams"), 1);
    let reader = std::thread::spawn(move || read_to_end(&mut client));
    while guest.metric("streams") > 0 {
        guest.pump();
    }
    assert!(reader.join().unwrap() == all);

    // A reader that takes nothing does not keep it for ever.
    let (client, mut peer) = guest.connect_from_host(5);
    for _ in 0..4 {
        let part = pattern(0, 60_000);
        let header = peer.data(&part);
        guest.send(&header, &part);
    }
    guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    assert_eq!(guest.metric("streams"), 1);
    guest.let_time_pass();
    assert_eq!(guest.metric("streams"), 0);
    drop(client);
}

#[test]
fn a_reset_of_the_guest_closes_the_host_socket() {
    let mut guest = Guest::new();
    let (mut client, peer) = guest.connect_from_host(5);
    guest.send(&peer.header(Op::Reset), &[]);
    assert_eq!(read_to_end(&mut client), b"");
    guest.expect_silence();
    assert_eq!((guest.metric("streams"), guest.metric("resets")), (0, 0));
}

#[test]
fn a_device_reset_closes_all_and_the_next_driver_starts_afresh() {
    alone("endings::a_device_reset_closes_all_and_the_next_driver_starts_afresh", || {
        let mut guest = Guest::new();
        let before = open_descriptors();
        let listener = guest.listener(1);
        let mut clients = Vec::new();
        for port in 0..20 {
            let (mut client, mut peer) = guest.connect_from_host(port);
            client.write_all(b"on its way").unwrap();
            let header = peer.data(&[7; 60_000]);
            guest.send(&header, &[7; 60_000]);
            guest.pump();
            guest.inbox.clear();
            clients.push(client);
            clients.push(guest.connect_from_guest(&listener, Ports { host: 1, guest: port }).0);
        }
        // In the middle of a handshake.
        clients.push(guest.client());
        guest.pump();
        guest.device.reset(&mut guest.session);
        assert_eq!(guest.metric("streams"), 0);
        assert_eq!(open_descriptors(), before + 1 + clients.len());
        for client in &mut clients {
            // Whatever was there first, then an end: by what was unread, orderly or not.
            let mut rest = Vec::new();
            let end = client.read_to_end(&mut rest);
            assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        }
        drop((clients, listener));
        assert_eq!(open_descriptors(), before);

        let (session, drivers) = FakeDriver::attach(&mut guest.device, 0).unwrap();
        let Ok([rx, tx, event]) = <[FakeDriver; 3]>::try_from(drivers) else { panic!("three queues") };
        (guest.session, guest.rx, guest.tx, guest.event) = (session, rx, tx, event);
        guest.rx_free.extend(guest.rx_posted.drain(..).map(|(_, address)| address));
        (guest.tx_next, guest.tx_outstanding) = (0, 0);
        guest.inbox.clear();
        guest.post_buffers();
        guest.connect_from_host(5);
        assert_eq!(guest.metric("streams"), 1);
    });
}
