// SPDX-License-Identifier: Apache-2.0
//! By what a file is known again, without reading it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};

/// A file at a moment. Device numbers are left out: they change when a host restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Inode number.
    inode: u64,
    /// Bytes.
    size: u64,
    /// When its content changed last, in seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// When anything of it changed last; nobody can set it.
    changed: (i64, i64),
}

impl FileIdentity {
    /// The file as it is now.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether `now` is the same file with the same content, as far as its times tell.
    pub fn has_same_content(&self, now: &Self) -> Result<(), &'static str> {
        if self.size != now.size {
            Err("it has another size")
        } else if self.inode != now.inode {
            Err("it is another file")
        } else if self.modified != now.modified {
            Err("it has been written to since")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_known_again_until_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let identity = |path| FileIdentity::of(&File::open(path).unwrap()).unwrap();
        let before = identity(&path);
        assert_eq!(before, identity(&path));
        // The kernel's clock for files ticks with its timer.
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        assert_ne!(before, identity(&path));
        before.has_same_content(&identity(&path)).unwrap();
        let copy = folder.path().join("copy");
        std::fs::copy(&path, &copy).unwrap();
        assert_eq!(before.has_same_content(&identity(&copy)), Err("it is another file"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "two").unwrap();
        assert_eq!(before.has_same_content(&identity(&path)), Err("it has been written to since"));
        std::fs::write(&path, "three").unwrap();
        assert_eq!(before.has_same_content(&identity(&path)), Err("it has another size"));
    }
}
