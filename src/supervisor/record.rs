// SPDX-License-Identifier: Apache-2.0
//! What is kept on the disk of a container.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::wire::Exit;
use crate::image::Digest;
use crate::sandbox::{ProcessSpec, Shape};

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
    /// vCPUs and memory.
    pub shape: Shape,
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
    /// Process number of its VMM; 0 where there is none.
    pub pid: u32,
    /// When its program last started.
    pub started: Option<Timestamp>,
    /// When it last ended.
    pub finished: Option<Timestamp>,
    /// How it last ended.
    pub exit: Exit,
    /// Why it could not be started.
    pub error: String,
    /// Where the sockets of its monitor and its VM are while it runs.
    pub sockets: PathBuf,
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
