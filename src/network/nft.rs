// SPDX-License-Identifier: Apache-2.0
//! Packet filter and address translation: two nftables tables of our own, replaced as a whole in one transaction.
//!
//! `inet`: containers reach the world with the host's address; nothing comes in that was not asked for; networks do not
//! reach each other. `bridge`: a guest sends only with the addresses that it was given, since a hostile one would take
//! those of its neighbours or of the gateway.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use netlink_packet_core::NLM_F_REQUEST;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::model::Network;
use crate::failure::Failure;

/// Where Debian has it, for users whose `PATH` has no directories of administrators.
const PROGRAMS: [&str; 3] = ["nft", "/usr/sbin/nft", "/sbin/nft"];

/// nfnetlink's types of messages: nftables (10), and its NFT_MSG_NEWGEN and NFT_MSG_GETGEN.
const GENERATION: u16 = 10 << 8 | 15;
const GET_GENERATION: u16 = 10 << 8 | 16;

/// The rules for the networks that are up, for `nft -f`. With none, both tables go.
pub fn rules(table: &str, networks: &[Network]) -> String {
    let up: Vec<&Network> = networks.iter().filter(|network| network.is_up()).collect();
    let mut text = String::new();
    for family in ["inet", "bridge"] {
        // Deleting what is not there is an error, and adding what is there is none.
        let _ = writeln!(text, "add table {family} {table}\ndelete table {family} {table}");
    }
    if !up.is_empty() {
        inet(&mut text, table, &up);
        bridge(&mut text, table, &up);
    }
    text
}

fn inet(text: &mut String, table: &str, up: &[&Network]) {
    let bridges = list(up.iter().map(|network| format!("\"{}\"", network.bridge)));
    let _ = writeln!(text, "table inet {table} {{\n chain forward {{");
    let _ = writeln!(text, "  type filter hook forward priority filter; policy accept;");
    for Network { bridge, internal, .. } in up {
        // Frames between ports of one bridge pass here where br_netfilter is loaded.
        let _ = writeln!(text, "  iifname \"{bridge}\" oifname \"{bridge}\" accept");
        if *internal {
            let _ = writeln!(text, "  iifname \"{bridge}\" drop\n  oifname \"{bridge}\" drop");
        }
    }
    let _ = writeln!(text, "  iifname {bridges} oifname {bridges} drop");
    let _ = writeln!(text, "  iifname {bridges} accept");
    let _ = writeln!(text, "  oifname {bridges} ct state established,related accept");
    let _ = writeln!(text, "  oifname {bridges} drop\n }}");

    let _ = writeln!(text, " chain input {{\n  type filter hook input priority filter; policy accept;");
    for Network { bridge, .. } in up {
        for gateway in up.iter().filter(|other| other.bridge == *bridge).flat_map(|network| network.gateways()) {
            // The host's end of a network, with its name server, is there for that network and the host.
            let (family, address) = (family(gateway.addr().is_ipv4()), gateway.addr());
            let _ = writeln!(text, "  iifname != {{ \"{bridge}\", \"lo\" }} {family} daddr {address} drop");
        }
    }
    let _ = writeln!(text, " }}\n chain postrouting {{\n  type nat hook postrouting priority srcnat; policy accept;");
    for network in up.iter().filter(|network| !network.internal) {
        for subnet in network.subnets() {
            let family = family(subnet.addr().is_ipv4());
            let _ = writeln!(text, "  {family} saddr {subnet} oifname != \"{}\" masquerade", network.bridge);
        }
    }
    let _ = writeln!(text, " }}\n}}");
}

