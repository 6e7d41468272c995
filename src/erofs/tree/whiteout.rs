// SPDX-License-Identifier: Apache-2.0
//! Whiteouts (OCI image specification, "Image Layer Filesystem Changeset"): names that take away what layers below have,
//! and nothing of the layer that they are in, wherever in it they come.

use super::{NodeId, Tree};
use crate::erofs::error::Problem;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Book-keeping of AUFS, which Docker's unpacker passes over too.
const AUFS: &[u8] = b".wh..wh.";

/// What a name in a layer is.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::erofs) enum Name<'n> {
    /// A file.
    Plain(&'n [u8]),
    /// The absence of this name.
    Whiteout(&'n [u8]),
    /// The absence of all that the directory has below.
    Opaque,
    /// Nothing.
    Ignored,
}

impl<'n> Name<'n> {
    /// Looks at the last of a path's parts, and whether those before can be directories.
    ///
    /// # Errors
    /// There can be no such whiteout, or it is used as a directory.
    pub(in crate::erofs) fn of(directories: &[&[u8]], name: &'n [u8]) -> Result<Self, Problem> {
        if directories.iter().any(|part| part.starts_with(AUFS)) {
            return Ok(Self::Ignored);
        }
        if directories.iter().any(|part| part.starts_with(PREFIX)) {
            return Err(Problem::Whiteout);
        }
        match name.strip_prefix(PREFIX) {
            None => Ok(Self::Plain(name)),
            Some(_) if name == OPAQUE => Ok(Self::Opaque),
            Some(_) if name.starts_with(AUFS) => Ok(Self::Ignored),
            Some(b"" | b"." | b"..") => Err(Problem::Whiteout),
            Some(hidden) => Ok(Self::Whiteout(hidden)),
        }
    }
}

impl Tree {
    /// Takes away what layers below have under this name.
    pub(in crate::erofs) fn whiteout(&mut self, parent: NodeId, name: &[u8]) {
        let Some(child) = self.child(parent, name) else { return };
        let touched = self.directory(child.node).map_or(child.touched, |directory| directory.touched);
        if touched != self.layer {
            self.remove(parent, name);
        } else {
            self.purge(child.node);
        }
    }

    /// Takes away what layers below have in a directory, however deep.
    pub(in crate::erofs) fn purge(&mut self, directory: NodeId) {
        let layer = self.layer;
        let mut pending = vec![directory];
        while let Some(id) = pending.pop() {
            let Some(directory) = self.directory_mut(id) else { continue };
            // Whatever came since is of this layer. Without this, repeated whiteouts would take quadratic time.
            if std::mem::replace(&mut directory.purged, layer) == layer {
                continue;
            }
            let children: Vec<_> = self.directory(id).into_iter().flat_map(|directory| &directory.children).collect();
            let mut below: Vec<Box<[u8]>> = Vec::new();
            for (name, child) in children {
                match self.directory(child.node) {
                    Some(directory) if directory.touched == layer => pending.push(child.node),
                    None if child.touched == layer => {}
                    _ => below.push(name.clone()),
                }
            }
            for name in below {
                self.remove(id, &name);
            }
        }
    }
}
