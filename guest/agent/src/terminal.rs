// SPDX-License-Identifier: Apache-2.0
//! Terminals of the container's own `devpts`, so that its programs find theirs by name.

use alloc::format;
use core::ffi::CStr;

use coracle_protocol::WindowSize;
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Result;
use rustix::mount::mount_bind;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const MULTIPLEXER: &CStr = c"/dev/pts/ptmx";
const CONSOLE: &CStr = c"/dev/console";

/// In the child, within its root, as leader of a session without a terminal: opens one, and makes it the session's.
/// Gives the agent's end and the child's.
pub fn open(size: WindowSize) -> Result<(OwnedFd, OwnedFd)> {
    let ours = rustix::fs::open(MULTIPLEXER, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    unlockpt(&ours)?;
    let its = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::process::ioctl_tiocsctty(&its)?;
    resize(&ours, size)?;
    Ok((ours, its))
}

/// Changes the size, of which the kernel tells the foreground process with SIGWINCH.
pub fn resize(terminal: impl AsFd, size: WindowSize) -> Result<()> {
    tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })
}

/// Makes the child's end of a terminal the container's console as well, as an OCI runtime does.
pub fn make_console(its: impl AsFd) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    drop(rustix::fs::open(CONSOLE, flags, Mode::from_raw_mode(0o600))?);
    let name = format!("/proc/self/fd/{}", its.as_fd().as_raw_fd());
    mount_bind(name.as_str(), CONSOLE)
}
