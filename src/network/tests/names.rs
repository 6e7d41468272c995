// SPDX-License-Identifier: Apache-2.0
//! The name server, as a guest sees it.

use std::net::UdpSocket;

use super::super::attach::rename_in;
use super::super::dns::Resolvers;
use super::super::manage;
use super::*;

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;

fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap());
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, u8::try_from(kind).unwrap(), 0, 1]);
    message
}

/// Code, and the data of the answer's only record.
fn read(answer: &[u8], question: &[u8]) -> (u8, Vec<u8>) {
    assert_eq!(answer[..2], question[..2]);
    let data = if answer[7] == 0 { &[] } else { &answer[question.len() + 12..] };
    (answer[3] & 15, data.to_vec())
}

fn lookup(server: IpAddr, name: &str, kind: u16) -> (u8, Vec<u8>) {
    let question = query(name, kind);
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((server, 53)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    eventually("the name server answers", || {
        socket.send(&question).unwrap();
        let mut answer = [0; 1024];
        socket.recv(&mut answer).ok().map(|count| read(&answer[..count], &question))
    })
}

fn lookup_tcp(server: IpAddr, name: &str, kind: u16) -> (u8, Vec<u8>) {
    let question = query(name, kind);
    let mut stream = TcpStream::connect((server, 53)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = u16::try_from(question.len()).unwrap().to_be_bytes();
    // In pieces, as a slow or hostile client sends it.
    for part in [&length[..1], &length[1..], &question[..5], &question[5..]] {
        stream.write_all(part).unwrap();
        thread::sleep(Duration::from_millis(10));
    }
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    read(&answer, &question)
}

#[test]
fn containers_find_each_other_by_name() {
    on_a_host("names::containers_find_each_other_by_name", |store| {
        manage::create(store, &New { ipv6: true, ..new("app") }).unwrap();
        let web = Guest::start(store, &request("app", "web", &[]));
        let mut asked = request("app", "db", &[]);
        asked.names = vec!["db".into(), "postgres".into(), "0123456789ab".into()];
        let db = attach_in(store, &asked).unwrap();
        let elsewhere = attach_in(store, &request("bridge", "other", &[])).unwrap();
        let server = web.attachment.nameservers[0];
        let (four, six) = (v4(db.addresses[0].addr()).octets().to_vec(), db.addresses[1].addr());
        let IpAddr::V6(six) = six else { panic!("IPv4") };
        for name in ["db", "DB", "postgres", "0123456789ab", "db.app", "postgres.App"] {
            assert_eq!(web.run(move || lookup(server, name, A)), (0, four.clone()), "{name}");
            assert_eq!(web.run(move || lookup_tcp(server, name, A)), (0, four.clone()), "{name}");
            assert_eq!(web.run(move || lookup(server, name, AAAA)), (0, six.octets().to_vec()), "{name}");
        }
        assert_eq!(web.run(move || lookup(server, "db", PTR)), (0, vec![]), "a name, but no such record");
        let reverse = |address: IpAddr| {
            let [a, b, c, d] = v4(address).octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        };
        let name = reverse(db.addresses[0].addr());
        assert_eq!(web.run(move || lookup(server, &name, PTR)), (0, b"\x02db\x03app\x00".to_vec()));
        let nobody = reverse(IpAddr::V4(Ipv4Addr::from(u32::from(v4(web.address())) + 9)));
        assert_eq!(web.run(move || lookup(server, &nobody, PTR)).0, 3);
        // Both monitors' servers answer, whichever the kernel picks; and none knows another network's containers.
        assert_ne!(web.run(move || lookup(server, "other", A)).1, v4(elsewhere.addresses[0].addr()).octets());
        rename_in(store, "db-id", "db", "sql").unwrap();
        assert_eq!(web.run(move || lookup(server, "sql", A)), (0, four.clone()));
        assert_ne!(web.run(move || lookup(server, "db", A)).1, four);
        drop(db);
        assert_ne!(web.run(move || lookup(server, "sql", A)).1, four, "it has gone");
        drop((web, elsewhere));
    });
}

#[test]
fn other_names_are_asked_for_outside_but_not_from_an_internal_network() {
    on_a_host("names::other_names_are_asked_for_outside_but_not_from_an_internal_network", |store| {
        let resolvers = Resolvers::read().servers;
        let resolver = resolvers.first().copied().expect("a name server in /etc/resolv.conf");
        if !resolver.is_loopback() {
            ip(&format!("addr add {resolver} dev lo"));
        }
        let (udp, tcp) = (UdpSocket::bind((resolver, 53)).unwrap(), TcpListener::bind((resolver, 53)).unwrap());
        // An answer that is the question with a record, and ten bytes more over TCP.
        let answer = |question: &[u8], extra: usize| {
            let mut message = question.to_vec();
            (message[2], message[7]) = (0x81, 1);
            message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 53]);
            message.extend(vec![7; extra]);
            message
        };
        let over_udp = thread::spawn(move || {
            let mut buffer = [0; 1024];
            while let Ok((count @ 1.., from)) = udp.recv_from(&mut buffer) {
                // What does not belong to the question is not taken.
                let mut wrong = answer(&buffer[..count], 0);
                wrong[1] ^= 1;
                udp.send_to(&wrong, from).unwrap();
                udp.send_to(&answer(&buffer[..count], 0), from).unwrap();
            }
        });
        let over_tcp = thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let mut length = [0; 2];
                if stream.read_exact(&mut length).is_err() {
                    return;
                }
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let message = answer(&question, 10);
                stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
                stream.write_all(&message).unwrap();
            }
        });
        manage::create(store, &New { internal: true, ..new("inner") }).unwrap();
        let (out, inner) =
            (Guest::start(store, &request("bridge", "out", &[])), Guest::start(store, &request("inner", "in", &[])));
        let server = out.attachment.nameservers[0];
        assert_eq!(out.run(move || lookup(server, "www.example.org", A)), (0, vec![192, 0, 2, 53]));
        let long = out.run(move || lookup_tcp(server, "www.example.org", A));
        assert_eq!((long.0, long.1.len()), (0, 14));
        let server = inner.attachment.nameservers[0];
        assert_eq!(inner.run(move || lookup(server, "www.example.org", A)), (5, vec![]));
        assert_eq!(inner.run(move || lookup(server, "in", A)).0, 0);
        drop((out, inner));
        // What says nothing ends the servers.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&[], (resolver, 53)).unwrap();
        drop(TcpStream::connect((resolver, 53)).unwrap());
        over_udp.join().unwrap();
        over_tcp.join().unwrap();
        if !resolver.is_loopback() {
            ip(&format!("addr del {resolver} dev lo"));
        }
    });
}
