// SPDX-License-Identifier: Apache-2.0
//! The root of a container: the image, a layer for what is written, and what an OCI runtime mounts on top
//! (OCI runtime specification, "Default Filesystems" and "Default Devices").

use alloc::ffi::CString;
use alloc::format;
use core::ffi::CStr;

use coracle_protocol::{Container, Upper};
use rustix::fs::{FileType, Mode, makedev, mkdir, mknodat, symlink};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};

use crate::mounts::CONTAINER as ROOT;
use crate::workload::{Refusal, failed};
use crate::{inserts, masks, mounts};

const IMAGE: &CStr = c"/image";
const WRITTEN: &CStr = c"/written";

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const NOSUID_NOEXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const DEVPTS: &CStr = c"newinstance,ptmxmode=0666,mode=0620,gid=5";

/// Name, major and minor number.
const NODES: [(&CStr, u32, u32); 6] = [
    (c"/dev/null", 1, 3),
    (c"/dev/zero", 1, 5),
    (c"/dev/full", 1, 7),
    (c"/dev/random", 1, 8),
    (c"/dev/urandom", 1, 9),
    (c"/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 6] = [
    (c"/proc/kcore", c"/dev/core"),
    (c"/proc/self/fd", c"/dev/fd"),
    (c"/proc/self/fd/0", c"/dev/stdin"),
    (c"/proc/self/fd/1", c"/dev/stdout"),
    (c"/proc/self/fd/2", c"/dev/stderr"),
    (c"pts/ptmx", c"/dev/ptmx"),
];

/// Mounts the image with a layer for what is written. Repeating it is free.
///
/// # Errors
/// There is no such device, or no file system of the right kind on it.
pub fn assemble(container: &Container) -> core::result::Result<(), Refusal> {
    if make_directory(ROOT) == Err(Errno::EXIST) {
        return Ok(());
    }
    make_directory(IMAGE)
        .and_then(|()| mount(container.root.as_str(), IMAGE, c"erofs", MountFlags::RDONLY, c""))
        .map_err(failed(format_args!("cannot mount the image on {}", container.root)))?;
    make_directory(WRITTEN)
        .and_then(|()| match &container.upper {
            Upper::Memory(limit) => {
                let options = limit.map(|limit| format!("mode=755,size={limit}"));
                mount(
                    c"tmpfs",
                    WRITTEN,
                    c"tmpfs",
                    MountFlags::empty(),
                    &*c_string(options.as_deref().unwrap_or("mode=755"))?,
                )
            }
            // A new disk reads as zeroes: writing them into its inode tables would be work for nothing.
            Upper::Disk(device) => mount(device.as_str(), WRITTEN, c"ext4", MountFlags::NOATIME, c"noinit_itable"),
        })
        .map_err(failed("cannot mount what holds the written layer"))?;
    for place in [c"/written/upper", c"/written/work"] {
        match make_directory(place) {
            // On a disk they are from the last time.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("cannot make the written layer")(error)),
        }
    }
    let layers = c"lowerdir=/image,upperdir=/written/upper,workdir=/written/work";
    mount(c"overlay", ROOT, c"overlay", MountFlags::empty(), layers)
        .map_err(failed("cannot put the written layer over the image"))
}

/// Makes the assembled root that of this process, which has a mount namespace of its own, and mounts what belongs on
/// it; `progress` is called now and then where that takes long.
///
/// # Errors
/// What the kernel refused.
pub fn enter(container: &Container, progress: &mut dyn FnMut()) -> core::result::Result<(), Refusal> {
    let inserts = inserts::open(container)?;
    go_there().map_err(failed("cannot make the container's root that of the process"))?;
    mount_defaults(container)?;
    make_devices(container.privileged)?;
    for one in &container.sysctls {
        let name = one.name.escape_ascii();
        masks::set_parameter(one).map_err(failed(format_args!("cannot set kernel parameter {name}")))?;
    }
    inserts::place(container, inserts, progress)?;
    if !container.privileged {
        masks::mask()?;
    }
    if container.read_only {
        protect()?;
    }
    Ok(())
}

/// Makes the root of this process read-only.
///
/// # Errors
/// What the kernel refused.
pub fn protect() -> core::result::Result<(), Refusal> {
    mount_remount(c"/", MountFlags::BIND | MountFlags::RDONLY, c"").map_err(failed("cannot make the root read-only"))
}

fn go_there() -> Result<()> {
    rustix::process::chdir(ROOT)?;
    // The initramfs is not a mount that pivot_root(2) could put away: the new root is moved over it.
    mount_move(c".", c"/")?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")
}

fn mount_defaults(container: &Container) -> core::result::Result<(), Refusal> {
    let shm = c_string(&format!("mode=1777,size={}", container.shm_size)).map_err(failed("cannot size /dev/shm"))?;
    let kernel = if container.privileged { NOTHING } else { NOTHING.union(MountFlags::RDONLY) };
    let dev: (&CStr, &CStr) =
        if container.privileged { (c"devtmpfs", c"mode=755") } else { (c"tmpfs", c"mode=755,size=65536k") };
    let all = [
        (c"proc", c"/proc", NOTHING, c""),
        (dev.0, c"/dev", MountFlags::NOSUID, dev.1),
        (c"devpts", c"/dev/pts", NOSUID_NOEXEC, DEVPTS),
        (c"tmpfs", c"/dev/shm", NOTHING, shm.as_c_str()),
        (c"mqueue", c"/dev/mqueue", NOTHING, c""),
        (c"sysfs", c"/sys", kernel, c""),
        (c"cgroup2", c"/sys/fs/cgroup", kernel, c""),
    ];
    for (kind, place, flags, options) in all {
        // The image may have it.
        let _ = make_directory(place);
        mount(kind, place, kind, flags, options)
            .map_err(failed(format_args!("cannot mount {}", place.to_string_lossy())))?;
    }
    Ok(())
}

fn make_devices(privileged: bool) -> core::result::Result<(), Refusal> {
    let make = |name: &CStr, outcome: Result<()>| match outcome {
        // The kernel's own directory of devices has most of them.
        Err(Errno::EXIST) if privileged => Ok(()),
        other => other.map_err(failed(format_args!("cannot make {}", name.to_string_lossy()))),
    };
    // The modes below are meant as they are.
    let umask = rustix::process::umask(Mode::empty());
    for (name, major, minor) in NODES {
        let (mode, device) = (Mode::from_raw_mode(0o666), makedev(major, minor));
        make(name, mknodat(rustix::fs::CWD, name, FileType::CharacterDevice, mode, device))?;
    }
    rustix::process::umask(umask);
    LINKS.iter().try_for_each(|(target, name)| make(name, symlink(*target, *name)))
}

fn make_directory(path: &CStr) -> Result<()> {
    mkdir(path, Mode::from_raw_mode(0o755))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// Makes `directory` and those above it where they are missing; whether it is there shows when it is used.
pub fn make_directories(directory: &[u8]) {
    for (end, _) in directory.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/') {
        let _ = mkdir(&directory[..end], Mode::from_raw_mode(0o755));
    }
    let _ = mkdir(directory, Mode::from_raw_mode(0o755));
}

/// Goes to `directory`, which is made if it is missing.
///
/// # Errors
/// The kernel's.
pub fn change_directory(directory: &[u8]) -> Result<()> {
    match rustix::process::chdir(directory) {
        Err(Errno::NOENT) => {
            make_directories(directory);
            rustix::process::chdir(directory)
        }
        other => other,
    }
}

/// The image's `/etc/passwd` or `/etc/group`, from within the root; empty where there is none.
pub fn read(path: &CStr) -> alloc::vec::Vec<u8> {
    mounts::read_file(path).unwrap_or_default()
}
