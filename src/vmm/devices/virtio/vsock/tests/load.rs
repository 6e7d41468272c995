// SPDX-License-Identifier: Apache-2.0
//! Much data, many streams, slow readers.

use super::*;
use std::thread;

/// FNV-1a, to compare two streams of bytes without keeping them.
#[derive(Debug, PartialEq)]
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn update(&mut self, data: &[u8]) {
        for byte in data {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Echoes what comes in on all of these connections, within credit, until each has echoed `total` bytes.
fn echo(guest: &mut Guest, peers: &mut [Peer], total: usize) {
    let mut waiting: Vec<VecDeque<u8>> = peers.iter().map(|_| VecDeque::new()).collect();
    let mut done = vec![0; peers.len()];
    let start = std::time::Instant::now();
    while done.iter().any(|count| *count < total) {
        assert!(start.elapsed() < Duration::from_secs(120), "stalled");
        guest.pump();
        for (header, data) in std::mem::take(&mut guest.inbox) {
            let Some(at) = peers.iter().position(|peer| peer.ports.host == header.src_port) else {
                // Another connection, on which nobody gives credit.
                assert_eq!(header.op, Op::CreditRequest.number());
                continue;
            };
            let peer = &mut peers[at];
            peer.learn(&header);
            peer.received = peer.received.wrapping_add(header.length);
            assert!(matches!(Op::from_number(header.op), Some(Op::Data | Op::CreditUpdate | Op::CreditRequest)));
            waiting[at].extend(data);
            if header.op == Op::CreditRequest.number() {
                let update = peer.header(Op::CreditUpdate);
                guest.send(&update, &[]);
            }
        }
        for (at, peer) in peers.iter_mut().enumerate() {
            while !waiting[at].is_empty() && peer.credit() > 0 && guest.tx_outstanding < 60 {
                let length = waiting[at].len().min(peer.credit()).min(MAX_DATA);
                let data: Vec<u8> = waiting[at].drain(..length).collect();
                let header = peer.data(&data);
                guest.post(&header, &data);
                done[at] += length;
            }
        }
        guest.device.queue_event(TX, &mut guest.session).unwrap();
        guest.collect();
    }
    while peers.iter().any(|peer| guest.has_backlog(peer.ports)) {
        guest.pump();
    }
}

/// Writes `total` bytes while another thread reads as many back; gives the hashes of both.
fn exchange(client: UnixStream, seed: usize, total: usize, piece: usize) -> (Hash, Hash) {
    let mut writer = client.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let (mut hash, data, mut left) = (Hash::new(), pattern(seed, piece + 97), total);
        for at in 0.. {
            let part = &data[at % 97..][..piece.min(left)];
            if part.is_empty() {
                return hash;
            }
            writer.write_all(part).unwrap();
            hash.update(part);
            left -= part.len();
        }
        hash
    });
    let (mut hash, mut reader, mut buffer, mut left) = (Hash::new(), client, vec![0; 64 << 10], total);
    reader.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    while left > 0 {
        let count = reader.read(&mut buffer).unwrap();
        assert!(count > 0, "{left} bytes missing");
        hash.update(&buffer[..count]);
        left -= count;
    }
    (sender.join().unwrap(), hash)
}

#[test]
fn an_echo_of_100_mib_is_faithful() {
    let total = 100 << 20;
    let mut guest = Guest::with_layout(Layout::Linear);
    let (client, peer) = guest.connect_from_host(5);
    let client = thread::spawn(move || exchange(client, 0, total, 50_000));
    echo(&mut guest, &mut [peer], total);
    let (sent, received) = client.join().unwrap();
    assert_eq!(sent, received);
    assert_eq!((guest.metric("rx_bytes"), guest.metric("tx_bytes")), (100 << 20, 100 << 20));
    assert_eq!(guest.metric("resets"), 0);
}

