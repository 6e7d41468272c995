// SPDX-License-Identifier: Apache-2.0
//! What a container uses, and who runs in it. Claims of a guest: for people, not for decisions about safety.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::Text;

/// What a container has used since it started, and uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Time on CPUs in ns.
    pub cpu_ns: u64,
    /// Memory of the guest that cannot be had without writing something out, in bytes.
    pub memory: u64,
    /// All of the guest's memory, in bytes.
    pub memory_limit: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received on all interfaces but the loopback.
    pub received: u64,
    /// Bytes sent there.
    pub sent: u64,
    /// Bytes read from disks, the image's among them.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
}

/// The processes of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// In no order; not all of them where there are very many.
    pub list: Vec<ProcessFacts>,
}

/// A process of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    /// Its id, as the container sees it.
    pub pid: u32,
    /// That of its parent; 0 for one outside.
    pub parent: u32,
    /// Name of its user in the container, or the number of one without a name.
    pub user: Text,
    /// Number of its terminal: *n* of `/dev/pts/n`.
    pub terminal: Option<u32>,
    /// Time on CPUs in ms.
    pub cpu_ms: u64,
    /// Milliseconds since it started.
    pub age_ms: u64,
    /// Its arguments, or its name in brackets.
    pub command: Text,
}
