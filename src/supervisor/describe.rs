// SPDX-License-Identifier: Apache-2.0
//! A container as its agent is told of it.

use std::fmt::Write;
use std::net::IpAddr;

use coracle_protocol::{
    Address, Adopt, Container, File, Interface, Mount, Process, Reconnected, Source, Streams, Sysctl, Text, Upper,
    WindowSize,
};
use ipnet::IpNet;

use super::mounts;
use super::record::{Config, HostAddress, Surroundings};
use crate::network::Attachment;
use crate::sandbox::ProcessSpec;
use crate::vmm::virtiofsd::FILE;

/// The image's disk.
const ROOT: &str = "/dev/vda";
/// That for what is written.
const WRITTEN: &str = "/dev/vdb";
/// The first network card.
const CARD: &str = "eth0";
/// `MS_NOSUID | MS_NODEV` (`mount(2)`), which Docker gives a tmpfs.
const GUARDED: u32 = 2 | 4;
/// `MS_NOEXEC`.
const NO_EXEC: u32 = 8;
/// `MS_RDONLY`.
const READ_ONLY: u32 = 1;

/// What Docker sets for each container (moby `daemon/oci_linux.go`): any user may serve low ports, and ping.
const PARAMETERS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// Something of the host's that the guest can mount.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where in the container.
    pub target: String,
    /// The virtiofs.
    pub tag: String,
    /// Only one file of it is meant.
    pub is_file: bool,
    /// The host refuses to have it written.
    pub read_only: bool,
    /// If it is empty it gets what the image has there.
    pub fill: bool,
}

/// What the container is made of. `connected` is its connection, where it has one, `shared` what it sees of the host.
pub fn container(config: &Config, connected: Option<&Attachment>, shared: &[Shared]) -> Container {
    let around = &config.surroundings;
    let memory = around.tmpfs.iter().map(|(target, options)| (mounts::depth(target), tmpfs(target, options)));
    let mut mounts: Vec<_> =
        memory.chain(shared.iter().map(|shared| (mounts::depth(&shared.target), share(shared)))).collect();
    // What is mounted below another mount comes after it.
    mounts.sort_by_key(|(depth, _)| *depth);
    let own = around.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    Container {
        root: Text::new(ROOT),
        upper: match config.storage_size {
            Some(_) => Upper::Disk(Text::new(WRITTEN)),
            None => Upper::Memory(None),
        },
        read_only: around.read_only,
        hostname: Text::new(&config.process.hostname),
        shm_size: around.shm_size,
        mounts: mounts.into_iter().map(|(_, mount)| mount).collect(),
        files: files(config, connected),
        network: connected.map(interface).into_iter().collect(),
        pids_limit: around.pids_limit,
        privileged: around.privileged,
        // What the user says comes last, and so counts.
        sysctls: PARAMETERS.into_iter().chain(own).map(|(name, value)| sysctl(name, value)).collect(),
        init: around.init,
    }
}

/// A container of a program alone, with neither a network nor anything of the host's, whose root is in memory.
pub fn bare_container(spec: &ProcessSpec, shm_size: u64) -> Container {
    Container {
        root: Text::new(ROOT),
        hostname: Text::new(&spec.hostname),
        shm_size,
        files: etc(&spec.hostname, &[], &[]),
        ..Container::default()
    }
}

/// What is otherwise for a container that goes on from a snapshot, in which it had the addresses `former`.
pub fn adoption(config: &Config, connected: Option<&Attachment>, former: &[IpNet]) -> Adopt {
    let reconnected = |connected: &Attachment| Reconnected {
        interface: interface(connected),
        mac: connected.mac.bytes(),
        former: former.iter().map(address).collect(),
    };
    Adopt {
        streams: Streams::default(),
        hostname: Text::new(&config.process.hostname),
        files: files(config, connected),
        network: connected.map(reconnected).into_iter().collect(),
    }
}

/// A process in it: its first, or another.
pub fn process(spec: &ProcessSpec, around: &Surroundings, terminal: Option<WindowSize>) -> Process {
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
    Process {
        arguments: bytes(&spec.arguments),
        environment: bytes(&spec.environment),
        directory: spec.directory.clone().into_bytes(),
        user: spec.user.clone().into_bytes(),
        groups: bytes(&around.groups),
        capabilities: around.capabilities,
        no_new_privileges: around.no_new_privileges,
        limits: around.limits.clone(),
        terminal,
    }
}

