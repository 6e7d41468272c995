// SPDX-License-Identifier: Apache-2.0
//! Snapshots: a microVM that stands still, in two files, from which any number go on.
//!
//! - The state ([`format`]): what KVM and the devices know. It is read whole and checked whole, before any of it is used.
//! - The memory ([`memory`]): the guest's RAM, with holes for zeroes. It is mapped, private to each VM, so that what no
//!   clone has written is in the host's page cache once for all. It may hold only what differs from another
//!   ([`difference`]).

use std::path::{Path, PathBuf};

pub mod config;
pub mod difference;
mod directory;
mod error;
pub mod format;
pub mod host_print;
pub mod memory;
mod restore;
mod state;
mod take;
#[cfg(any(test, feature = "fake-driver"))]
pub mod testing;

pub use config::{Launch, RestoreConfig};
pub use directory::{NEW_PREFIX, NewSnapshot};
pub use error::SnapshotError;
pub use restore::{read, restore};
pub use state::State;
pub use take::{Scope, TakeError, Taken, take};

/// Name of the state in a snapshot's directory.
pub const STATE_FILE: &str = "state";
/// Name of the memory in a snapshot's directory.
pub const MEMORY_FILE: &str = "memory";

/// Checks that what a snapshot in this directory differs from is there, if it holds a difference only.
///
/// # Errors
/// It cannot be read, or what it needs is no more, or another.
pub fn check_base(directory: &Path) -> Result<(), SnapshotError> {
    read(&directory.join(STATE_FILE))?.base.map_or(Ok(()), |base| base.open(&base.whole.path).map(drop))
}

/// The state file of a snapshot that is named by its directory, or by that file itself.
pub fn state_file(snapshot: &Path) -> PathBuf {
    if snapshot.is_dir() { snapshot.join(STATE_FILE) } else { snapshot.to_owned() }
}
