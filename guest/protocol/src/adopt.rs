// SPDX-License-Identifier: Apache-2.0
//! A container that was in a snapshot goes on in a clone of its guest.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Address, File, Interface, Streams, Text};

/// What is otherwise for a container that was in a snapshot, and where its streams go now. Its processes stood still when
/// the snapshot was taken (`Pause`), and go on once all of this is so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopt {
    /// Where the agent connects to for the first process's streams; what is missing is as it was.
    pub streams: Streams,
    /// Name of the machine as its processes see it from now on.
    pub hostname: Text,
    /// New content of the files that came from outside: as many as the container was made with, or the first of them.
    pub files: Vec<File>,
    /// Its network interfaces, each with another identity.
    pub network: Vec<Reconnected>,
}

/// A network interface that is connected elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconnected {
    /// What the container is to find there from now on.
    pub interface: Interface,
    /// The address of its card from now on.
    pub mac: [u8; 6],
    /// Addresses that it had, which it loses.
    pub former: Vec<Address>,
}