fn bridge(text: &mut String, table: &str, up: &[&Network]) {
    let mut leases: Vec<_> =
        up.iter().flat_map(|network| network.leases.values()).filter(|lease| lease.attached).collect();
    // Whoever a lease is for, the rules are the same.
    leases.sort_by_key(|lease| &lease.tap);
    let leases = || leases.iter();
    let taps = list(leases().map(|lease| format!("\"{}\"", lease.tap)));
    let cards = list(leases().map(|lease| format!("\"{}\" . {}", lease.tap, lease.mac)));
    let sources = list(leases().map(|lease| format!("\"{}\" . {}", lease.tap, lease.ipv4)));
    let sources6: Vec<_> =
        leases().filter_map(|lease| lease.ipv6.map(|address| format!("\"{}\" . {address}", lease.tap))).collect();
    let _ = writeln!(text, "table bridge {table} {{\n chain prerouting {{");
    let _ = writeln!(text, "  type filter hook prerouting priority -300; policy accept;");
    let _ = writeln!(text, "  iifname != {taps} accept");
    let _ = writeln!(text, "  iifname . ether saddr != {cards} drop");
    let _ = writeln!(text, "  ether type ip iifname . ip saddr {sources} accept");
    let _ = writeln!(text, "  ether type arp iifname . arp saddr ip {sources} accept");
    if !sources6.is_empty() {
        // Whoever advertises a router gets everybody's traffic.
        let _ = writeln!(text, "  icmpv6 type {{ nd-router-advert, nd-redirect }} drop");
        let _ = writeln!(text, "  ether type ip6 iifname . ip6 saddr {} accept", list(sources6.into_iter()));
        let _ = writeln!(text, "  ip6 saddr {{ fe80::/10, :: }} accept");
    }
    let _ = writeln!(text, "  drop\n }}\n}}");
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("{{ {} }}", items.collect::<Vec<_>>().join(", "))
}

fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "ip" } else { "ip6" }
}

/// How often the rules of this network namespace have been changed, by anybody.
///
/// # Errors
/// The kernel's.
pub fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // A header (netlink(7)) of length, type, flags, sequence number and port; and one of nfnetlink, which is all zeroes.
    let request = [&20_u32.to_ne_bytes()[..], &GET_GENERATION.to_ne_bytes(), &NLM_F_REQUEST.to_ne_bytes(), &[0; 12]];
    socket.send(&request.concat(), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    // An error is shorter; the first attribute is the number (NFTA_GEN_ID), in network order.
    let number = reply.get(24..28).filter(|_| reply.get(4..6) == Some(&GENERATION.to_ne_bytes()));
    let number = number.and_then(|bytes| bytes.try_into().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(u32::from_be_bytes(number))
}

/// Hands rules to the kernel, all or none of them. `nft` holds `lock` too: where this process is killed, it may still be
/// at work, and nobody must take the rules away before they are there.
///
/// # Errors
/// `nft` is missing, or refuses.
pub fn apply(rules: &str, lock: &File) -> Result<(), Failure> {
    let what = "cannot set the packet filter for the container's network";
    let run = |program: &str| -> io::Result<std::process::Output> {
        let mut command = Command::new(program);
        command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        // It prints nothing there.
        command.stdout(lock.try_clone()?);
        let mut child = command.spawn()?;
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()));
        let output = child.wait_with_output()?;
        // What `nft` complained about says more than the pipe that it closed.
        if output.status.success() { written.map(|()| output) } else { Ok(output) }
    };
    for program in PROGRAMS {
        let output = match run(program) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Failure::new(what, format!("{program}: {error}"), "`nft list ruleset`")),
            Ok(output) => output,
        };
        if output.status.success() {
            return Ok(());
        }
        log::debug!("refused rules:\n{rules}");
        let complaint = String::from_utf8_lossy(&output.stderr);
        let line = complaint.lines().find(|line| line.contains("Error")).unwrap_or("it gave no reason").to_owned();
        return Err(Failure::new(
            what,
            format!("nft: {line}"),
            "`coracle doctor`; the kernel needs nf_tables with NAT, and for the bridge family",
        ));
    }
    Err(Failure::new(what, "the program `nft` is not installed", "`apt-get install nftables`, or --network none"))
}

#[cfg(test)]
#[path = "nft_test.rs"]
mod tests;
