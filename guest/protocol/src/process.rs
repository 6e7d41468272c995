// SPDX-License-Identifier: Apache-2.0
//! Running a container's process in the guest.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::Text;

/// A process to start, as the host has put it together from image and flags.
///
/// Names and words are bytes: neither Linux nor the OCI's configuration promises UTF-8 for what comes from a user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The block device with the image's EROFS file system. It is mounted once; its files are the lower layer of the
    /// root that every process of the guest shares.
    pub root: Text,
    /// Name of the machine as the process sees it.
    pub hostname: Text,
    /// The program and its arguments; the program is looked for in the environment's `PATH`.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=value`. `HOME` is added from the image's `/etc/passwd` where it is missing.
    pub environment: Vec<Vec<u8>>,
    /// Directory to start in, made if it is missing.
    pub directory: Vec<u8>,
    /// `user[:group]`, names or numbers, looked up in the image; empty for root.
    pub user: Vec<u8>,
    /// Where the agent connects to for each stream, on the host's side of the vsock.
    pub streams: Streams,
}

/// vsock ports on the host; the agent connects to each before it answers with `Started`. One connection a stream: the
/// flow control is that of vsock, and no stream waits for another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// What the process reads; `None` for nothing at all.
    pub stdin: Option<u32>,
    /// What it writes.
    pub stdout: u32,
    /// What it writes of errors.
    pub stderr: u32,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Killed(u8),
}

impl Ended {
    /// The exit status that a shell, or Docker, gives for it.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Killed(signal) => signal.saturating_add(128),
        }
    }
}
