// SPDX-License-Identifier: Apache-2.0
//! What a container gets from outside: mounts of the user's, and files that the host has made.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use coracle_protocol::{Container, ErrorCode, File, Mount, Source};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, mkdir};
use rustix::io::{Errno, Result};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_remount, move_mount, open_tree};

use crate::fill::{Unfilled, fill};
use crate::rootfs::make_directories;
use crate::workload::{Refusal, failed};

/// Where what is mounted singly comes from, in file systems of the agent's.
const FILES: &str = "/run/files";
const SHARES: &str = "/run/shares";

/// Mounts of one file each that are not anywhere yet.
pub struct Inserts {
    /// One for each of the container's files.
    files: Vec<OwnedFd>,
    /// One for each of the mounts that is of a file.
    shared: Vec<OwnedFd>,
}

/// Opens what can be reached only from outside the container's root.
///
/// # Errors
/// What the kernel refused.
pub fn open(container: &Container) -> core::result::Result<Inserts, Refusal> {
    let mut files = Vec::with_capacity(container.files.len());
    if !container.files.is_empty() {
        make_own_directory(FILES).map_err(failed(FILES))?;
    }
    for (number, file) in container.files.iter().enumerate() {
        let path = file.path.escape_ascii();
        let made = write(number, file).and_then(|path| alone(path.as_str()));
        files.push(made.map_err(failed(format_args!("cannot make file {path}")))?);
    }
    let mut shared = Vec::new();
    for (number, one) in container.mounts.iter().enumerate() {
        if let Source::SharedFile(tag, name) = &one.source {
            let file = open_shared(number, tag.as_str(), name);
            shared.push(file.map_err(failed(format_args!("cannot find {} in share {tag}", name.escape_ascii())))?);
        }
    }
    Ok(Inserts { files, shared })
}

/// Opens the files of a container that was made with nothing in them.
///
/// # Errors
/// The kernel's.
pub fn empty_files(container: &Container) -> Result<Vec<OwnedFd>> {
    let open = |number| {
        rustix::fs::open(format!("{FILES}/{number}").as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    };
    (0..container.files.len()).map(open).collect()
}

/// Writes into them what is in these.
///
/// # Errors
/// What the kernel refused.
pub fn fill_files(files: &[OwnedFd], container: &Container) -> core::result::Result<(), Refusal> {
    files.iter().zip(&container.files).try_for_each(|(file, with)| {
        write_all(file, &with.content).map_err(failed(format_args!("cannot make file {}", with.path.escape_ascii())))
    })
}

/// Puts everything where it belongs, from within the root; `progress` is called now and then where that takes long.
///
/// # Errors
/// What the kernel refused.
pub fn place(container: &Container, inserts: Inserts, progress: &mut dyn FnMut()) -> core::result::Result<(), Refusal> {
    let mut shared = inserts.shared.into_iter();
    for one in &container.mounts {
        let target = one.target.escape_ascii();
        mount_one(one, &mut shared, progress)
            .map_err(|why| (ErrorCode::FAILED, format!("cannot mount {target}: {why}")))?;
    }
    for (file, from) in container.files.iter().zip(inserts.files) {
        put_file(&from, &file.path).map_err(failed(format_args!("cannot put {} there", file.path.escape_ascii())))?;
    }
    Ok(())
}

fn mount_one(
    one: &Mount,
    shared: &mut impl Iterator<Item = OwnedFd>,
    progress: &mut dyn FnMut(),
) -> core::result::Result<(), Unfilled> {
    let (target, flags) = (one.target.as_slice(), MountFlags::from_bits_retain(one.flags));
    match &one.source {
        Source::Memory(options) => {
            make_directories(target);
            let options = CString::new(options.as_slice()).map_err(|_| Errno::INVAL)?;
            mount(c"tmpfs", target, c"tmpfs", flags, &*options)?;
        }
        Source::Shared(tag) => {
            make_directories(target);
            mount(tag.as_str(), target, c"virtiofs", flags, c"")?;
        }
        Source::Filled(tag) => {
            make_directories(target);
            let flags_of_directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let open = || rustix::fs::open(target, flags_of_directory, Mode::empty());
            let image = open()?;
            mount(tag.as_str(), target, c"virtiofs", flags, c"")?;
            fill(&image, &open()?, progress)?;
        }
        Source::SharedFile(..) => {
            put_file(&shared.next().ok_or(Errno::NOENT)?, target)?;
            mount_remount(target, MountFlags::BIND | flags, c"")?;
        }
    }
    Ok(())
}

/// Over the file that is there, which is made if there is none.
fn put_file(file: impl AsFd, path: &[u8]) -> Result<()> {
    let put = || {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        move_mount(file.as_fd(), c"", CWD, path, flags)
    };
    match put() {
        Err(Errno::NOENT) => {
            let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            make_directories(path.get(..end).unwrap_or_default());
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
            drop(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
            put()
        }
        other => other,
    }
}

/// Gives the files of a container that runs other content: as many, in the same order. They stay the same files, so that
/// all mounts of them show it.
///
/// # Errors
/// The kernel's: there are fewer of them.
pub fn rewrite(files: &[File]) -> Result<()> {
    files.iter().enumerate().try_for_each(|(number, file)| fill_file(number, file, OFlags::empty()).map(drop))
}

/// Writes a file of the agent's, and gives its name.
fn write(number: usize, file: &File) -> Result<String> {
    fill_file(number, file, OFlags::CREATE)
}

/// Gives its name.
fn fill_file(number: usize, file: &File, create: OFlags) -> Result<String> {
    let path = format!("{FILES}/{number}");
    let flags = create | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC;
    write_all(&rustix::fs::open(path.as_str(), flags, Mode::from_raw_mode(file.mode & 0o7777))?, &file.content)?;
    Ok(path)
}

fn write_all(file: &OwnedFd, mut rest: &[u8]) -> Result<()> {
    while !rest.is_empty() {
        let count = rustix::io::write(file, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Mounts a share where only the agent sees it, and gives a mount of one of its files.
fn open_shared(number: usize, tag: &str, name: &[u8]) -> Result<OwnedFd> {
    make_own_directory(SHARES)?;
    let share = format!("{SHARES}/{number}");
    make_own_directory(&share)?;
    mount(tag, share.as_str(), c"virtiofs", MountFlags::empty(), c"")?;
    if name.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    alone([share.as_bytes(), b"/", name].concat().as_slice())
}

fn alone(path: impl rustix::path::Arg) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    open_tree(CWD, path, flags)
}

fn make_own_directory(path: &str) -> Result<()> {
    match mkdir(path, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
