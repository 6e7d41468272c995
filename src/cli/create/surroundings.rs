// SPDX-License-Identifier: Apache-2.0
//! Flags that say what the processes of a container find around them, and what they may.

use clap::Args;
use coracle::sandbox::capabilities;
use coracle::supervisor::{HostAddress, Surroundings};
use coracle_protocol::ResourceLimit;

// What the processes of a container find around them, and what they may.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rights and limits")]
pub struct SurroundingsArgs {
    /// The root cannot be written
    #[arg(long)]
    read_only: bool,
    /// Mount a file system in memory: DIR[:OPTIONS], such as /run:size=16m,exec
    #[arg(long, value_name = "DIR", value_parser = tmpfs)]
    tmpfs: Vec<(String, String)>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE", default_value = "64m", value_parser = bytes)]
    shm_size: u64,
    /// Most processes and threads; -1 for no limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Give a capability: NET_ADMIN, or ALL
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_add: Vec<u64>,
    /// Take a capability away: CHOWN, or ALL
    #[arg(long, value_name = "CAPABILITY", value_parser = capability)]
    cap_drop: Vec<u64>,
    /// Give all capabilities, and all of the guest
    #[arg(long)]
    privileged: bool,
    /// Let a small PID 1 pass signals on and reap orphans
    #[arg(long)]
    init: bool,
    /// no-new-privileges: set-user-ID bits do nothing
    #[arg(long, value_name = "OPTION", value_parser = security)]
    security_opt: Vec<bool>,
    /// Limit a resource: NAME=SOFT[:HARD], such as nofile=1024:4096
    #[arg(long, value_name = "LIMIT", value_parser = limit)]
    ulimit: Vec<ResourceLimit>,
    /// Another group of the user's, by name or number
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Set a kernel parameter: NAME=VALUE
    #[arg(long, value_name = "PARAMETER", value_parser = parameter)]
    sysctl: Vec<(String, String)>,
    /// Name an address in /etc/hosts: NAME:ADDRESS, or NAME:host-gateway for the host
    #[arg(long, value_name = "HOST", value_parser = host)]
    add_host: Vec<(String, HostAddress)>,
}

impl SurroundingsArgs {
    /// What they say.
    pub fn read(&self) -> Surroundings {
        let all = |masks: &[u64]| masks.iter().fold(0, |all, mask| all | mask);
        // As with Docker, what is added counts more than what is dropped, unless that is one by name.
        let (added, dropped) = (all(&self.cap_add), all(&self.cap_drop));
        let base = if dropped == capabilities::ALL { 0 } else { capabilities::DEFAULT & !dropped };
        let added = if added == capabilities::ALL && dropped != capabilities::ALL { added & !dropped } else { added };
        Surroundings {
            read_only: self.read_only,
            tmpfs: self.tmpfs.clone(),
            shm_size: self.shm_size,
            pids_limit: self.pids_limit.and_then(|limit| u32::try_from(limit).ok()).filter(|limit| *limit > 0),
            capabilities: if self.privileged { capabilities::ALL } else { base | added },
            privileged: self.privileged,
            init: self.init,
            no_new_privileges: self.security_opt.last().copied().unwrap_or(false),
            limits: self.ulimit.clone(),
            groups: self.group_add.clone(),
            sysctls: self.sysctl.clone(),
            hosts: self.add_host.clone(),
        }
    }
}

fn tmpfs(text: &str) -> Result<(String, String), String> {
    let (directory, options) = text.split_once(':').unwrap_or((text, ""));
    match directory.starts_with('/') {
        true => Ok((directory.to_owned(), options.to_owned())),
        false => Err(format!("`{directory}` is no absolute path")),
    }
}

/// For clap: a size in bytes, or with b, k, m or g after it, as with Docker.
///
/// # Errors
/// It is none.
pub fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        unit => return Err(format!("unknown unit `{unit}`: there are b, k, m and g")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is no size"))?;
    let bytes = number * f64::from(1u32 << shift);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range; fractions of a byte go")]
    match (0.0..9e18).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err(format!("`{text}` is no size")),
    }
}

