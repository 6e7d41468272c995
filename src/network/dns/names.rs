// SPDX-License-Identifier: Apache-2.0
//! What a network's name server knows by itself: its containers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::message::{CLASS_IN, Code, Query, Record, kind};
use crate::network::model::{Lease, Network};

/// The answer to a query about this network; `None` where it is about something else.
pub fn answer(network: &Network, query: &Query) -> Option<(Code, Vec<Record>)> {
    if query.class != CLASS_IN {
        return None;
    }
    let name = query.name.as_deref()?;
    if let Some(address) = reversed(name).filter(|address| network.contains(*address)) {
        let name = network.owner(address).and_then(|lease| lease.names.first());
        return Some(match name {
            // Asked for something else than its name, an address has nothing to say.
            Some(_) if !matches!(query.kind, kind::PTR | kind::ANY) => (Code::Ok, Vec::new()),
            Some(name) => (Code::Ok, vec![Record::Name(format!("{name}.{}", network.name))]),
            None => (Code::NoName, Vec::new()),
        });
    }
    let lease = find(network, name)?;
    let v4 = matches!(query.kind, kind::A | kind::ANY).then_some(IpAddr::V4(lease.ipv4));
    let v6 = lease.ipv6.filter(|_| matches!(query.kind, kind::AAAA | kind::ANY)).map(IpAddr::V6);
    Some((Code::Ok, v4.into_iter().chain(v6).map(Record::Address).collect()))
}

/// By its name, or its name and the network's.
fn find<'a>(network: &'a Network, name: &str) -> Option<&'a Lease> {
    let suffix = name.len().checked_sub(network.name.len() + 1).and_then(|at| name.split_at_checked(at));
    let bare =
        suffix.filter(|(_, suffix)| suffix.strip_prefix('.').is_some_and(|s| s.eq_ignore_ascii_case(&network.name)));
    network.find(name).or_else(|| bare.and_then(|(bare, _)| network.find(bare)))
}

/// The address that a name under `in-addr.arpa` (RFC 1035 §3.5) or `ip6.arpa` (RFC 3596 §2.5) stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = digits.split('.').rev().map(|octet| octet.parse::<u8>().ok());
        let address = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
        return octets.next().is_none().then(|| Ipv4Addr::from(address).into());
    }
    let digits: Option<Vec<u32>> = name
        .strip_suffix(".ip6.arpa")?
        .split('.')
        .rev()
        .map(|digit| digit.chars().next().filter(|_| digit.len() == 1).and_then(|digit| digit.to_digit(16)))
        .collect();
    let digits = digits.filter(|digits| digits.len() == 32)?;
    Some(Ipv6Addr::from(digits.iter().fold(0_u128, |bits, digit| bits << 4 | u128::from(*digit))).into())
}

#[cfg(test)]
#[path = "names_test.rs"]
mod tests;
