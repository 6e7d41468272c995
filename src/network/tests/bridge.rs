// SPDX-License-Identifier: Apache-2.0
//! Who reaches whom.

use super::super::{manage, nft};
use super::*;

#[test]
fn a_container_reaches_the_world_and_the_world_does_not_reach_it() {
    on_a_host("bridge::a_container_reaches_the_world_and_the_world_does_not_reach_it", |store| {
        let world = outside();
        let server = world.run(|| whoami("192.0.2.2:80"));
        let guest = Guest::start(store, &request("bridge", "web", &[]));
        assert_eq!(guest.run(move || seen_by(server)), "192.0.2.1", "with the host's address");
        let inside = guest.run(|| whoami("0.0.0.0:80"));
        let inside = SocketAddr::new(guest.address(), inside.port());
        assert_eq!(seen_by(inside), guest.attachment.gateways[0].to_string());
        assert_eq!(world.run(move || ask_whoami(inside)), None);
        let gateway = guest.attachment.gateways[0];
        assert!(guest.run(move || TcpStream::connect((gateway, 53))).is_ok(), "the name server, over TCP");
        assert!(world.run(move || TcpStream::connect_timeout(&(gateway, 53).into(), MOMENT)).is_err());
        drop(guest);
        no_outside();
    });
}

#[test]
fn addresses_follow_from_the_network_and_stay() {
    on_a_host("bridge::addresses_follow_from_the_network_and_stay", |store| {
        let subnet = "10.77.0.0/24".parse().unwrap();
        manage::create(store, &New { subnets: vec![subnet], ..new("blue") }).unwrap();
        let first = attach_in(store, &request("blue", "a", &[])).unwrap();
        assert_eq!(first.addresses[0].to_string(), "10.77.0.2/24");
        assert_eq!(first.mac.to_string(), "02:42:0a:4d:00:02");
        assert_eq!(first.gateways, ["10.77.0.1".parse::<IpAddr>().unwrap()]);
        let second = attach_in(store, &request("blue", "b", &[])).unwrap();
        assert_eq!(second.addresses[0].to_string(), "10.77.0.3/24");
        let fixed = Request { address: Some("10.77.0.99".parse().unwrap()), ..request("blue", "c", &[]) };
        assert_eq!(attach_in(store, &fixed).unwrap().addresses[0].to_string(), "10.77.0.99/24");
        for (address, why) in [("10.77.0.3", "container b has"), ("10.77.1.3", "is not in"), ("10.77.0.1", "reserved")]
        {
            let wrong = Request { address: Some(address.parse().unwrap()), ..request("blue", "d", &[]) };
            let failure = attach_in(store, &wrong).unwrap_err();
            assert!(failure.why.contains(why), "{failure}");
        }
        let twice = attach_in(store, &request("blue", "b", &[])).unwrap_err();
        assert!(twice.why.contains("attached already"), "{twice}");
        drop(first);
        let other = attach_in(store, &request("blue", "e", &[])).unwrap();
        assert_eq!(other.addresses[0].to_string(), "10.77.0.4/24", "the first one's is kept for it");
        let first = attach_in(store, &request("blue", "a", &[])).unwrap();
        assert_eq!(first.addresses[0].to_string(), "10.77.0.2/24");
        let failure = manage::remove(store, "blue").unwrap_err();
        assert!(failure.why.contains("a b e"), "{failure}");
        drop((first, second, other));
        manage::remove(store, "blue").unwrap();
    });
}

#[test]
fn what_a_spare_has_becomes_a_containers_or_nobodys() {
    on_a_host("bridge::what_a_spare_has_becomes_a_containers_or_nobodys", |store| {
        manage::create(store, &new("blue")).unwrap();
        let leased = || {
            let networks = manage::list(store).unwrap();
            let blue = networks.into_iter().find(|network| network.name == "blue").unwrap();
            blue.leases.into_keys().collect::<Vec<_>>()
        };
        let spare = || attach_in(store, &Request { names: Vec::new(), spare: true, ..request("blue", "s", &[]) });
        let waiting = spare().unwrap();
        let (mac, backend) = (waiting.mac, waiting.backend.clone());
        assert!(!output("ip", &["-o", "link", "show", "type", "tun"]).contains("master"));
        let container = waiting.hand_over(&request("blue", "a", &[])).unwrap();
        assert_eq!((container.mac, &container.backend), (mac, &backend));
        assert!(output("ip", &["-o", "link", "show", "type", "tun"]).contains("master"));
        assert_eq!(leased(), ["a-id"]);
        let next = spare().unwrap();
        assert_ne!((next.mac, &next.backend), (mac, &backend));
        container.forget().unwrap();
        assert_eq!(leased(), ["s-id"], "its interface goes with the next command");
        assert_eq!(output("ip", &["-o", "link", "show", "type", "tun"]).lines().count(), 1);
        drop(next);
        assert!(leased().is_empty());
        // It hinders nobody who removes its network, and is of no use then.
        let late = spare().unwrap();
        manage::remove(store, "blue").unwrap();
        assert_eq!(output("ip", &["-o", "link", "show", "type", "tun"]), "");
        manage::create(store, &new("blue")).unwrap();
        assert!(late.hand_over(&request("blue", "b", &[])).is_err());
        assert!(leased().is_empty());
    });
}