fn capability(text: &str) -> Result<u64, String> {
    capabilities::mask(text).ok_or_else(|| format!("there is no capability `{text}`; capabilities(7) has all"))
}

fn security(text: &str) -> Result<bool, String> {
    match text {
        "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => Ok(true),
        "no-new-privileges:false" | "no-new-privileges=false" => Ok(false),
        _ => Err(format!("`{text}` is not known here: no-new-privileges is")),
    }
}

/// Names in the order of their numbers on x86 (`asm-generic/resource.h`).
const RESOURCES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

fn limit(text: &str) -> Result<ResourceLimit, String> {
    let wrong = || format!("`{text}` is no limit: NAME=SOFT[:HARD], where NAME is one of {}", RESOURCES.join(", "));
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let number = |text: &str| if text == "-1" { Ok(u64::MAX) } else { text.parse().map_err(|_| wrong()) };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let resource = RESOURCES.iter().position(|other| *other == name).and_then(|at| u8::try_from(at).ok());
    let limit = ResourceLimit { resource: resource.ok_or_else(wrong)?, soft: number(soft)?, hard: number(hard)? };
    if limit.soft > limit.hard { Err(format!("{soft} is above the limit {hard}")) } else { Ok(limit) }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn host(text: &str) -> Result<(String, HostAddress), String> {
    // An IPv6 address has colons of its own.
    let (name, address) = text.split_once([':', '=']).ok_or_else(|| format!("`{text}` is not NAME:ADDRESS"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = match address {
        "host-gateway" => HostAddress::HostGateway,
        _ => HostAddress::Address(address.parse().map_err(|_| format!("`{address}` is no IP address"))?),
    };
    Ok((name.to_owned(), address))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        args: SurroundingsArgs,
    }

    fn read(words: &[&str]) -> Surroundings {
        Words::try_parse_from([&["x"], words].concat()).unwrap().args.read()
    }

    #[test]
    fn capabilities_add_up_as_dockers() {
        let mask = |name| capabilities::mask(name).unwrap();
        assert_eq!(read(&[]).capabilities, capabilities::DEFAULT);
        assert_eq!(read(&["--cap-drop", "ALL"]).capabilities, 0);
        assert_eq!(read(&["--cap-drop", "all", "--cap-add", "KILL"]).capabilities, mask("KILL"));
        assert_eq!(read(&["--cap-drop", "chown"]).capabilities, capabilities::DEFAULT & !mask("CHOWN"));
        assert_eq!(read(&["--cap-add", "ALL", "--cap-drop", "KILL"]).capabilities, capabilities::ALL & !mask("KILL"));
        assert_eq!(read(&["--privileged"]).capabilities, capabilities::ALL);
    }

    #[test]
    fn words_are_read_as_docker_reads_them() {
        for (text, expected) in
            [("64m", Some(64 << 20)), ("1.5k", Some(1536)), ("7", Some(7)), ("-1", None), ("m", None)]
        {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        assert_eq!(limit("nofile=10:20"), Ok(ResourceLimit { resource: 7, soft: 10, hard: 20 }));
        assert_eq!(limit("core=-1").map(|limit| limit.soft), Ok(u64::MAX));
        assert!(limit("nofile=20:10").is_err() && limit("files=1").is_err() && limit("cpu").is_err());
        assert_eq!(host("db:10.0.0.1").map(|(name, _)| name), Ok("db".to_owned()));
        assert_eq!(host("v6:[::1]").map(|(_, at)| at), Ok(HostAddress::Address("::1".parse().unwrap())));
        assert_eq!(host("up:host-gateway").map(|(_, at)| at), Ok(HostAddress::HostGateway));
        assert!(
            host("db").is_err() && tmpfs("run").is_err() && parameter("x").is_err() && security("seccomp").is_err()
        );
        let around = read(&["--tmpfs", "/run:size=1m", "--pids-limit", "-1", "--sysctl", "a.b=c=d"]);
        assert_eq!(around.tmpfs, [("/run".to_owned(), "size=1m".to_owned())]);
        assert_eq!((around.pids_limit, around.sysctls), (None, vec![("a.b".to_owned(), "c=d".to_owned())]));
    }
}
