// SPDX-License-Identifier: Apache-2.0

use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;

fn one(text: &str) -> Publish {
    let list = Publish::parse(text).unwrap();
    assert_eq!(list.len(), 1, "{text}");
    list[0]
}

#[test]
fn words_are_read_as_docker_does() {
    let any = |address: IpAddr, host, container, protocol| Publish { address, host, container, protocol };
    let (local, all) = (Publish::LOOPBACK, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let six = IpAddr::V6(Ipv6Addr::LOCALHOST);
    for (text, wanted) in [
        ("80", any(local, (0, 0), 80, Protocol::Tcp)),
        ("8080:80", any(local, (8080, 8080), 80, Protocol::Tcp)),
        (":80", any(local, (0, 0), 80, Protocol::Tcp)),
        ("::80", any(local, (0, 0), 80, Protocol::Tcp)),
        ("0:80", any(local, (0, 0), 80, Protocol::Tcp)),
        ("53:53/udp", any(local, (53, 53), 53, Protocol::Udp)),
        ("53:53/UDP", any(local, (53, 53), 53, Protocol::Udp)),
        ("0.0.0.0:8080:80/tcp", any(all, (8080, 8080), 80, Protocol::Tcp)),
        ("0.0.0.0::80", any(all, (0, 0), 80, Protocol::Tcp)),
        ("[::1]:8080:80", any(six, (8080, 8080), 80, Protocol::Tcp)),
        ("[::1]::80", any(six, (0, 0), 80, Protocol::Tcp)),
        ("8000-8010:80", any(local, (8000, 8010), 80, Protocol::Tcp)),
        ("65535:65535", any(local, (65535, 65535), 65535, Protocol::Tcp)),
    ] {
        assert_eq!(one(text), wanted, "{text}");
    }
}

#[test]
fn a_range_is_as_many_ports() {
    let list = Publish::parse("127.0.0.2:9000-9002:80-82/udp").unwrap();
    let ports: Vec<_> = list.iter().map(|port| (port.host, port.container)).collect();
    assert_eq!(ports, [((9000, 9000), 80), ((9001, 9001), 81), ((9002, 9002), 82)]);
    assert!(list.iter().all(|port| port.protocol == Protocol::Udp && port.address.to_string() == "127.0.0.2"));
    let free = Publish::parse("80-81").unwrap();
    assert!(free.len() == 2 && free.iter().all(|port| port.host == (0, 0)));
}

#[test]
fn nonsense_is_named() {
    let text = str::to_owned;
    for (word, error) in [
        ("", PortError::NoPort(text(""))),
        ("8080:", PortError::NoPort(text("8080:"))),
        ("/tcp", PortError::NoPort(text("/tcp"))),
        ("0", PortError::Port(text("0"))),
        ("65536", PortError::Port(text("65536"))),
        ("+80", PortError::Port(text("+80"))),
        ("90-80", PortError::Port(text("90-80"))),
        ("x:80", PortError::Port(text("x"))),
        ("80/sctp", PortError::Protocol(text("sctp"))),
        ("80/tcp/udp", PortError::Protocol(text("tcp/udp"))),
        ("localhost:80:80", PortError::Address(text("localhost"))),
        ("::1:80:80", PortError::Address(text("::1"))),
        ("[::1:80:80", PortError::Address(text("[::1"))),
        ("[127.0.0.1]:80:80", PortError::Address(text("[127.0.0.1]"))),
        ("1-3:1-2", PortError::Ranges(text("1-3"), text("1-2"))),
        ("1-65535:1-65535", PortError::TooMany(text("1-65535:1-65535"))),
    ] {
        assert_eq!(Publish::parse(word), Err(error), "{word}");
    }
    assert!(Publish::exposed("8080:80").is_err());
}

#[test]
fn a_published_port_is_printed_as_docker_does() {
    let published = Published { host: "[::1]:8080".parse().unwrap(), container: 80, protocol: Protocol::Tcp };
    assert_eq!(published.to_string(), "[::1]:8080->80/tcp");
}

proptest! {
    #[test]
    fn any_word_is_survived(text in "\\PC*") {
        let _ = Publish::parse(&text);
    }

    #[test]
    fn what_looks_like_a_word_is_survived(text in "[0-9:./\\-\\[\\]a-f]{0,24}") {
        for port in Publish::parse(&text).unwrap_or_default() {
            prop_assert!(port.container > 0 && port.host.0 <= port.host.1);
        }
    }
}
