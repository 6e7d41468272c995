// SPDX-License-Identifier: Apache-2.0
//! Removing images, and content that none of them needs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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

/// How much images take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Manifests, configurations and layers; counted are images.
    pub blobs: Part,
    /// Disks made of layers.
    pub disks: Part,
    /// Blobs that have come in part.
    pub parts: Part,
}

/// How much something takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// How many there are.
    pub count: usize,
    /// Bytes of all.
    pub bytes: u64,
    /// Bytes of those that no image needs.
    pub unused_bytes: u64,
}

/// What images need.
#[derive(Default)]
struct Needed {
    /// Names of blobs.
    blobs: BTreeSet<String>,
    /// What names of disks begin with.
    chains: BTreeSet<String>,
}

impl Needed {
    fn has_disk(&self, name: &str) -> bool {
        name.split_once('-').is_some_and(|(chain, format)| self.chains.contains(chain) && !format.ends_with(".new"))
    }
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

    /// What takes how much.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn usage(&self) -> Result<Usage, Problem> {
        let needed = self.needed()?;
        let part = |directory: &str, is_needed: &dyn Fn(&str) -> bool| -> Result<Part, Problem> {
            let mut part = Part::default();
            for (name, _, bytes) in list(&self.root.join(directory))? {
                part.count += 1;
                part.bytes += bytes;
                part.unused_bytes += if is_needed(&name) { 0 } else { bytes };
            }
            Ok(part)
        };
        let mut blobs = part("blobs/sha256", &|name| needed.blobs.contains(name))?;
        blobs.count = self.index()?.images.len();
        let disks = part("disks", &|name| needed.has_disk(name))?;
        Ok(Usage { blobs, disks, parts: part("partial", &|_| false)? })
    }

    fn sweep(&self, parts_too: bool) -> Result<Option<Pruned>, Problem> {
        let Some(_alone) = self.try_content_alone()? else { return Ok(None) };
        let needed = self.needed()?;
        let mut pruned = Pruned::default();
        pruned.sweep(&self.root.join("blobs/sha256"), |name| needed.blobs.contains(name))?;
        pruned.sweep(&self.root.join("partial"), |_| !parts_too)?;
        pruned.sweep(&self.root.join("disks"), |name| needed.has_disk(name))?;
        Ok(Some(pruned))
    }

    fn needed(&self) -> Result<Needed, Problem> {
        let mut needed = Needed::default();
        for manifest in self.index()?.images.keys() {
            needed.blobs.insert(manifest.hex());
            // What a damaged manifest refers to is unknown: its image cannot run, and so nothing is lost.
            if let Ok(image) = self.image(manifest) {
                needed.blobs.extend(image.content().map(Digest::hex));
                needed.chains.insert(image.chain().hex());
            }
        }
        Ok(needed)
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
        for (name, path, bytes) in list(directory)? {
            if !keep(&name) {
                remove(&path)?;
                self.bytes += bytes;
                self.files.push(name);
            }
        }
        Ok(())
    }
}

/// Names, paths and sizes of the files in a directory.
fn list(directory: &Path) -> Result<Vec<(String, PathBuf, u64)>, Problem> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        // One that has gone meanwhile takes nothing. Disks have holes, which take nothing either.
        let bytes = entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        files.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), bytes));
    }
    Ok(files)
}
