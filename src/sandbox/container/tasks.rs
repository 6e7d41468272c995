// SPDX-License-Identifier: Apache-2.0
//! Files of a container as an archive, out and in, by the code that the agent in a guest has for it: in a thread that sees
//! nothing but the container's files.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_agent::archive::{pack, unpack};
use coracle_protocol::{Ended, EndedBy, Task};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::streams::Sockets;

/// The files that a task is about.
#[derive(Debug)]
pub enum Files {
    /// Those that a process of the container sees.
    Of(OwnedFd),
    /// A root that nobody has entered yet, and what of the host's is to be mounted in it: where, and what.
    In(PathBuf, Vec<(Vec<u8>, PathBuf)>),
}

/// Does a task; to be called by a thread that does nothing else afterwards.
pub fn run(task: &Task, files: Files, sockets: &Sockets) -> Ended {
    let outcome = enter(files).map_err(|error| format!("cannot enter the container: {error}"));
    let missing = || "there is no stream for it".to_owned();
    let outcome = outcome.and_then(|()| match task {
        Task::Program => Ok(()),
        Task::Pack(task) => pack(task, sockets.stdout.as_ref().ok_or_else(missing)?.as_fd()),
        Task::Unpack(task) => unpack(task, sockets.stdin.as_ref().ok_or_else(missing)?.as_fd()),
    });
    let status = match outcome {
        Ok(()) => 0,
        Err(text) => {
            if let Some(mut errors) = sockets.stderr.as_ref() {
                // Who does not listen is told by the status.
                let _ = errors.write_all(text.as_bytes());
            }
            1
        }
    };
    Ended { by: EndedBy::Exit(status), oom: false }
}

fn enter(files: Files) -> io::Result<()> {
    // SAFETY: this changes the root, the working directory and the mount namespace of the calling thread alone.
    if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match files {
        Files::Of(process) => Ok(move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::MOUNT)?),
        Files::In(root, mounts) => enter_root(&root, &mounts),
    }
}

fn enter_root(root: &Path, mounts: &[(Vec<u8>, PathBuf)]) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let open = |(target, source): &(Vec<u8>, PathBuf)| -> io::Result<_> {
        Ok((target.clone(), open_tree(CWD, source, flags)?, std::fs::metadata(source)?.is_dir()))
    };
    let sources = mounts.iter().map(open).collect::<io::Result<Vec<_>>>()?;
    rustix::process::chroot(root)?;
    rustix::process::chdir("/")?;
    // Within the root by now: whatever links it has, they lead to places in it.
    for (target, source, is_directory) in sources {
        let path = Path::new(std::str::from_utf8(&target).map_err(io::Error::other)?);
        if !path.exists() && is_directory {
            std::fs::create_dir_all(path)?;
        } else if !path.exists() {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            rustix::fs::open(path, OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))?;
        }
        move_mount(&source, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    Ok(())
}
