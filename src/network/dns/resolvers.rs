// SPDX-License-Identifier: Apache-2.0
//! The host's name servers, from `/etc/resolv.conf` (resolv.conf(5)).

use std::fs;
use std::net::IpAddr;

/// Name servers that the C library looks at (`MAXNS`).
const MAX_SERVERS: usize = 3;
/// Domains that it searches.
const MAX_SEARCH: usize = 6;

pub(super) const PATH: &str = "/etc/resolv.conf";
/// What systemd's resolver asks, which stands on the loopback itself.
const SYSTEMD_PATH: &str = "/run/systemd/resolve/resolv.conf";

/// How the host finds names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// Its name servers. Those on loopback addresses are fine to be asked by the host itself, and by nobody else.
    pub servers: Vec<IpAddr>,
    /// Domains to complete names with.
    pub search: Vec<String>,
}

impl Resolvers {
    /// As the file says now; none where there is no file.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string(PATH).unwrap_or_default())
    }

    /// The name servers that can be asked over IPv4 by someone who does not reach this host's loopback.
    pub fn beyond_loopback(&self) -> Vec<IpAddr> {
        let usable = |servers: &[IpAddr]| -> Vec<IpAddr> {
            servers.iter().filter(|server| server.is_ipv4() && !server.is_loopback()).copied().collect()
        };
        match usable(&self.servers) {
            servers if !servers.is_empty() => servers,
            _ => usable(&Self::parse(&fs::read_to_string(SYSTEMD_PATH).unwrap_or_default()).servers),
        }
    }

    /// Reads the file's text.
    pub fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // A link-local address is of use on one interface only (`%eth0`), which a guest has not.
                    let server: Option<IpAddr> = words.next().and_then(|word| word.parse().ok());
                    resolvers.servers.extend(server.filter(|_| resolvers.servers.len() < MAX_SERVERS));
                }
                Some("search" | "domain") => {
                    resolvers.search = words.take(MAX_SEARCH).map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        resolvers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_the_c_library_does() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\n nameserver\t192.0.2.1 # rest\nnameserver fe80::1%eth0\n\
                    nameserver 2001:db8::1\nnameserver 192.0.2.4\nsearch a.example\ndomain b.example\nsearch c.example d\n\
                    options edns0\n";
        let resolvers = Resolvers::parse(text);
        let servers: Vec<String> = resolvers.servers.iter().map(ToString::to_string).collect();
        assert_eq!(servers, ["127.0.0.53", "192.0.2.1", "2001:db8::1"]);
        assert_eq!(resolvers.search, ["c.example", "d"]);
        assert_eq!(resolvers.beyond_loopback(), [IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(Resolvers::parse("nonsense\n\0nameserver x"), Resolvers::default());
    }
}
