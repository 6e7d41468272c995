// SPDX-License-Identifier: Apache-2.0
//! Locks between processes, on files (`flock(2)`): the kernel's, which end with the process that holds them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Opens a lock's file, which is made if it is not there.
///
/// # Errors
/// The file system's.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Whether the lock was taken; it is held until the file is closed.
///
/// # Errors
/// The kernel's.
pub fn take(file: &File, operation: FlockOperation) -> io::Result<bool> {
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
