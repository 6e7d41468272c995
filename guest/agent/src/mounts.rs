// SPDX-License-Identifier: Apache-2.0
//! The file systems that programs expect. Not needed to be ready, so mounted when something first needs them.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;

use rustix::fd::AsFd;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

struct FileSystem {
    kind: &'static CStr,
    at: &'static CStr,
    flags: MountFlags,
    options: &'static CStr,
}

const fn file_system(kind: &'static CStr, at: &'static CStr, flags: MountFlags, options: &'static CStr) -> FileSystem {
    FileSystem { kind, at, flags, options }
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The root of the container, as the agent has it.
pub const CONTAINER: &CStr = c"/container";
/// Control groups, where the agent has them.
pub const CGROUPS: &CStr = c"/run/cgroup";

/// What the agent needs for a container, which has its own of all others. In order: each directory is made in the file
/// system before it.
const FOR_CONTAINERS: [FileSystem; 4] = [
    file_system(c"devtmpfs", c"/dev", NOSUID.union(MountFlags::NOEXEC), c"mode=0755"),
    file_system(c"proc", c"/proc", NOTHING, c""),
    file_system(c"tmpfs", c"/run", NOSUID.union(MountFlags::NODEV), c"mode=0755"),
    file_system(c"cgroup2", CGROUPS, NOTHING, c""),
];

/// What a person at the console needs besides.
const FOR_PEOPLE: [FileSystem; 4] = [
    file_system(c"devpts", c"/dev/pts", NOSUID.union(MountFlags::NOEXEC), c"mode=0620,gid=5,ptmxmode=0666"),
    file_system(c"tmpfs", c"/dev/shm", NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    file_system(c"sysfs", c"/sys", NOTHING, c""),
    file_system(c"cgroup2", c"/sys/fs/cgroup", NOTHING, c""),
];

/// What could not be mounted.
#[derive(Debug)]
pub struct MountError {
    /// Where.
    pub at: &'static CStr,
    /// Why.
    pub error: Errno,
}

/// Mounts what is missing of what containers need. A kernel without one of the file systems is left without it.
///
/// # Errors
/// The first that failed; the others are mounted all the same.
pub fn prepare() -> Result<(), MountError> {
    mount_all(&FOR_CONTAINERS)
}

/// The same, and what a person needs.
///
/// # Errors
/// As for [`prepare`].
pub fn prepare_console() -> Result<(), MountError> {
    prepare().and(mount_all(&FOR_PEOPLE))
}

fn mount_all(file_systems: &[FileSystem]) -> Result<(), MountError> {
    let mut outcome = Ok(());
    for one in file_systems {
        match prepare_one(one) {
            // BUSY: it is there. NODEV: the kernel has no such file system.
            Ok(()) | Err(Errno::BUSY | Errno::NODEV) => {}
            Err(error) if outcome.is_ok() => outcome = Err(MountError { at: one.at, error }),
            Err(_) => {}
        }
    }
    outcome
}

fn prepare_one(one: &FileSystem) -> Result<(), Errno> {
    // The kernel would mount a second one over it.
    if one.kind == c"tmpfs" && rustix::fs::access(one.at, Access::EXISTS).is_ok() {
        return Ok(());
    }
    match mount(one.kind, one.at, one.kind, one.flags, one.options) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdir(one.at, Mode::from_raw_mode(0o755))?;
            mount(one.kind, one.at, one.kind, one.flags, one.options)
        }
        other => other,
    }
}

/// Detaches every file system that is on a block device, so that it is clean on disk; one that is in use becomes
/// read-only. Without `/proc` nothing can have been mounted by anyone.
pub fn release() {
    // What lies over a disk keeps it busy. There may have been no container.
    let _ = unmount(CONTAINER, UnmountFlags::empty());
    let Some(table) = read_table() else { return };
    for line in table.lines().rev() {
        if let Some(target) = block_device_mount(line)
            && unmount(target.as_str(), UnmountFlags::empty()).is_err()
        {
            let _ = mount_remount(target.as_str(), MountFlags::RDONLY, "");
        }
    }
}

fn read_table() -> Option<String> {
    String::from_utf8(read_file(c"/proc/self/mounts")?).ok()
}

/// Longest file that is read.
const MAX_FILE: usize = 1 << 20;

/// All of a file, if it can be read; not one without end, and not a FIFO that nobody writes to.
pub fn read_file(path: &CStr) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    read_to_end(rustix::fs::open(path, flags, Mode::empty()).ok()?)
}

/// All that is to be read of a file, if it has an end.
pub fn read_to_end(file: impl AsFd) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => return Some(content),
            Ok(_) if content.len() > MAX_FILE => return None,
            Ok(count) => content.extend_from_slice(chunk.get(..count)?),
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// The mount point in a line of `/proc/self/mounts`, if a block device is mounted there.
fn block_device_mount(line: &str) -> Option<String> {
    let mut fields = line.split(' ');
    fields.next()?.starts_with("/dev/").then_some(())?;
    fields.next().map(unescape)
}

/// The kernel writes blanks and backslashes as three octal digits (`seq_path()`).
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut plain = String::from(parts.next().unwrap_or_default());
    for part in parts {
        match part.split_at_checked(3).and_then(|(code, rest)| Some((u8::from_str_radix(code, 8).ok()?, rest))) {
            Some((byte, rest)) => {
                plain.push(char::from(byte));
                plain.push_str(rest);
            }
            None => plain.push_str(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_are_released() {
        assert_eq!(block_device_mount("/dev/vda / ext4 rw 0 0").as_deref(), Some("/"));
        assert_eq!(block_device_mount(r"/dev/vdb /mnt/a\040b\134 erofs ro 0 0").as_deref(), Some(r"/mnt/a b\"));
        for other in ["proc /proc proc rw 0 0", "tmpfs /run tmpfs rw 0 0", "", "/dev/vda"] {
            assert_eq!(block_device_mount(other), None, "{other}");
        }
    }
}