#[test]
fn a_spare_that_others_have_taken_from_is_mended_or_not_used() {
    on_a_host("bridge::a_spare_that_others_have_taken_from_is_mended_or_not_used", |store| {
        let spare =
            || attach_in(store, &Request { names: Vec::new(), spare: true, ..request("bridge", "s", &[]) }).unwrap();
        let hand_over = |waiting: Attachment| waiting.hand_over(&request("bridge", "a", &[]));
        let rules = || output("nft", &["list", "ruleset"]);
        let bridge = || manage::list(store).unwrap().remove(0).bridge;
        let others = attach_in(store, &request("bridge", "z", &[])).unwrap();
        // Nothing is: no rule needs to change.
        let waiting = spare();
        let before = nft::generation().unwrap();
        let container = hand_over(waiting).unwrap();
        assert_eq!(nft::generation().unwrap(), before);
        drop((container, others));
        // Rules and bridge.
        let waiting = spare();
        let before = rules();
        ip(&format!("link del {}", bridge()));
        output("nft", &["flush", "ruleset"]);
        let container = hand_over(waiting).unwrap();
        assert_eq!(rules(), before);
        let ports = output("ip", &["-o", "link", "show", "master", &bridge()]);
        assert_eq!(ports.lines().count(), 1);
        drop(container);
        // Its TAP, which whoever comes by makes anew.
        let waiting = spare();
        let NetBackend::Tap(tap) = &waiting.backend else { panic!("no TAP") };
        ip(&format!("link del {tap}"));
        super::super::reconcile_in(store).unwrap();
        assert!(hand_over(waiting).is_err());
        // Its address.
        let waiting = spare();
        let address = Some(v4(waiting.addresses[0].addr()));
        let other = attach_in(store, &Request { address, ..request("bridge", "b", &[]) }).unwrap();
        assert!(hand_over(waiting).is_err());
        drop(other);
        // Its subnet, to which the host has another way.
        let waiting = spare();
        let address = waiting.addresses[0];
        ip(&format!("route add {}/32 dev lo", address.addr()));
        assert!(hand_over(waiting).is_err());
        let container = attach_in(store, &request("bridge", "a", &[])).unwrap();
        assert!(!address.contains(&container.addresses[0].addr()));
        let addresses = output("ip", &["-o", "-4", "addr", "show", "dev", &bridge()]);
        assert_eq!(addresses.lines().count(), 1, "{addresses}");
        drop(container);
        ip(&format!("route del {}/32 dev lo", address.addr()));
        // The default network itself.
        let waiting = spare();
        manage::create(store, &New { subnets: vec!["10.98.0.0/24".parse().unwrap()], ..new("bridge") }).unwrap();
        assert!(output("ip", &["-o", "link", "show", "type", "bridge"]).is_empty());
        assert!(hand_over(waiting).is_err());
    });
}

#[test]
fn networks_are_apart_and_an_internal_one_has_no_way_out() {
    on_a_host("bridge::networks_are_apart_and_an_internal_one_has_no_way_out", |store| {
        let world = outside();
        let server = world.run(|| whoami("192.0.2.2:80"));
        manage::create(store, &New { internal: true, ..new("inner") }).unwrap();
        let out = Guest::start(store, &request("bridge", "out", &[]));
        let one = Guest::start(store, &request("inner", "one", &[]));
        let two = Guest::start(store, &request("inner", "two", &[]));
        let on = |guest: &Guest| {
            let port = guest.run(|| whoami("0.0.0.0:80")).port();
            SocketAddr::new(guest.address(), port)
        };
        let (on_out, on_one) = (on(&out), on(&one));
        assert_eq!(two.run(move || seen_by(on_one)), two.address().to_string());
        assert!(one.attachment.gateways.is_empty());
        // Even where they make themselves routes.
        let gateway = one.attachment.nameservers[0];
        one.run(move || ip(&format!("route add default via {gateway}")));
        assert_eq!(one.run(move || ask_whoami(server)), None);
        assert_eq!(one.run(move || ask_whoami(on_out)), None);
        assert_eq!(out.run(move || ask_whoami(on_one)), None);
        let dns = SocketAddr::new(gateway, 53);
        assert!(out.run(move || TcpStream::connect_timeout(&dns, MOMENT)).is_err(), "another network's name server");
        out.run(move || seen_by(server));
        drop((out, one, two));
        no_outside();
    });
}

