// SPDX-License-Identifier: Apache-2.0

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::super::model::Lease;
use super::*;

fn network(subnet: &str) -> Network {
    let subnet: Ipv4Net = subnet.parse().unwrap();
    Network {
        id: "0".repeat(64),
        name: "n".to_owned(),
        created: String::new(),
        bridge: "b".to_owned(),
        internal: false,
        ipv4: Ipv4Pool { subnet, gateway: first_host(subnet), range: None, automatic: false },
        ipv6: Some(Ipv6Pool { subnet: "fd00::/64".parse().unwrap(), gateway: "fd00::1".parse().unwrap() }),
        mtu: 1500,
        labels: BTreeMap::new(),
        options: BTreeMap::new(),
        leases: BTreeMap::new(),
    }
}

fn give(network: &mut Network, container: &str, since: u64) -> Result<Ipv4Addr, IpamError> {
    let ipv4 = assign(network, container, None)?;
    let mac = mac_for(ipv4).unwrap();
    let (names, tap) = (vec![container.to_owned()], format!("t{container}"));
    let lease = Lease {
        names,
        mac,
        ipv4,
        ipv6: None,
        tap,
        pair: false,
        spare: false,
        attached: true,
        since,
        ports: Vec::new(),
    };
    network.leases.insert(container.to_owned(), lease);
    Ok(ipv4)
}

#[test]
fn a_small_network_fills_up_and_takes_back_what_was_kept_longest() {
    let mut network = network("10.0.0.0/29");
    let given: Vec<_> = (0..5).map(|n| give(&mut network, &n.to_string(), n).unwrap().octets()[3]).collect();
    assert_eq!(given, [2, 3, 4, 5, 6]);
    assert_eq!(give(&mut network, "x", 9), Err(IpamError::Full(network.ipv4.subnet)));
    for id in ["1", "3"] {
        network.leases.get_mut(id).unwrap().attached = false;
    }
    assert_eq!(give(&mut network, "3", 9).unwrap().octets()[3], 5, "its own");
    assert_eq!(give(&mut network, "x", 9).unwrap().octets()[3], 3, "that of 1");
    assert!(!network.leases.contains_key("1"));
    assert_eq!(give(&mut network, "1", 9), Err(IpamError::Full(network.ipv4.subnet)));
    network.leases.get_mut("0").unwrap().spare = true;
    assert_eq!(give(&mut network, "1", 9).unwrap().octets()[3], 2, "nobody's yet");
    assert!(assign(&mut network, "y", Some(Ipv4Addr::new(10, 0, 0, 2))).is_err());
    network.leases.get_mut("1").unwrap().spare = true;
    assert_eq!(assign(&mut network, "y", Some(Ipv4Addr::new(10, 0, 0, 2))), Ok(Ipv4Addr::new(10, 0, 0, 2)));
}

#[test]
fn what_is_kept_is_bounded() {
    let mut network = network("10.0.0.0/8");
    let first = give(&mut network, "0", 0).unwrap();
    let lease = Lease { attached: false, ..network.leases["0"].clone() };
    for n in 0..u32::try_from(KEPT).unwrap() + 9 {
        let ipv4 = Ipv4Addr::from(u32::from(first) + n);
        network.leases.insert(n.to_string(), Lease { ipv4, since: n.into(), ..lease.clone() });
    }
    give(&mut network, "new", 9999).unwrap();
    assert_eq!(network.leases.len(), KEPT + 1);
    assert!(!network.leases.contains_key("8") && network.leases.contains_key("9"), "the oldest went");
}

#[test]
fn a_range_confines_who_does_not_ask() {
    let mut network = network("10.0.0.0/24");
    network.ipv4.range = Some("10.0.0.128/30".parse().unwrap());
    let given: Vec<_> = (0..4).map(|n| give(&mut network, &n.to_string(), n).unwrap().octets()[3]).collect();
    assert_eq!(given, [128, 129, 130, 131]);
    assert!(give(&mut network, "x", 9).is_err());
    assert_eq!(assign(&mut network, "x", Some(Ipv4Addr::new(10, 0, 0, 7))), Ok(Ipv4Addr::new(10, 0, 0, 7)));
}

#[test]
fn addresses_of_both_versions_go_together() {
    let network = network("10.1.0.0/16");
    let pool = network.ipv6.as_ref().unwrap();
    assert_eq!(ipv6_for(pool, network.ipv4.subnet, Ipv4Addr::new(10, 1, 2, 3)).to_string(), "fd00::203");
    assert_eq!(mac_for(Ipv4Addr::new(172, 17, 0, 2)).unwrap().to_string(), "02:42:ac:11:00:02");
    assert_eq!(unique_local([1, 2, 3, 4, 5, 6, 7]).to_string(), "fd01:203:405:607::/64");
}

#[test]
fn subnets_are_chosen_until_there_are_none() {
    let avoid = ["10.209.0.9".parse().unwrap()];
    let first = free_subnet(&["10.209.16.0/28".parse().unwrap()], &avoid).unwrap();
    assert_eq!(first.to_string(), "10.209.32.0/20");
    assert_eq!(free_subnet(&["10.0.0.0/8".parse().unwrap()], &[]).unwrap().to_string(), "172.24.0.0/20");
    let all = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].map(|text| text.parse().unwrap());
    assert_eq!(free_subnet(&all, &[]), Err(IpamError::NoSubnet));
}

proptest! {
    #[test]
    fn no_two_that_are_attached_share_an_address(
        prefix in 24_u8..=30,
        steps in proptest::collection::vec((0_u8..40, any::<bool>(), proptest::option::of(0_u8..=255)), 1..200),
    ) {
        let mut network = network(&format!("10.0.0.0/{prefix}"));
        for (now, (container, leaves, wanted)) in (0..).zip(steps) {
            let id = container.to_string();
            if leaves {
                if let Some(lease) = network.leases.get_mut(&id) {
                    lease.attached = false;
                    lease.since = now;
                }
                continue;
            }
            if network.leases.get(&id).is_some_and(|lease| lease.attached) {
                continue;
            }
            let before = network.clone();
            let wanted = wanted.map(|last| Ipv4Addr::new(10, 0, 0, last));
            if let Ok(ipv4) = assign(&mut network, &id, wanted) {
                prop_assert!(wanted.is_none_or(|wanted| wanted == ipv4));
                prop_assert!(network.ipv4.subnet.hosts().any(|host| host == ipv4) && ipv4 != network.ipv4.gateway);
                let mac = mac_for(ipv4).unwrap();
                let lease =
                    Lease { names: vec![], mac, ipv4, ipv6: None, tap: id.clone(), pair: false, spare: false, attached: true, since: now, ports: vec![] };
                network.leases.insert(id, lease);
            } else {
                prop_assert_eq!(network.leases.values().filter(|lease| lease.attached).count(),
                    before.leases.values().filter(|lease| lease.attached).count());
            }
            let used: Vec<_> = network.leases.values().map(|lease| lease.ipv4).collect();
            prop_assert_eq!(used.iter().collect::<HashSet<_>>().len(), used.len());
        }
    }
}
