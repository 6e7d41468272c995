// SPDX-License-Identifier: Apache-2.0

use std::collections::BTreeMap;

use super::super::model::{Ipv4Pool, Lease};
use super::*;

fn network(name: &str, subnet: &str, internal: bool) -> Network {
    let subnet: ipnet::Ipv4Net = subnet.parse().unwrap();
    let gateway = super::super::ipam::first_host(subnet);
    let ipv4 = std::net::Ipv4Addr::from(u32::from(gateway) + 1);
    let lease = Lease {
        names: vec![name.to_owned()],
        mac: super::super::ipam::mac_for(ipv4).unwrap(),
        ipv4,
        ipv6: None,
        tap: format!("tap-{name}"),
        pair: false,
        spare: false,
        attached: true,
        since: 0,
        ports: Vec::new(),
    };
    Network {
        id: name.to_owned(),
        name: name.to_owned(),
        created: String::new(),
        bridge: format!("br-{name}"),
        internal,
        ipv4: Ipv4Pool { subnet, gateway, range: None, automatic: false },
        ipv6: None,
        mtu: 1500,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        leases: BTreeMap::from([("id".to_owned(), lease)]),
    }
}

#[test]
fn without_networks_both_tables_go() {
    let mut down = network("a", "10.0.0.0/24", false);
    down.leases.values_mut().for_each(|lease| lease.attached = false);
    let wanted = "add table inet t\ndelete table inet t\nadd table bridge t\ndelete table bridge t\n";
    assert_eq!(rules("t", &[down]), wanted);
}

#[test]
fn an_internal_network_has_no_translation_and_no_way() {
    let text = rules("t", &[network("a", "10.0.0.0/24", false), network("b", "10.0.1.0/24", true)]);
    assert!(text.contains("ip saddr 10.0.0.0/24 oifname != \"br-a\" masquerade"), "{text}");
    assert!(!text.contains("ip saddr 10.0.1.0/24"), "{text}");
    assert!(text.contains("iifname \"br-b\" drop"), "{text}");
    assert!(
        text.contains("iifname . ether saddr != { \"tap-a\" . 02:42:0a:00:00:02, \"tap-b\" . 02:42:0a:00:01:02 } drop")
    );
}
