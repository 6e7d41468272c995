// SPDX-License-Identifier: Apache-2.0
//! Locks between processes, on files.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{Problem, Store, at};
use crate::file_lock::{open, take};

/// A lock that is held until it is dropped, or its process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Store {
    /// Keeps content that nothing refers to yet from being pruned. Any number of processes hold it at once.
    ///
    /// # Errors
    /// The lock's file cannot be opened.
    pub fn hold_content(&self) -> Result<Lock, Problem> {
        self.lock("content.lock", FlockOperation::LockShared).map(|lock| lock.expect("a lock that is waited for"))
    }

    /// The right to remove content; `None` while someone brings some.
    pub(super) fn try_content_alone(&self) -> Result<Option<Lock>, Problem> {
        self.lock("content.lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// The right to replace the list of images.
    pub(super) fn index_alone(&self) -> Result<Lock, Problem> {
        self.lock("images.lock", FlockOperation::LockExclusive).map(|lock| lock.expect("a lock that is waited for"))
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> Result<Option<Lock>, Problem> {
        let path = self.root.join(name);
        let file = open(&path).map_err(at(&path))?;
        let locked = take(&file, operation).map_err(at(&path))?;
        Ok(locked.then_some(Lock { _file: file }))
    }
}

/// Opens or makes the file at `path` and takes its lock, waiting for it. The file that is locked is the one that still
/// has that name: whoever held the lock before may have given the file another name, or removed it.
///
/// `wait` is called once before there is something to wait for.
pub fn claim(path: &Path, wait: impl FnOnce()) -> io::Result<File> {
    let mut wait = Some(wait);
    loop {
        let file = open(path)?;
        if !take(&file, FlockOperation::NonBlockingLockExclusive)? {
            if let Some(wait) = wait.take() {
                wait();
            }
            take(&file, FlockOperation::LockExclusive)?;
        }
        let here = file.metadata()?;
        match path.metadata() {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => return Ok(file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}
