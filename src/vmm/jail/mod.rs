// SPDX-License-Identifier: Apache-2.0
//! What a guest that has broken into its VMM finds there: nothing to open, nobody's rights, few system calls.
//!
//! Two steps, both after everything has been opened and before the guest's first instruction. [`Jail::enter`] takes away
//! files and rights, while there is one thread, since the kernel keeps them for each; [`Jail::close`] filters the system
//! calls of all threads, once there are all of them.
//!
//! | started by | root directory | user | system calls |
//! |---|---|---|---|
//! | root | the vsock's directory, or an empty one | one of its own, without capabilities | see [`filter`] |
//! | others | as it was, but nothing can be opened | as it was | the same |

pub mod filter;
mod rights;

use std::io;

use serde::{Deserialize, Serialize};

use super::devices::virtio::vsock::Endpoint;
use crate::failure::Failure;

/// How a VMM's process is locked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Jail {
    /// With all that there is. The owner removes the VMM's sockets.
    #[default]
    Full,
    /// A VMM without an owner removes its sockets itself: it keeps its root directory, and `unlink`.
    Alone,
    /// Not at all.
    None,
}

impl Jail {
    /// Takes files and rights away from this process, which must have no other threads. `vsock` is where its guest's
    /// connections go.
    ///
    /// # Errors
    /// The system's.
    pub fn enter(self, vsock: Option<&Endpoint>) -> Result<(), Failure> {
        if self == Self::None {
            return Ok(());
        }
        if let Some(endpoint) = vsock {
            endpoint.enter_directory().map_err(|error| not_locked("entering the vsock's directory", error))?;
        }
        if !rights::is_root() {
            return Ok(());
        }
        if self == Self::Full {
            let directory = vsock.map(Endpoint::directory);
            rights::change_root(directory).map_err(|error| not_locked("changing the root directory", error))?;
        }
        let keeps_files = vsock.is_some() || self == Self::Alone;
        rights::give_up(keeps_files).map_err(|error| not_locked("giving up root's rights", error))
    }

    /// Filters the system calls of all threads of this process. The guest may connect to the host's unix sockets where it
    /// has a `vsock`.
    ///
    /// # Errors
    /// The system's: as a rule a kernel without seccomp.
    pub fn close(self, vsock: bool) -> Result<(), Failure> {
        if self == Self::None {
            return Ok(());
        }
        let extra = filter::Extra { connect: vsock, unlink: self == Self::Alone };
        filter::install(extra).map_err(|error| not_locked("filtering its system calls", io::Error::other(error)))
    }
}

fn not_locked(doing: &str, error: io::Error) -> Failure {
    Failure::new(format!("cannot lock up the VMM: {doing}"), error, "`--no-jail`, for a guest that you trust")
}