#[test]
fn hundreds_of_streams_at_once() {
    limit_descriptors(None);
    let (streams, total) = (600, 40_000);
    let mut guest = Guest::new();
    let listener = guest.listener(1);
    let (mut clients, mut peers) = (Vec::new(), Vec::new());
    for port in 0..streams {
        let (client, peer) = if port % 2 == 0 {
            guest.connect_from_host(port)
        } else {
            // The test tells connections apart by host port.
            let listener = if port == 1 { listener.try_clone().unwrap() } else { guest.listener(port) };
            guest.connect_from_guest(&listener, Ports { host: port, guest: 9 })
        };
        clients.push(client);
        peers.push(peer);
    }
    assert_eq!(guest.metric("streams"), u64::from(streams));
    let host = thread::spawn(move || {
        let data: Vec<_> = (0..clients.len()).map(|seed| pattern(seed, total)).collect();
        for round in 0..4 {
            for (client, data) in clients.iter_mut().zip(&data) {
                client.write_all(&data[round * 10_000..][..10_000]).unwrap();
            }
        }
        for (client, data) in clients.iter_mut().zip(&data) {
            client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert!(read_exact(client, total) == *data);
        }
    });
    echo(&mut guest, &mut peers, total);
    host.join().unwrap();
    guest.gather(peers.len());
    for peer in &peers {
        assert_eq!(guest.expect(peer_of(&peers, &guest).ports, Op::Shutdown), SHUTDOWN_BOTH);
        guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
    }
    guest.pump();
    assert_eq!(guest.metric("streams"), 0);
}

/// Whose packet is next in the inbox.
fn peer_of<'a>(peers: &'a [Peer], guest: &Guest) -> &'a Peer {
    let next = guest.inbox.iter().find(|(header, _)| header.op != Op::Reset.number()).expect("a packet").0;
    peers.iter().find(|peer| peer.ports.host == next.src_port).expect("a known connection")
}

#[test]
fn a_full_table_refuses_and_counts() {
    limit_descriptors(None);
    let mut guest = Guest::new();
    let listener = guest.listener(1);
    let mut clients: Vec<_> = (0..u32::try_from(table::MAX_STREAMS).unwrap())
        .map(|port| guest.connect_from_guest(&listener, Ports { host: 1, guest: port }).0)
        .collect();
    let mut late = guest.client();
    late.write_all(b"CONNECT 5\n").unwrap();
    guest.expect_silence();
    assert!(late.read(&mut [0]).map_or(true, |count| count == 0));
    let ports = Ports { host: 1, guest: 5000 };
    guest.send(&Peer::new(ports).header(Op::Request), &[]);
    guest.expect(ports, Op::Reset);
    assert_eq!((guest.metric("refused"), guest.metric("streams")), (2, 1024));
    // With one gone there is room for one.
    guest.send(&Peer::new(Ports { host: 1, guest: 0 }).header(Op::Reset), &[]);
    clients.push(guest.connect_from_guest(&listener, ports).0);
}

#[test]
fn a_stalled_reader_holds_nobody_up() {
    let mut guest = Guest::new();
    let (stalled, mut full) = guest.connect_from_host(5);
    // All that the guest has credit for, while nobody reads.
    let data = pattern(0, MAX_DATA);
    let mut sent = 0;
    loop {
        guest.pump();
        for (header, _) in std::mem::take(&mut guest.inbox) {
            full.learn(&header);
        }
        let length = full.credit().min(MAX_DATA);
        if length == 0 {
            break;
        }
        let header = full.data(&data[..length]);
        guest.send(&header, &data[..length]);
        sent += length;
    }
    assert_eq!(guest.tx_outstanding, 0);
    assert!(sent > 256 << 10 && sent < 1 << 20, "{sent}");
    let (client, peer) = guest.connect_from_host(6);
    let client = thread::spawn(move || exchange(client, 1, 2 << 20, 10_000));
    echo(&mut guest, &mut [peer], 2 << 20);
    let (one, other) = client.join().unwrap();
    assert_eq!(one, other);
    // And when the reader wakes up, all is there and the guest may go on.
    let mut stalled = stalled;
    let reader = thread::spawn(move || read_exact(&mut stalled, sent));
    while !reader.is_finished() {
        guest.pump();
    }
    let read = reader.join().unwrap();
    let expected: Vec<u8> = data.iter().copied().cycle().take(sent).collect();
    assert!(read.len() == sent && read[..MAX_DATA] == expected[..MAX_DATA]);
    full.learn(&guest.inbox.back().expect("an update of credit").0);
    assert!(full.credit() > 0);
}

