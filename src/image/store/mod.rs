// SPDX-License-Identifier: Apache-2.0
//! Where images are kept: content by its digest, a list of images with their names, and the disks made of them.
//!
//! ```text
//! blobs/sha256/HEX     manifests, configurations and layers; never changed after they have their name
//! partial/HEX          a blob on its way; whoever fetches it holds its lock
//! images.json          which images there are, under which names; replaced as a whole
//! disks/HEX-FORMAT     the layers of an image as one disk
//! images.lock          held while images.json is replaced
//! content.lock         held, shared, by whoever brings content that nothing refers to yet; by the pruner alone
//! ```
//!
//! A file gets its final name only when it is complete, verified and on the disk, so that a process may be killed at any
//! byte. All locks are the kernel's (`flock`) and end with the process that holds them.

mod blob;
mod disk;
mod index;
mod lock;
mod prune;

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Digest, Problem};

pub use blob::{Blob, Partial};
pub use index::{Found, ImageRecord, Index};
pub use lock::Lock;
pub use prune::{Part, Pruned, Usage};

/// The environment variable that says where images are kept.
pub const DIRECTORY_VARIABLE: &str = "CORACLE_DATA";

/// The images of one user on this host. Any number of processes may use it at once.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store of this user: `$CORACLE_DATA`, else `/var/lib/coracle` for root, else `coracle` in the user's data
    /// directory. It is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open() -> Result<Self, Problem> {
        Self::open_at(&default_root())
    }

    /// The store in this directory, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn open_at(root: &Path) -> Result<Self, Problem> {
        for directory in ["blobs/sha256", "partial", "disks"] {
            let directory = root.join(directory);
            // Images may hold secrets: they are for their owner alone.
            DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(at(&directory))?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Whether a blob is here.
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// The bytes of a small blob, checked against its digest.
    ///
    /// # Errors
    /// It is not here, larger than `limit` bytes, or was damaged on the disk.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Problem> {
        let path = self.blob_path(digest);
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(at(&path))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(at(&path))?;
        let found = Digest::of(&bytes);
        match found == *digest {
            true => Ok(bytes),
            false => Err(Problem::DigestMismatch { expected: *digest, found }),
        }
    }

    /// Bytes that may still be written here.
    ///
    /// # Errors
    /// The kernel's.
    pub fn free_space(&self) -> Result<u64, Problem> {
        let stats = rustix::fs::statvfs(&self.root).map_err(|error| at(&self.root)(error.into()))?;
        Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
    }
}

/// Where [`Store::open`] looks.
pub fn default_root() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || {
        set("XDG_DATA_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".local/share")))
            .map(|data| data.join("coracle"))
    };
    let system = || PathBuf::from("/var/lib/coracle");
    set(DIRECTORY_VARIABLE)
        .or_else(|| if rustix::process::geteuid().is_root() { None } else { home() })
        .unwrap_or_else(system)
}

/// For `map_err`: gives an error its path.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Problem {
    let path = path.to_owned();
    move |error| Problem::Store { path, error }
}

/// Makes a new name in `directory` survive a power cut.
fn sync_directory(directory: &Path) -> Result<(), Problem> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> Result<(), Problem> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