/// Options that are flags of `mount(2)` become these; the rest is for the file system.
fn tmpfs(target: &str, options: &str) -> Mount {
    let (mut flags, mut rest) = (GUARDED | NO_EXEC, Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => flags |= READ_ONLY,
            "rw" => flags &= !READ_ONLY,
            "exec" => flags &= !NO_EXEC,
            "noexec" => flags |= NO_EXEC,
            "suid" => flags &= !2,
            "nosuid" => flags |= 2,
            "dev" => flags &= !4,
            "nodev" => flags |= 4,
            other => rest.push(other),
        }
    }
    Mount { target: target.as_bytes().to_vec(), source: Source::Memory(rest.join(",").into_bytes()), flags }
}

fn share(shared: &Shared) -> Mount {
    let tag = Text::new(&shared.tag);
    let source = match (shared.is_file, shared.fill) {
        (true, _) => Source::SharedFile(tag, FILE.as_bytes().to_vec()),
        (false, true) => Source::Filled(tag),
        (false, false) => Source::Shared(tag),
    };
    let flags = if shared.read_only { READ_ONLY } else { 0 };
    Mount { target: shared.target.as_bytes().to_vec(), source, flags }
}

fn sysctl(name: &str, value: &str) -> Sysctl {
    Sysctl { name: name.as_bytes().to_vec(), value: value.as_bytes().to_vec() }
}

fn address(net: &IpNet) -> Address {
    Address { address: net.addr(), prefix: net.prefix_len() }
}

fn interface(connected: &Attachment) -> Interface {
    Interface {
        name: Text::new(CARD),
        mtu: Some(connected.mtu.into()),
        addresses: connected.addresses.iter().map(address).collect(),
        gateways: connected.gateways.clone(),
    }
}

/// The files of `/etc` that Docker makes.
fn files(config: &Config, connected: Option<&Attachment>) -> Vec<File> {
    let addresses: Vec<IpAddr> =
        connected.iter().flat_map(|one| one.addresses.iter().map(ipnet::IpNet::addr)).collect();
    let named = config.surroundings.hosts.iter().flat_map(|(name, address)| {
        let found = match address {
            HostAddress::Address(address) => vec![*address],
            HostAddress::HostGateway => connected.map(|one| one.gateways.clone()).unwrap_or_default(),
        };
        found.into_iter().map(|address| (name.clone(), address))
    });
    let named: Vec<(String, IpAddr)> = named.collect();
    let mut files = etc(&config.process.hostname, &addresses, &named);
    if let (Some(network), Some(connected)) = (&config.network, connected) {
        let servers = if network.dns.is_empty() { &connected.nameservers } else { &network.dns };
        let search = if network.search.is_empty() { &connected.search } else { &network.search };
        files.push(file("/etc/resolv.conf", resolver(servers, search, &network.options)));
    }
    files
}

fn file(path: &str, content: String) -> File {
    File { path: path.into(), mode: 0o644, content: content.into_bytes() }
}

fn etc(hostname: &str, addresses: &[IpAddr], named: &[(String, IpAddr)]) -> Vec<File> {
    let hosts = hosts(hostname, addresses, named);
    vec![file("/etc/hostname", format!("{hostname}\n")), file("/etc/hosts", hosts)]
}

fn hosts(hostname: &str, own: &[IpAddr], more: &[(String, IpAddr)]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                    ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    // Writing to a string does not fail.
    more.iter().for_each(|(name, address)| _ = writeln!(text, "{address}\t{name}"));
    own.iter().for_each(|address| _ = writeln!(text, "{address}\t{hostname}"));
    text
}

fn resolver(servers: &[IpAddr], search: &[String], options: &[String]) -> String {
    let mut text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (keyword, words) in [("search", search), ("options", options)] {
        if !words.is_empty() {
            text += &format!("{keyword} {}\n", words.join(" "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_tmpfs_are_told_apart() {
        let mount = tmpfs("/run", "size=1m,exec,mode=700,ro");
        assert_eq!((mount.flags, mount.source), (GUARDED | READ_ONLY, Source::Memory(b"size=1m,mode=700".to_vec())));
        assert_eq!(tmpfs("/run", "").flags, GUARDED | NO_EXEC);
    }

    #[test]
    fn etc_has_what_docker_writes() {
        let more = [("db".to_owned(), "10.0.0.9".parse().unwrap())];
        let text = hosts("box", &["172.17.0.2".parse().unwrap()], &more);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n") && text.ends_with("10.0.0.9\tdb\n172.17.0.2\tbox\n"));
        let text =
            resolver(&["10.0.0.1".parse().unwrap()], &["a.example".into(), "b.example".into()], &["ndots:2".into()]);
        assert_eq!(text, "nameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:2\n");
    }
}