#[test]
fn a_guest_cannot_pass_for_another() {
    on_a_host("bridge::a_guest_cannot_pass_for_another", |store| {
        let (good, bad) =
            (Guest::start(store, &request("bridge", "good", &[])), Guest::start(store, &request("bridge", "bad", &[])));
        let server = SocketAddr::new(good.address(), good.run(|| whoami("0.0.0.0:80")).port());
        bad.run(move || seen_by(server));
        let (own, mac) = (bad.attachment.addresses[0], bad.attachment.mac);
        bad.run(move || {
            ip("neigh flush dev eth0");
            ip("link set eth0 address 02:42:00:00:00:77");
        });
        assert_eq!(bad.run(move || ask_whoami(server)), None, "with another card's address");
        bad.run(move || ip(&format!("link set eth0 address {mac}")));
        bad.run(move || seen_by(server));
        let prefix = own.prefix_len();
        let stolen = std::net::Ipv4Addr::from(u32::from(v4(own.addr())) + 7);
        bad.run(move || {
            ip("addr flush dev eth0");
            ip(&format!("addr add {stolen}/{prefix} dev eth0"));
        });
        assert_eq!(bad.run(move || ask_whoami(server)), None, "with another container's address");
        drop((good, bad));
    });
}

#[test]
fn ipv6_works_where_it_is_wanted() {
    on_a_host("bridge::ipv6_works_where_it_is_wanted", |store| {
        let world = outside();
        let server = world.run(|| whoami("[2001:db8::2]:80"));
        let network = manage::create(store, &New { ipv6: true, ..new("six") }).unwrap();
        assert!(network.ipv6.as_ref().unwrap().subnet.to_string().starts_with("fd"));
        let (one, two) =
            (Guest::start(store, &request("six", "one", &[])), Guest::start(store, &request("six", "two", &[])));
        assert_eq!(one.run(move || seen_by(server)), "2001:db8::1");
        let on_one = SocketAddr::new(one.attachment.addresses[1].addr(), one.run(|| whoami("[::]:81")).port());
        assert_eq!(two.run(move || seen_by(on_one)), two.attachment.addresses[1].addr().to_string());
        assert_eq!(world.run(move || ask_whoami(on_one)), None);
        drop((one, two));
        no_outside();
    });
}

#[test]
fn subnets_keep_clear_of_what_the_host_reaches() {
    on_a_host("bridge::subnets_keep_clear_of_what_the_host_reaches", |store| {
        let first = attach_in(store, &request("bridge", "a", &[])).unwrap();
        let subnet = first.addresses[0].trunc();
        drop(first);
        ip("link add up0 type veth peer name up1");
        ip(&format!("route add {subnet} dev lo"));
        let second = attach_in(store, &request("bridge", "a", &[])).unwrap();
        assert_ne!(second.addresses[0].trunc(), subnet, "a subnet that was chosen is chosen anew");
        drop(second);
        let taken = manage::create(store, &New { subnets: vec![subnet], ..new("mine") }).unwrap_err();
        assert!(taken.why.contains(&subnet.to_string()), "{taken}");
        ip(&format!("route del {subnet} dev lo"));
        let own = "10.99.0.0/16".parse().unwrap();
        manage::create(store, &New { subnets: vec![own], ..new("mine") }).unwrap();
        let overlap = manage::create(store, &New { subnets: vec!["10.99.1.0/24".parse().unwrap()], ..new("b") });
        assert!(overlap.unwrap_err().why.contains("network mine"));
        ip("route add 10.99.3.0/24 dev lo");
        let failure = attach_in(store, &request("mine", "a", &[])).unwrap_err();
        assert!(failure.why.contains("10.99.3.0/24"), "{failure}");
        ip("route del 10.99.3.0/24 dev lo");
        // The default network takes other addresses where it is told to.
        let network = manage::create(store, &New { subnets: vec!["10.98.0.0/24".parse().unwrap()], ..new("bridge") });
        assert_eq!(network.unwrap().ipv4.gateway.to_string(), "10.98.0.1");
        assert_eq!(attach_in(store, &request("bridge", "a", &[])).unwrap().addresses[0].to_string(), "10.98.0.2/24");
        ip("link del up0");
    });
}
