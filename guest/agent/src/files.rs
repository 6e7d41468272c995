// SPDX-License-Identifier: Apache-2.0
//! What those who copy files have in common.

use alloc::ffi::CString;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use rustix::fd::BorrowedFd;
use rustix::fs::{RawDir, fgetxattr, flistxattr};
use rustix::io::Result;

/// Bytes that are copied with one system call.
pub const PIECE: usize = 1 << 20;
/// Bytes of the longest path.
pub const PATH_MAX: usize = 4096;
/// Bytes of directory entries that are read at once.
const ENTRIES: usize = 8 << 10;
/// Longest list of attributes' names, and longest attribute (`limits.h`).
const XATTR_MAX: usize = 64 << 10;

/// What is in a directory.
///
/// # Errors
/// The kernel's.
pub fn names(directory: BorrowedFd<'_>) -> Result<Vec<CString>> {
    let (mut names, mut buffer) = (Vec::new(), vec![MaybeUninit::uninit(); ENTRIES]);
    let mut entries = RawDir::new(directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().into());
        }
    }
    Ok(names)
}

/// Extended attributes that go with a file wherever it is copied: capabilities and the users' own.
pub fn attributes(file: BorrowedFd<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    // Most files have none, and not all file systems have them.
    let Ok(length @ 1..) = flistxattr(file, &mut [0u8; 0][..]) else { return found };
    let mut list = vec![0; length.min(XATTR_MAX)];
    let Ok(length) = flistxattr(file, &mut list[..]) else { return found };
    let mut value = vec![0; XATTR_MAX];
    for name in list.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        if (name.starts_with(b"user.") || name == b"security.capability")
            && let Ok(length) = fgetxattr(file, name, &mut value[..])
        {
            found.push((name.to_vec(), value.get(..length).unwrap_or_default().to_vec()));
        }
    }
    found
}
