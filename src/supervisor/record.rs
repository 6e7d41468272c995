// SPDX-License-Identifier: Apache-2.0
//! What is kept on the disk of a container.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use coracle_protocol::ResourceLimit;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::mounts::MountUse;
use super::wire::Exit;
use crate::image::Digest;
use crate::network::{Publish, Published};
use crate::sandbox::{Isolation, ProcessSpec, Shape, Templates};
use crate::vmm::devices::virtio::net::MacAddress;

/// A container as it was made. Only its name can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// 64 hexadecimal digits.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// What it was made from.
    pub image: ImageUse,
    /// What runs in it.
    pub process: ProcessSpec,
    /// What is between it and the host.
    #[serde(default)]
    pub isolation: Isolation,
    /// CPUs and memory.
    pub shape: Shape,
    /// Its VM starts from the kernel, and is no clone of a template.
    #[serde(default)]
    pub cold: bool,
    /// It gives up no caches where the host is short of memory.
    #[serde(default)]
    pub keeps_caches: bool,
    /// The snapshot that its first start goes on from; later ones start the program anew.
    #[serde(default)]
    pub from: Option<Origin>,
    /// The program has a terminal.
    pub terminal: bool,
    /// The program can be given input.
    pub interactive: bool,
    /// Nothing is kept of it once it has ended.
    pub remove: bool,
    /// Signal that asks it to end.
    pub stop_signal: u8,
    /// Seconds that it then has; without a limit it is waited for.
    pub stop_timeout: Option<u64>,
    /// What others have noted about it.
    pub labels: BTreeMap<String, String>,
    /// Where its output is kept.
    pub log: LogDriver,
    /// Size in bytes of the disk for what it writes, which is kept from one start to the next; `None` where it writes into
    /// the guest's memory.
    pub storage_size: Option<u64>,
    /// How it is connected; `None` for not at all.
    pub network: Option<NetworkUse>,
    /// What of the host's is mounted in it.
    #[serde(default)]
    pub mounts: Vec<MountUse>,
    /// What its processes may and have.
    pub surroundings: Surroundings,
}

impl Config {
    /// Whether its VM may be a clone.
    pub fn templates(&self) -> Templates {
        if self.cold { Templates::Avoid } else { Templates::Use }
    }

    /// Whether the volume of this name is mounted in it.
    pub fn uses_volume(&self, name: &str) -> bool {
        self.mounts.iter().any(|mount| mount.volume() == Some(name))
    }
}

/// How a container is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkUse {
    /// Name of its network.
    pub name: String,
    /// The address that it is to have there; `None` for any.
    pub address: Option<Ipv4Addr>,
    /// That of its card; `None` for one made of its address.
    pub mac: Option<MacAddress>,
    /// More names that others find it by.
    pub aliases: Vec<String>,
    /// Ports published on the host.
    pub ports: Vec<Publish>,
    /// Name servers instead of the network's.
    pub dns: Vec<IpAddr>,
    /// Domains that names are completed with, instead of the host's.
    pub search: Vec<String>,
    /// Options of the resolver (`resolv.conf(5)`).
    pub options: Vec<String>,
}

/// What the processes of a container find around them, and what they may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The root cannot be written.
    pub read_only: bool,
    /// File systems in memory: where, and with which options.
    pub tmpfs: Vec<(String, String)>,
    /// Bytes of `/dev/shm`.
    pub shm_size: u64,
    /// Most processes and threads.
    pub pids_limit: Option<u32>,
    /// Capabilities, as the kernel's mask.
    pub capabilities: u64,
    /// All of the guest is theirs.
    pub privileged: bool,
    /// A small PID 1 reaps orphans.
    pub init: bool,
    /// Set-user-ID bits do nothing.
    pub no_new_privileges: bool,
    /// Resource limits.
    pub limits: Vec<ResourceLimit>,
    /// More groups of the user's.
    pub groups: Vec<String>,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Names in its `/etc/hosts`.
    pub hosts: Vec<(String, HostAddress)>,
}

/// What a name in `/etc/hosts` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostAddress {
    /// An address.
    Address(IpAddr),
    /// The host, as the container's network reaches it.
    HostGateway,
}

/// The image of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageUse {
    /// As the user named it.
    pub name: String,
    /// Digest of its configuration.
    pub id: Digest,
    /// Digest of its manifest.
    pub manifest: Digest,
}

/// The snapshot of a container that another was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its name.
    pub snapshot: String,
    /// Its id, since there may be another of that name later.
    pub id: String,
}

/// Where output is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// In the container's directory.
    #[default]
    JsonFile,
    /// Nowhere.
    None,
}

/// How a container is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// What it does.
    pub status: Status,
    /// Process number of its VMM, or of its first process; 0 where there is none.
    pub pid: u32,
    /// When its program last started.
    pub started: Option<Timestamp>,
    /// When it last ended.
    pub finished: Option<Timestamp>,
    /// How it last ended.
    pub exit: Exit,
    /// Why it could not be started.
    pub error: String,
    /// Its addresses, with the size of their network, while it runs.
    pub addresses: Vec<IpNet>,
    /// Its ports on the host while it runs.
    pub ports: Vec<Published>,
    /// Where the sockets of its monitor and its VM are while it has them, which is also while it starts.
    pub sockets: PathBuf,
}

impl State {
    /// Whether it has a monitor, or has lost it.
    pub fn is_looked_after(&self) -> bool {
        !self.sockets.as_os_str().is_empty()
    }

    /// The same, now that it has ended.
    #[must_use]
    pub fn ended(self) -> Self {
        Self {
            status: Status::Exited,
            pid: 0,
            finished: Some(Timestamp::now()),
            addresses: Vec::new(),
            ports: Vec::new(),
            sockets: PathBuf::new(),
            ..self
        }
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was never started.
    #[default]
    Created,
    /// Its program runs.
    Running,
    /// Its program stands still.
    Paused,
    /// Its program has ended.
    Exited,
}

impl Status {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
        }
    }

    /// Whether it has a VM.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}
