// SPDX-License-Identifier: Apache-2.0
//! What the name server goes by: two files, read anew when they have changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Resolvers;
use crate::network::model::Network;
use crate::network::store;

/// Which version of a file was read: device, inode, time of change.
type Stamp = (u64, u64, i64, i64);

/// The network and the host's name servers.
pub(super) struct State {
    path: PathBuf,
    stamp: Option<Stamp>,
    network: Option<Network>,
    resolvers_stamp: Option<Stamp>,
    resolvers: Resolvers,
}

impl State {
    pub fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, network: None, resolvers_stamp: None, resolvers: Resolvers::default() }
    }

    /// The network as it is now; `None` while it cannot be read.
    pub fn network(&mut self) -> Option<&Network> {
        let stamp = stamp(&self.path);
        if stamp != self.stamp || stamp.is_none() {
            self.stamp = stamp;
            self.network = store::read(&self.path).unwrap_or_else(|failure| {
                log::warn!("{failure}");
                None
            });
        }
        self.network.as_ref()
    }

    /// The host's name servers as they are now.
    pub fn resolvers(&mut self) -> &Resolvers {
        let stamp = stamp(Path::new(super::resolvers::PATH));
        if stamp != self.resolvers_stamp {
            self.resolvers_stamp = stamp;
            self.resolvers = Resolvers::read();
        }
        &self.resolvers
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
}
