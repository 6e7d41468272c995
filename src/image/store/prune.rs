// SPDX-License-Identifier: Apache-2.0
//! Removing images, and content that none of them needs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::{Problem, Store, at, remove};
use crate::image::Digest;

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// File names of blobs, parts of blobs, and disks.
    pub files: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Removes blobs, parts of blobs and disks that no image needs; `None` while another process brings content.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn prune(&self) -> Result<Option<Pruned>, Problem> {
        self.sweep(true)
    }

    /// Removes blobs and disks that no image needs, but not the parts of blobs from which a broken pull can go on; `None`
    /// while another process brings content, and the next one that removes something does it.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub fn remove_unused(&self) -> Result<Option<Pruned>, Problem> {
        self.sweep(false)
    }

    fn sweep(&self, parts_too: bool) -> Result<Option<Pruned>, Problem> {
        let Some(_alone) = self.try_content_alone()? else { return Ok(None) };
        let (mut blobs, mut chains) = (BTreeSet::new(), BTreeSet::new());
        for manifest in self.index()?.images.keys() {
            blobs.insert(manifest.hex());
            // What a damaged manifest refers to is unknown: its image cannot run, and so nothing is lost.
            if let Ok(image) = self.image(manifest) {
                blobs.extend(image.content().map(|digest| digest.hex()));
                chains.insert(image.chain().hex());
            }
        }
        let mut pruned = Pruned::default();
        pruned.sweep(&self.root.join("blobs/sha256"), |name| blobs.contains(name))?;
        pruned.sweep(&self.root.join("partial"), |_| !parts_too)?;
        pruned.sweep(&self.root.join("disks"), |name| {
            name.split_once('-').is_some_and(|(chain, format)| chains.contains(chain) && !format.ends_with(".new"))
        })?;
        Ok(Some(pruned))
    }

    /// Forgets an image, or one of its names. Its content stays until [`prune`](Self::prune).
    ///
    /// # Errors
    /// There is no such image or name, or the list cannot be written.
    pub fn forget(&self, manifest: &Digest, name: Option<&str>) -> Result<(), Problem> {
        self.change(|index| {
            let record = index.images.get_mut(manifest).ok_or(Problem::NotHere)?;
            match name {
                None => _ = index.images.remove(manifest),
                Some(name) => {
                    if !record.names.remove(name) && !record.sources.remove(name) {
                        return Err(Problem::NotHere);
                    }
                }
            }
            Ok(())
        })
    }
}

impl Pruned {
    fn sweep(&mut self, directory: &Path, keep: impl Fn(&str) -> bool) -> Result<(), Problem> {
        for entry in fs::read_dir(directory).map_err(at(directory))? {
            let entry = entry.map_err(at(directory))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if keep(&name) {
                continue;
            }
            self.bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            remove(&entry.path())?;
            self.files.push(name);
        }
        Ok(())
    }
}
