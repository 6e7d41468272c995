// SPDX-License-Identifier: Apache-2.0
//! Signals as readable events, so that whoever is asked to end can end in order.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use vmm_sys_util::signal::create_sigset;

/// Blocks `signals` for this process and gives a descriptor that reads as `signalfd_siginfo`, without waiting.
///
/// Call it before threads are started: they inherit the mask.
///
/// # Errors
/// The kernel's, where it gives no descriptor.
pub fn readable(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = create_sigset(signals)?;
    // SAFETY: `set` is an initialised signal set, and the old mask is not asked for.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: `set` is an initialised signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just returned by the kernel and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The number of the next signal that has come through `signals`, if one has.
pub fn take(signals: &OwnedFd) -> Option<u32> {
    let mut information = [0; size_of::<libc::signalfd_siginfo>()];
    let count = rustix::io::read(signals, &mut information).ok()?;
    information.first_chunk().filter(|_| count == information.len()).map(|bytes| u32::from_ne_bytes(*bytes))
}
