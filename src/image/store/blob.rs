// SPDX-License-Identifier: Apache-2.0
//! Bringing a blob into the store, in pieces and perhaps in several runs.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::lock::claim;
use super::{Problem, Store, at, remove, sync_directory};
use crate::image::{Digest, Hasher};

/// Where a blob stands.
#[derive(Debug)]
pub enum Blob {
    /// It is in the store.
    Here,
    /// It has to be brought, by whoever got this.
    Wanted(Box<Partial>),
}

/// A blob on its way into the store. It is kept when dropped, so that the next run can go on from there.
pub struct Partial {
    store: Store,
    digest: Digest,
    size: u64,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    received: u64,
    found: u64,
}

impl Store {
    /// Begins to bring a blob of `size` bytes, or goes on where another run ended. While another process brings it, this
    /// waits, having called `wait`.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn bring(&self, digest: &Digest, size: u64, wait: impl FnOnce()) -> Result<Blob, Problem> {
        let path = self.root.join("partial").join(digest.hex());
        if self.has(digest) {
            return Ok(Blob::Here);
        }
        let file = claim(&path, wait).map_err(at(&path))?;
        if self.has(digest) {
            remove(&path)?;
            return Ok(Blob::Here);
        }
        let (store, digest, hasher) = (self.clone(), *digest, Hasher::new());
        let mut partial = Partial { store, digest, size, path, file, hasher, received: 0, found: 0 };
        partial.read_what_is_there()?;
        Ok(Blob::Wanted(Box::new(partial)))
    }

    /// Brings a small blob whose bytes are at hand; gives its digest.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn add(&self, bytes: &[u8]) -> Result<Digest, Problem> {
        let digest = Digest::of(bytes);
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if let Blob::Wanted(mut partial) = self.bring(&digest, size, || {})? {
            partial.restart()?;
            partial.write(bytes)?;
            partial.publish()?;
        }
        Ok(digest)
    }
}

impl Partial {
    /// Bytes that are here.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that were here before this run. They have not been verified.
    pub fn found(&self) -> u64 {
        self.found
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They are more than the blob has, or cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Problem> {
        let received = self.received.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if received > self.size {
            return Err(Problem::Size { what: "the content", expected: self.size, found: received });
        }
        self.file.write_all(bytes).map_err(at(&self.path))?;
        self.hasher.update(bytes);
        self.received = received;
        Ok(())
    }

    /// Forgets what has come.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn restart(&mut self) -> Result<(), Problem> {
        self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0))).map_err(at(&self.path))?;
        (self.hasher, self.received, self.found) = (Hasher::new(), 0, 0);
        Ok(())
    }

    /// Whether the content is complete and has its digest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self) -> Result<(), Problem> {
        if self.received != self.size {
            return Err(Problem::Size { what: "the content", expected: self.size, found: self.received });
        }
        let found = self.hasher.clone().finish();
        if found == self.digest { Ok(()) } else { Err(Problem::DigestMismatch { expected: self.digest, found }) }
    }

    /// Verifies the content and puts it into the store.
    ///
    /// # Errors
    /// It is not what it should be, or cannot be written.
    pub fn publish(self) -> Result<(), Problem> {
        self.verify()?;
        let file = &self.file;
        let finished = file.set_permissions(Permissions::from_mode(0o400)).and_then(|()| file.sync_all());
        finished.map_err(at(&self.path))?;
        let target = self.store.blob_path(&self.digest);
        fs::rename(&self.path, &target).map_err(at(&target))?;
        sync_directory(&self.store.root.join("blobs/sha256"))
    }

    /// Removes what has come.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(self) -> Result<(), Problem> {
        remove(&self.path)
    }

    fn read_what_is_there(&mut self) -> Result<(), Problem> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.hasher.update(buffer.get(..count).unwrap_or_default());
                    self.received += u64::try_from(count).unwrap_or(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(at(&self.path)(error)),
            }
        }
        self.found = self.received;
        // More than there can be: left by something else.
        if self.received > self.size { self.restart() } else { Ok(()) }
    }
}

impl std::fmt::Debug for Partial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} of {} bytes", self.digest, self.received, self.size)
    }
}
