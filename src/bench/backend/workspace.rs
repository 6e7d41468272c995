// SPDX-License-Identifier: Apache-2.0
//! A place for what backends need: in memory, in a mount namespace of our own, so that nothing of it outlives us.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use crate::sandbox::container::rootfs::enter_mount_namespace;

/// The place, and whether file systems can be mounted in it.
#[derive(Debug)]
pub struct Workspace {
    directory: TempDir,
    mounted: Result<(), String>,
}

impl Workspace {
    /// Makes it. With root's rights this thread, and what it starts from here on, is in a mount namespace of its own.
    ///
    /// # Errors
    /// There is no place for temporary files.
    pub fn new() -> io::Result<Self> {
        let directory = TempDir::with_prefix("coracle-bench-")?;
        let mounted = match rustix::process::geteuid().is_root() {
            true => enter(directory.path()).map_err(|error| format!("this host lets nobody mount: {error}")),
            false => Err("to mount the image's disk needs root's rights".to_owned()),
        };
        Ok(Self { directory, mounted })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Whether file systems can be mounted here; else the reason.
    pub fn can_mount(&self) -> Result<(), String> {
        self.mounted.clone()
    }

    /// A new directory in it.
    ///
    /// # Errors
    /// The file system's.
    pub fn make(&self, name: &str) -> io::Result<std::path::PathBuf> {
        let path = self.path().join(name);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        Ok(path)
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if self.mounted.is_ok() {
            // All that is mounted below goes with it; so does the memory.
            let _ = unmount(self.directory.path(), UnmountFlags::DETACH);
        }
    }
}

fn enter(directory: &Path) -> io::Result<()> {
    enter_mount_namespace()?;
    // Overlays cannot lie on overlays, which the directory may be on.
    Ok(mount("tmpfs", directory, "tmpfs", MountFlags::empty(), c"mode=700")?)
}
