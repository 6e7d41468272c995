// SPDX-License-Identifier: Apache-2.0
//! A snapshot's directory, which appears when all of it is on disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tempfile::TempDir;

use super::{MEMORY_FILE, STATE_FILE};

/// How the names of snapshots start that are being taken.
pub const NEW_PREFIX: &str = ".snapshot-";

/// A snapshot that is being taken; nothing of it is left unless it is published.
#[derive(Debug)]
pub struct NewSnapshot {
    directory: TempDir,
    state: File,
    memory: File,
}

impl NewSnapshot {
    /// Makes the two files, empty, in `parent`.
    ///
    /// # Errors
    /// The system's.
    pub fn begin(parent: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix(NEW_PREFIX).tempdir_in(parent)?;
        // Nobody is to write to them afterwards.
        let file = |name| {
            let path = directory.path().join(name);
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(path)
        };
        let (state, memory) = (file(STATE_FILE)?, file(MEMORY_FILE)?);
        Ok(Self { directory, state, memory })
    }

    /// Where it is for the time being; what is put beside the two files is published with them.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What goes with the request.
    pub fn files(&self) -> [&File; 2] {
        [&self.state, &self.memory]
    }

    /// Where they are until it has its name; what else is put there goes with them.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Has both files on disk.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        self.state.sync_all()?;
        self.memory.sync_all()
    }

    /// Gives it its name, in the directory in which it was begun.
    ///
    /// # Errors
    /// The system's; `AlreadyExists`, or `DirectoryNotEmpty`, where there is something.
    pub fn publish(self, name: &Path) -> io::Result<()> {
        self.sync()?;
        std::fs::rename(self.directory.path(), name)?;
        // It has another name now, and goes no more with this.
        let _ = self.directory.keep();
        let parent = name.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let count = || folder.path().read_dir().unwrap().count();
        drop(NewSnapshot::begin(folder.path()).unwrap());
        assert_eq!(count(), 0);
        let new = NewSnapshot::begin(folder.path()).unwrap();
        let name = folder.path().join("name");
        assert!(!name.exists());
        new.publish(&name).unwrap();
        assert_eq!(name.read_dir().unwrap().count(), 2);
        let second = NewSnapshot::begin(folder.path()).unwrap();
        assert!(second.publish(&name).is_err());
        assert_eq!(count(), 1);
    }
}
