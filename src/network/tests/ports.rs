// SPDX-License-Identifier: Apache-2.0
//! Published ports.

use std::net::{Shutdown, UdpSocket};

use super::*;

/// Sends back what comes, once all of it has come: it needs half-closed connections.
fn echo_after_end(stream: &mut TcpStream) {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    stream.write_all(&all).unwrap();
}

#[test]
fn a_published_port_leads_to_the_container() {
    on_a_host("ports::a_published_port_leads_to_the_container", |store| {
        let guest = Guest::start(store, &request("bridge", "web", &["8080:80", "80", "9000:9000/udp"]));
        let any = guest.attachment.ports[1].host;
        assert_eq!(guest.attachment.ports[0].host.to_string(), "127.0.0.1:8080");
        assert!(any.port() != 0 && any.port() != 8080);
        guest.run(|| {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    thread::spawn(move || echo_after_end(&mut stream));
                }
            });
            let socket = UdpSocket::bind("0.0.0.0:9000").unwrap();
            thread::spawn(move || {
                let mut datagram = [0; 2048];
                while let Ok((count, from)) = socket.recv_from(&mut datagram) {
                    let _ = socket.send_to(&datagram[..count], from);
                }
            });
        });
        // More than all buffers on the way hold, in both directions, on several connections at once.
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
        thread::scope(|scope| {
            for address in [any, "127.0.0.1:8080".parse().unwrap(), any] {
                let data = &data;

                scope.spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.write_all(data).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut back = Vec::new();
                    stream.read_to_end(&mut back).unwrap();
                    assert!(back == *data, "{} of {} bytes", back.len(), data.len());
                });
            }
        });
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:9000").unwrap();
        client.set_read_timeout(Some(MOMENT)).unwrap();
        eventually("a datagram comes back", || {
            client.send(b"datagram").unwrap();
            let mut buffer = [0; 100];
            client.recv(&mut buffer).ok().map(|count| assert_eq!(&buffer[..count], b"datagram"))
        });
        drop(guest);
    });
}

#[test]
fn a_connection_that_breaks_is_reset_on_the_other_side() {
    on_a_host("ports::a_connection_that_breaks_is_reset_on_the_other_side", |store| {
        let guest = Guest::start(store, &request("bridge", "web", &["8080:80", "8081:81"]));
        guest.run(|| {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
                }
            });
        });
        for port in [8080, 8081] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let error = stream.read(&mut [0]).expect_err("not a clean end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        drop(guest);
    });
}

#[test]
fn a_port_that_is_in_use_is_named_and_nothing_is_left() {
    on_a_host("ports::a_port_that_is_in_use_is_named_and_nothing_is_left", |store| {
        let holder = TcpListener::bind("127.0.0.1:8080").unwrap();
        let before = left_behind();
        let failure = attach_in(store, &request("bridge", "web", &["8081:81", "8080:80"])).unwrap_err();
        assert_eq!(
            failure.to_string(),
            "coracle: cannot publish port 127.0.0.1:8080->80/tcp\n  why: port 8080 of the host is in use\n  \
             try: `ss -ltnp sport = :8080` shows by whom; -p 80 takes any free port"
        );
        assert_eq!(left_behind(), before);
        let range = attach_in(store, &request("bridge", "web", &["8080-8081:80"])).unwrap();
        assert_eq!(range.ports[0].host.port(), 8081, "the first of the range that is free");
        let none = attach_in(store, &request("bridge", "api", &["8080-8081:80"])).unwrap_err();
        assert!(none.why.contains("all of these"), "{none}");
        let foreign = attach_in(store, &request("bridge", "api", &["192.0.2.77:80:80"])).unwrap_err();
        assert!(foreign.why.contains("does not have"), "{foreign}");
        drop((range, holder));
    });
}
