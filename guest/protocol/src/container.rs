// SPDX-License-Identifier: Apache-2.0
//! What a container is made of, as the host has put it together.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Process, Text};

/// A container to make. A guest has one. Paths are those of the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The block device with the image's EROFS file system. It is mounted once; its files are the lower layer of the
    /// root.
    pub root: Text,
    /// Where that which the container writes goes.
    pub upper: Upper,
    /// Whether the root cannot be written to; other mounts can.
    pub read_only: bool,
    /// Name of the machine as its processes see it.
    pub hostname: Text,
    /// Size of `/dev/shm` in bytes.
    pub shm_size: u64,
    /// What is mounted besides what each container has, in order.
    pub mounts: Vec<Mount>,
    /// Files that come from outside, such as `/etc/resolv.conf`. They are mounted over those of the image: they can be
    /// written to, also where the root is read-only, and are not part of the written layer.
    pub files: Vec<File>,
    /// The network interfaces besides the loopback.
    pub network: Vec<Interface>,
    /// How many processes and threads there may be; `None` for as many as the kernel can.
    pub pids_limit: Option<u32>,
    /// Whether it sees the whole guest: all devices, and kernel interfaces that can be written to.
    pub privileged: bool,
    /// Kernel parameters (`sysctl(8)`) to set.
    pub sysctls: Vec<Sysctl>,
    /// Whether a small program of the agent's is PID 1, which reaps orphans and passes signals on to the process.
    pub init: bool,
}

impl Container {
    /// What it has in common with others of the same image that are made in the same way: it has no name, no network,
    /// nothing in its files, and a root that can be written to.
    #[must_use]
    pub fn common(&self) -> Self {
        let empty = |file: &File| File { content: Vec::new(), ..file.clone() };
        Self {
            hostname: Text::default(),
            network: Vec::new(),
            files: self.files.iter().map(empty).collect(),
            read_only: false,
            ..self.clone()
        }
    }
}

/// A container that is made before it is known whose it will be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assembly {
    /// What all that it can become have in common ([`Container::common`]).
    pub container: Container,
    /// Capabilities of its first process, as in [`Process`](crate::Process).
    pub capabilities: u64,
    /// What that is likely to run, as in its arguments: its files are read ahead. Another program is only slower.
    pub program: Vec<u8>,
    /// Where that is looked for, as in the environment's `PATH`.
    pub path: Vec<u8>,
}

impl Assembly {
    /// What can be made ahead of this container with this first process: nothing where others must be asked for a
    /// mount, or where there is something that outlives it.
    #[must_use]
    pub fn of(container: &Container, process: &Process) -> Option<Self> {
        let plain = container.upper == Upper::Memory(None) && container.mounts.is_empty();
        (plain && !container.privileged && !container.init).then(|| Self {
            container: container.common(),
            capabilities: process.capabilities,
            program: process.arguments.first().cloned().unwrap_or_default(),
            path: process.path().to_vec(),
        })
    }

    /// Whether this is what was made ahead of this container with this process.
    #[must_use]
    pub fn fits(&self, container: &Container, process: &Process) -> bool {
        let same = |other: Self| other.container == self.container && other.capabilities == self.capabilities;
        Self::of(container, process).is_some_and(same)
    }
}

/// Where that which a container writes goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// Into the guest's memory, at most this many bytes; `None` for half of the memory, the kernel's default.
    Memory(Option<u64>),
    /// Onto the ext4 file system of this block device, where it is written back before the end is told.
    Disk(Text),
}

impl Default for Upper {
    fn default() -> Self {
        Self::Memory(None)
    }
}

/// Something mounted in a container, on a directory that is made if it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where.
    pub target: Vec<u8>,
    /// What.
    pub source: Source,
    /// `MS_…` flags of `mount(2)`, such as that for read-only.
    pub flags: u32,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A tmpfs with these options, such as `size=1048576,mode=1777`.
    Memory(Vec<u8>),
    /// A directory of the host's: the virtiofs of this tag.
    Shared(Text),
    /// One file of it, by its name in that directory; the target is a file then.
    SharedFile(Text, Vec<u8>),
    /// As [`Source::Shared`]; if it is empty, it first gets a copy of what the container's root has there.
    Filled(Text),
}

/// A file that the host makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Where.
    pub path: Vec<u8>,
    /// Its permissions; the owner is root.
    pub mode: u32,
    /// What is in it.
    pub content: Vec<u8>,
}

/// A network interface of the guest, and what the container is to find there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// `eth0` for the first network device that the VM has, and so on.
    pub name: Text,
    /// Longest packet in bytes; `None` for what the device says.
    pub mtu: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Routers to everywhere else, one for each family at most. They need not be in the interface's own network.
    pub gateways: Vec<core::net::IpAddr>,
}

/// An address, and how many of its bits are those of its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address.
    pub address: core::net::IpAddr,
    /// Bits of the network's prefix.
    pub prefix: u8,
}

/// A kernel parameter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// With dots: `net.ipv4.ip_forward`.
    pub name: Vec<u8>,
    /// What is written there.
    pub value: Vec<u8>,
}
