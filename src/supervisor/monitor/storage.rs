// SPDX-License-Identifier: Apache-2.0
//! The disk for what a container writes: sparse, so that it takes of the host what is in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::sparse;

/// Its name in a container's directory, and in a snapshot's.
pub const FILE: &str = "written.ext4";

/// No checksums of metadata, which a third of the work of a mount would go into; a small journal, for VMs that are
/// killed; no reserved blocks, since root is the only user of the disk.
const OPTIONS: [&str; 11] = ["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^metadata_csum", "-J", "size=4", "-E"];
/// The file reads as zeroes already: 168 MB of them need not be written. From e2fsprogs 1.47 on.
const ZEROED: &str = "nodiscard,assume_storage_prezeroed=1";
const OLDER: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";

/// The disk in this directory; made, of `size` bytes, if it is not there.
///
/// # Errors
/// There is no room, or no `mke2fs`.
pub fn disk(directory: &Path, size: u64) -> Result<PathBuf, Failure> {
    let path = directory.join(FILE);
    if path.exists() {
        return Ok(path);
    }
    let new = directory.join("written.new");
    let what = "cannot make a disk for what the container writes";
    let failed = |error: io::Error| Failure::new(what, error, "free space, or `--storage-size 0` to write into memory");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(failed)?;
    file.set_len(size).map_err(failed)?;
    let make = |extended: &str| {
        let mut command = Command::new("mke2fs");
        command.env("PATH", search_path()).args(OPTIONS).arg(extended).arg(&new).stdin(Stdio::null());
        let made = command.output();
        made.map_err(|error| Failure::new(what, format!("cannot run mke2fs: {error}"), "install e2fsprogs"))
    };
    let mut made = make(ZEROED)?;
    if !made.status.success() {
        made = make(OLDER)?;
    }
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr).trim().lines().last().unwrap_or("mke2fs failed").to_owned();
        return Err(Failure::new(what, why, "a larger --storage-size, or more free space"));
    }
    fs::rename(&new, &path).map_err(failed)?;
    Ok(path)
}

/// The disk in this directory, made anew as a copy of that of a snapshot.
///
/// # Errors
/// There is no room.
pub fn copy_of(snapshot: &Path, directory: &Path) -> Result<PathBuf, Failure> {
    let (path, new) = (directory.join(FILE), directory.join("written.new"));
    let copied = copy(&snapshot.join(FILE), &new).and_then(|()| fs::rename(&new, &path));
    let failed = |error| Failure::new("cannot copy the disk of the snapshot", error, "free space");
    copied.map(|()| path).map_err(failed)
}

/// Copies a disk; a copy that is there already is replaced.
///
/// # Errors
/// The system's.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let to = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(to)?;
    sparse::copy(&File::open(from)?, &to)
}

/// A user's path often is without the directories where `mke2fs` is.
fn search_path() -> String {
    std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin"
}
