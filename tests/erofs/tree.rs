// SPDX-License-Identifier: Apache-2.0
//! All that can be seen of a file tree, to compare two.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// What can be seen of a file.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    /// `st_mode`.
    pub mode: u32,
    /// `st_uid` and `st_gid`.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// `st_size` of files and links; directories have one that depends on the file system.
    pub size: Option<u64>,
    /// `st_nlink`, also for directories.
    pub links: u64,
    /// `st_rdev` of devices.
    pub device: Option<u64>,
    /// Target of a link.
    pub target: Option<PathBuf>,
    /// By name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// SHA-256 of a file's content.
    pub digest: Option<[u8; 32]>,
    /// The first path of the same inode.
    pub first: PathBuf,
}

/// All files below `root` by path; the root itself is the empty path.
pub fn look(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut pending = vec![PathBuf::new()];
    let mut paths = Vec::new();
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        if fs::symlink_metadata(&full).expect("a file").is_dir() {
            let entries = fs::read_dir(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()));
            pending.extend(entries.map(|entry| path.join(entry.expect("an entry").file_name())));
        }
        paths.push(path);
    }
    paths.sort();
    let mut inodes = BTreeMap::new();
    let mut seen = BTreeMap::new();
    for path in paths {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).expect("a file");
        let first = inodes.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
        seen.insert(path, look_at(&full, &metadata, first));
    }
    seen
}

fn look_at(path: &Path, metadata: &Metadata, first: PathBuf) -> Seen {
    let kind = metadata.file_type();
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: (!metadata.is_dir()).then(|| metadata.size()),
        links: metadata.nlink(),
        device: (kind.is_char_device() || kind.is_block_device()).then(|| metadata.rdev()),
        target: metadata.is_symlink().then(|| fs::read_link(path).expect("a link")),
        xattrs: xattrs(path),
        digest: metadata.is_file().then(|| digest(path)),
        first,
    }
}

fn digest(path: &Path) -> [u8; 32] {
    let mut file = fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            0 => return digest.finalize().into(),
            length => digest.update(&buffer[..length]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).expect("names of attributes");
    let names: Vec<Vec<u8>> =
        buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect();
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("an attribute");
        value.truncate(length);
        value
    };
    names.iter().map(|name| (name.clone(), value(name))).collect()
}

/// Every difference, a line each.
pub fn differences(expected: &BTreeMap<PathBuf, Seen>, found: &BTreeMap<PathBuf, Seen>) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, expected) in expected {
        match found.get(path) {
            None => lines.push(format!("{} is missing", path.display())),
            Some(found) if found != expected => {
                lines.push(format!("{}: expected {expected:?}\n    found {found:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|path| !expected.contains_key(*path));
    lines.extend(extra.map(|path| format!("{} should not be there", path.display())));
    lines
}
