// SPDX-License-Identifier: Apache-2.0
//! Root's rights, given up: another root directory (chroot(2)), a user that nobody else is (credentials(7)), no
//! capabilities (capabilities(7)).
//!
//! System calls are made directly: those of the C library change all threads, by a signal to each, and know no way to
//! leave the file system's user alone.

use std::ffi::c_long;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

/// Users of VMMs are this and their process number, which is at most 2^22 (proc(5), `pid_max`): above what systemd gives
/// to containers and services, and below 2^31.
const USERS: u32 = 2_097_152_000;
/// The user of nobody's files; taken where this process is root of a user namespace that does not know the others.
const NOBODY: u32 = 65_534;
/// A directory in which nothing can be made, and nothing is but this process's numbers.
const EMPTY: &std::ffi::CStr = c"/proc/self/fdinfo";

/// `struct __user_cap_header_struct` for this thread, with `_LINUX_CAPABILITY_VERSION_3` (`linux/capability.h`).
const HEADER: [u32; 2] = [0x2008_0522, 0];
/// `CAP_SETGID` and `CAP_SETUID`.
const SET_IDS: u32 = 1 << 6 | 1 << 7;
/// These and `CAP_SYS_CHROOT`.
const ROOTS: u32 = SET_IDS | 1 << 18;

/// Whether this process may change its root directory and its user: that is root as a rule, but for root in some
/// containers.
pub fn has_roots() -> bool {
    let mut data = [[0; 3]; 2];
    // SAFETY: both have the size and layout of what the kernel reads and writes.
    let asked = unsafe { libc::syscall(libc::SYS_capget, HEADER.as_ptr(), data.as_mut_ptr()) };
    asked == 0 && data[0][0] & ROOTS == ROOTS
}

/// Makes `directory`, or an empty one, the root directory of this process, and its working directory.
///
/// # Errors
/// The system's: without an own directory, as a rule there is no `/proc`.
pub fn change_root(directory: Option<&File>) -> io::Result<()> {
    // SAFETY: the calls take a descriptor that is open, and strings that end in NUL.
    unsafe {
        match directory {
            Some(directory) => done(libc::fchdir(directory.as_raw_fd()).into())?,
            None => done(libc::chdir(EMPTY.as_ptr()).into())?,
        }
        done(libc::chroot(c".".as_ptr()).into())
    }
}

/// Makes this thread one of a user of its own, without capabilities. With `keeps_files` the kernel still takes it for root
/// where it looks at files: unix sockets in the directory that is left are root's. In a user namespace that has no other
/// users, it stays who it is.
///
/// # Errors
/// The system's.
pub fn give_up(keeps_files: bool) -> io::Result<()> {
    let own = USERS.saturating_add(std::process::id());
    // SAFETY: all take numbers only, and `setgroups` is told of no groups.
    unsafe {
        // Some user namespaces forbid it.
        done(libc::syscall(libc::SYS_setgroups, 0, 0)).or_else(unless(libc::EPERM))?;
        if keeps_files {
            done(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        }
        if let Err(error) = become_user(own) {
            unless(libc::EINVAL)(error)?;
            become_user(NOBODY).or_else(unless(libc::EINVAL))?;
        }
        if keeps_files {
            capabilities(SET_IDS)?;
            // They tell no errors, only what was before.
            libc::syscall(libc::SYS_setfsgid, 0);
            libc::syscall(libc::SYS_setfsuid, 0);
        }
    }
    drop_capabilities()
}

/// Leaves this thread no capabilities.
///
/// # Errors
/// The system's.
pub fn drop_capabilities() -> io::Result<()> {
    capabilities(0)
}

/// Moves this process into a user namespace in which there is its user alone, and that has all capabilities there
/// (user_namespaces(7)).
///
/// # Errors
/// The system's: `EPERM` and `ENOSPC` where the administrator allows none.
pub fn own_namespace() -> io::Result<()> {
    // SAFETY: both take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    // SAFETY: it takes a number.
    done(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Passes an error on that is not this one.
fn unless(errno: i32) -> impl Fn(io::Error) -> io::Result<()> {
    move |error| if error.raw_os_error() == Some(errno) { Ok(()) } else { Err(error) }
}

fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: they take numbers only.
    unsafe {
        done(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        done(libc::syscall(libc::SYS_setresuid, id, id, id))
    }
}

/// Sets this thread's effective and permitted capabilities; all of `set` are below 32.
fn capabilities(set: u32) -> io::Result<()> {
    // Two of `struct __user_cap_data_struct`: effective, permitted, inheritable.
    let data = [[set, set, 0], [0; 3]];
    // SAFETY: both have the size and layout of what the kernel reads.
    done(unsafe { libc::syscall(libc::SYS_capset, HEADER.as_ptr(), data.as_ptr()) })
}

fn done(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