#[test]
fn a_guest_that_stops_reading_one_stream_gets_the_others() {
    let mut guest = Guest::new();
    let (mut stuck, _) = guest.connect_from_host(5);
    stuck.set_nonblocking(true).unwrap();
    while stuck.write(&[1; 4096]).is_ok() {
        guest.pump();
    }
    // The credit of a connection is used up; the guest never gives more.
    let received: usize = guest.inbox.drain(..).map(|(_, data)| data.len()).sum();
    assert_eq!(received, usize::try_from(GUEST_BUFFER).unwrap());
    let (client, peer) = guest.connect_from_host(6);
    let client = thread::spawn(move || exchange(client, 1, 1 << 20, 10_000));
    echo(&mut guest, &mut [peer], 1 << 20);
    let (one, other) = client.join().unwrap();
    assert_eq!(one, other);
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::new();
    let mut ends: Vec<_> = (0..3).map(|port| guest.connect_from_host(port)).collect();
    for (client, _) in &mut ends {
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        while written < 150_000 {
            written += client.write(&[1; 50_000]).unwrap();
        }
    }
    guest.pump();
    // A turn takes as much as the buffers of one turn hold, not one buffer.
    let ports: Vec<_> = guest.inbox.iter().map(|(header, _)| header.src_port).collect();
    assert!(ports.windows(16).any(|turn| turn.iter().all(|port| *port == turn[0])));
    // Until the first has had all, no other has fallen behind by more than a turn of each.
    let mut counts = [0usize; 3];
    for (header, data) in &guest.inbox {
        let at = ends.iter().position(|(_, peer)| peer.ports.host == header.src_port).unwrap();
        counts[at] += data.len();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 2 * (64 << 10), "{counts:?}");
    }
    assert_eq!(counts, [150_000; 3]);
}

#[test]
fn no_descriptor_is_leaked() {
    alone("load::no_descriptor_is_leaked", || {
        let before = open_descriptors();
        let mut guest = Guest::new();
        let listener = guest.listener(1);
        let open = open_descriptors();
        for round in 0..300 {
            let (client, peer) = if round % 2 == 0 {
                guest.connect_from_host(5)
            } else {
                guest.connect_from_guest(&listener, Ports { host: 1, guest: 9 })
            };
            match round % 3 {
                0 => {
                    drop(client);
                    guest.expect(peer.ports, Op::Shutdown);
                    guest.send(&peer.header(Op::Reset), &[]);
                }
                1 => {
                    guest.send(&peer.shutdown(SHUTDOWN_BOTH), &[]);
                    guest.expect(peer.ports, Op::Reset);
                }
                _ => guest.send(&peer.header(Op::Reset), &[]),
            }
            guest.pump();
        }
        assert_eq!(open_descriptors(), open);
        drop((guest, listener));
        assert_eq!(open_descriptors(), before);
    });
}

#[test]
fn clients_wait_while_there_are_no_descriptors() {
    alone("load::clients_wait_while_there_are_no_descriptors", || {
        let mut guest = Guest::new();
        let mut client = guest.client();
        client.write_all(b"CONNECT 5\n").unwrap();
        let next = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
        limit_descriptors(Some(next.try_into().unwrap()));
        guest.expect_silence();
        // Nobody is asked for descriptors until a tick later.
        assert!(guest.device.accept_paused);
        limit_descriptors(None);
        guest.let_time_pass();
        assert_eq!(guest.receive().0.dst_port, 5);
    });
}
