// SPDX-License-Identifier: Apache-2.0
//! What a guest that has broken into its VMM finds there: nothing to open, nobody's rights, few system calls.
//!
//! [`Jail::prepare`] gets who is not root a user namespace, first of all. Once everything has been opened,
//! [`Jail::enter`] takes away files and rights, while there is one thread, since the kernel keeps them for each, and
//! [`Jail::close`] filters the system calls of all threads, once there are all of them.
//!
//! | started by | root directory | user | system calls |
//! |---|---|---|---|
//! | root | the vsock's directory, or an empty one | one of its own, without capabilities | see [`filter`] |
//! | others | the same, where they may have user namespaces | as it was, without capabilities | the same |

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
    /// Makes it possible to change the root directory without root's rights: in a user namespace, where this user is all
    /// that there is. A host that gives nobody one has the rest of the jail. This process must have no other threads.
    pub fn prepare(self) {
        if self == Self::Full
            && !rights::has_roots()
            && let Err(error) = rights::own_namespace()
        {
            log::info!("the VMM keeps its root directory, since it gets no user namespace: {error}");
        }
    }

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
        let root = rights::has_roots();
        if self == Self::Full {
            match rights::change_root(vsock.map(Endpoint::directory)) {
                Err(error) if !root && error.kind() == io::ErrorKind::PermissionDenied => {}
                other => other.map_err(|error| not_locked("changing the root directory", error))?,
            }
        }
        let keeps_files = vsock.is_some() || self == Self::Alone;
        let given_up = if root { rights::give_up(keeps_files) } else { rights::drop_capabilities() };
        given_up.map_err(|error| not_locked("giving up rights", error))
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
