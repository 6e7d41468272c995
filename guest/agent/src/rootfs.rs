// SPDX-License-Identifier: Apache-2.0
//! The root of a container: the image, a layer for what is written, and what an OCI runtime mounts on top
//! (OCI runtime specification, "Default Filesystems" and "Default Devices").

use core::ffi::CStr;

use rustix::fs::{FileType, Mode, makedev, mkdir, mknodat, symlink};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, mount, mount_move};

use crate::mounts;

const IMAGE: &CStr = c"/image";
const WRITTEN: &CStr = c"/written";
const ROOT: &CStr = c"/container";

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Kind, place, flags, options; in order.
const MOUNTS: [(&CStr, &CStr, MountFlags, &CStr); 7] = [
    (c"proc", c"/proc", NOTHING, c""),
    (c"tmpfs", c"/dev", MountFlags::NOSUID, c"mode=755,size=65536k"),
    (
        c"devpts",
        c"/dev/pts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        c"newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    (c"tmpfs", c"/dev/shm", NOTHING, c"mode=1777,size=65536k"),
    (c"mqueue", c"/dev/mqueue", NOTHING, c""),
    (c"sysfs", c"/sys", NOTHING.union(MountFlags::RDONLY), c""),
    (c"cgroup2", c"/sys/fs/cgroup", NOTHING.union(MountFlags::RDONLY), c""),
];

/// Name, major and minor number.
const NODES: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
    (c"pts/ptmx", c"/dev/ptmx"),
];

/// Mounts the image on `device` with a layer in memory for what is written. Repeating it is free.
///
/// # Errors
/// The kernel's: there is no such device, or no EROFS file system on it.
pub fn assemble(device: &str) -> Result<()> {
    if mkdir(ROOT, Mode::from_raw_mode(0o755)) == Err(Errno::EXIST) {
        return Ok(());
    }
    mkdir(IMAGE, Mode::from_raw_mode(0o755))?;
    mkdir(WRITTEN, Mode::from_raw_mode(0o755))?;
    mount(device, IMAGE, c"erofs", MountFlags::RDONLY, c"")?;
    mount(c"tmpfs", WRITTEN, c"tmpfs", MountFlags::empty(), c"mode=755")?;
    mkdir(c"/written/upper", Mode::from_raw_mode(0o755))?;
    mkdir(c"/written/work", Mode::from_raw_mode(0o755))?;
    let layers = c"lowerdir=/image,upperdir=/written/upper,workdir=/written/work";
    mount(c"overlay", ROOT, c"overlay", MountFlags::empty(), layers)
}

/// Makes the assembled root that of this process, which has a mount namespace of its own, and mounts what belongs on
/// it.
///
/// # Errors
/// The kernel's, and what for.
pub fn enter() -> core::result::Result<(), (&'static CStr, Errno)> {
    go_there().map_err(|error| (ROOT, error))?;
    for (kind, place, flags, options) in MOUNTS {
        // The image may have it.
        let _ = mkdir(place, Mode::from_raw_mode(0o755));
        mount(kind, place, kind, flags, options).map_err(|error| (place, error))?;
    }
    // The modes below are meant as they are.
    let umask = rustix::process::umask(Mode::empty());
    for (name, major, minor) in NODES {
        let (mode, device) = (Mode::from_raw_mode(0o666), makedev(major, minor));
        mknodat(rustix::fs::CWD, name, FileType::CharacterDevice, mode, device).map_err(|error| (name, error))?;
    }
    rustix::process::umask(umask);
    LINKS.iter().try_for_each(|(target, name)| symlink(*target, *name).map_err(|error| (*name, error)))
}

fn go_there() -> Result<()> {
    rustix::process::chdir(ROOT)?;
    // The initramfs is not a mount that pivot_root(2) could put away: the new root is moved over it.
    mount_move(c".", c"/")?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

/// Makes `directory` and those above it where they are missing, and goes there.
///
/// # Errors
/// The kernel's.
pub fn change_directory(directory: &[u8]) -> Result<()> {
    for (end, _) in directory.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
        // Whether it is there shows at the end.
        let _ = mkdir(&directory[..end], Mode::from_raw_mode(0o755));
    }
    let _ = mkdir(directory, Mode::from_raw_mode(0o755));
    rustix::process::chdir(directory)
}

/// The image's `/etc/passwd` or `/etc/group`, from within the root; empty where there is none.
pub fn read(path: &CStr) -> alloc::vec::Vec<u8> {
    mounts::read_file(path).unwrap_or_default()
}
