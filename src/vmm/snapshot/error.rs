// SPDX-License-Identifier: Apache-2.0
//! Why a snapshot cannot be used, and what to do then.

use std::io;
use std::path::{Path, PathBuf};

use super::format::VERSION;
use crate::failure::Failure;
use crate::vmm::arch::state::StateError;
use crate::vmm::devices::virtio::RestoreError;

/// Why a snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// It does not start as a snapshot does.
    #[error("it is no snapshot of a microVM")]
    Magic,
    /// Another release's format.
    #[error("it has version {0} of the format, and this release knows version {VERSION}")]
    Version(u32),
    /// Another architecture's.
    #[error("it was taken on another processor architecture (ELF machine {0})")]
    Architecture(u32),
    /// Cut off, or more than there should be.
    #[error("it is damaged: it should have {said} bytes and has {found}")]
    Length {
        /// By its header.
        said: u64,
        /// By its file.
        found: u64,
    },
    /// A checksum does not match.
    #[error("it is damaged: the checksum of its {0} does not match")]
    Checksum(&'static str),
    /// The checksum matches, but it is not what this release writes.
    #[error("it is damaged, or forged: {0}")]
    Nonsense(&'static str),
    /// Another CPU or KVM.
    #[error("it was taken on {then}, and this host is {now}")]
    Host {
        /// Where it was taken.
        then: String,
        /// Here.
        now: String,
    },
    /// The guest's clock would go back.
    #[error("this host has been restarted since, and its guests (PVM) see the time stamp counter as it is")]
    Restarted,
    /// The memory file does not go with the state.
    #[error("its memory file does not belong to it: {0}")]
    Memory(&'static str),
    /// What it differs from is not there.
    #[error("it holds only what differs from {}: {why}", path.display())]
    Base {
        /// The memory file that holds the rest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It has other devices than those that were named.
    #[error("it has {then} {what}, and {now} were named")]
    Devices {
        /// Which.
        what: &'static str,
        /// In the snapshot.
        then: usize,
        /// Now.
        now: usize,
    },
    /// KVM does not take it.
    #[error(transparent)]
    State(#[from] StateError),
    /// A device does not take it.
    #[error("device {number} ({name}): {source}")]
    Device {
        /// Its place.
        number: usize,
        /// What it is.
        name: String,
        /// Why.
        source: RestoreError,
    },
}

impl SnapshotError {
    /// The next thing to do.
    fn advice(&self) -> &'static str {
        match self {
            Self::Read(_) => "the directory that `coracle snapshot create` made",
            Self::Magic => "`--restore` with the directory that `coracle snapshot create` made",
            Self::Devices { .. } => {
                "as many of --disk, --net, --vsock and --pmem as the snapshot has, or none to use the same"
            }
            Self::Device { source: RestoreError::File(_), .. } => {
                "the file as it was, or name it: what is named anew with --disk or --pmem may be another"
            }
            Self::Memory(_) => "the memory file that was written with this state; else take a new snapshot",
            Self::Base { .. } => "that file, where it was and as it was; `boot --base-file` names another place",
            _ => "take a new snapshot on this host, with this release",
        }
    }

    /// For a person, of the snapshot whose state is at `path`.
    pub fn about(&self, path: &Path) -> Failure {
        Failure::new(format!("cannot restore snapshot {}", path.display()), self, self.advice())
    }
}
