// SPDX-License-Identifier: Apache-2.0
//! The root of a namespace container: the image's EROFS disk and a layer for what is written, mounted by the host's
//! kernel, in a mount namespace that goes with those who use it. Nothing is left on the host, however they end.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::cgroup;

/// Bytes read of a file of users.
const LIMIT: u64 = 1 << 20;
/// A loop device that is found in use may be given back before it is mounted again.
const TRIES: usize = 3;

/// Gives this thread, and what it starts from here on, a mount namespace of its own. What the host mounts is seen in it;
/// what is mounted in it is not seen outside.
///
/// # Errors
/// The kernel's.
pub fn enter_mount_namespace() -> io::Result<()> {
    // SAFETY: this changes the mount namespace of the calling thread alone, and no descriptor.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    // Of a hybrid hierarchy (systemd, "Control Group APIs and Delegation") container runtimes of today want the part that
    // is of version 2, where version 1 is: it has no controllers there, but it groups.
    if cgroup::is_aside() {
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None)?;
    }
    Ok(())
}

/// Mounts an image's disk. Containers of one image share a loop device, and so the host's memory for its files.
///
/// # Errors
/// What `mount` says.
pub fn mount_image(disk: &Path, at: &Path) -> io::Result<()> {
    // Where nothing loads modules on demand, there is no loop device yet. What comes of it, `mount` will say.
    if !Path::new("/dev/loop-control").exists() {
        let _ = Command::new("modprobe").args(["-a", "loop", "erofs"]).stdin(Stdio::null()).output();
    }
    mount_file(disk, at, "erofs", "ro,loop")
}

/// Mounts the disk for what is written.
///
/// # Errors
/// As [`mount_image`].
pub fn mount_written(disk: &Path, at: &Path) -> io::Result<()> {
    mount_file(disk, at, "ext4", "loop,noatime,nosuid,nodev")
}

/// Through the program, which finds a loop device and gives it back with the mount.
fn mount_file(disk: &Path, at: &Path, kind: &str, options: &str) -> io::Result<()> {
    let mut said = String::new();
    for _ in 0..TRIES {
        let output =
            Command::new("mount").args(["-t", kind, "-o", options]).arg(disk).arg(at).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("mount failed").to_owned();
    }
    Err(io::Error::other(said))
}

/// The parts of a root.
#[derive(Clone, Debug)]
pub struct Layers {
    /// The image's files.
    pub lower: PathBuf,
    /// Holds what is written, and the overlay's own directory.
    pub upper: PathBuf,
    /// Both together.
    pub merged: PathBuf,
}

impl Layers {
    /// Mounts the two together; `device_nodes` says whether those on it are of any use.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mount(&self, device_nodes: bool) -> io::Result<()> {
        let (files, work) = (self.upper.join("files"), self.upper.join("work"));
        [&files, &work, &self.merged].into_iter().try_for_each(fs::create_dir_all)?;
        // Commas and colons part options; none of these paths, which are all our own, has one.
        let [lower, files, work] = [&self.lower, &files, &work].map(|path| path.display().to_string());
        let options = CString::new(format!("lowerdir={lower},upperdir={files},workdir={work}"))?;
        let flags = if device_nodes { MountFlags::empty() } else { MountFlags::NODEV };
        Ok(mount("overlay", &self.merged, "overlay", flags, options.as_c_str())?)
    }
}

/// A tmpfs with these options.
///
/// # Errors
/// The kernel's.
pub fn mount_memory(at: &Path, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    Ok(mount("tmpfs", at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
}

/// Opens something in a container's root, whose links lead nowhere out of it.
///
/// # Errors
/// The kernel's.
pub fn open_inside(root: &Path, name: &str, flags: OFlags) -> io::Result<File> {
    let root = openat2(CWD, root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?;
    let name = name.trim_start_matches('/');
    let name = if name.is_empty() { "." } else { name };
    Ok(openat2(root, name, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)?.into())
}

/// A file of users or groups of a container. One that is not there, or is no file, is empty.
pub fn read_inside(root: &Path, name: &str) -> Vec<u8> {
    let mut text = Vec::new();
    if let Ok(file) = open_inside(root, name, OFlags::RDONLY | OFlags::NONBLOCK)
        && file.metadata().is_ok_and(|status| status.is_file())
    {
        // What cannot be read has no users.
        let _ = file.take(LIMIT).read_to_end(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out_of_the_image() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "app:x:5:5::/:\n").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/passwd")).unwrap();
        assert_eq!(read_inside(root.path(), "etc/passwd"), b"");
        fs::write(root.path().join("etc/group"), "app:x:5:\n").unwrap();
        std::os::unix::fs::symlink("/etc/group", root.path().join("link")).unwrap();
        assert_eq!(read_inside(root.path(), "/link"), b"app:x:5:\n");
        assert_eq!(read_inside(root.path(), "etc"), b"");
    }
}
