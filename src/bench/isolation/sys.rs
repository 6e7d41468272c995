// SPDX-License-Identifier: Apache-2.0
//! System calls as a probe makes them: by number, each in a process of its own, so that what one changes, or where one
//! hangs, does not meet the next.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;

use super::catalogue::Seen;

/// An argument of a system call.
#[derive(Debug)]
pub enum Arg<'a> {
    /// A number, which is no address.
    Number(i64),
    /// Bytes for the kernel to read.
    In(&'a [u8]),
    /// Bytes for the kernel to write.
    Out(&'a mut [u8]),
}

impl From<i64> for Arg<'_> {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl<'a> From<&'a CStr> for Arg<'a> {
    fn from(text: &'a CStr) -> Self {
        Self::In(text.to_bytes_with_nul())
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::In(bytes)
    }
}

impl<'a> From<&'a mut [u8]> for Arg<'a> {
    fn from(bytes: &'a mut [u8]) -> Self {
        Self::Out(bytes)
    }
}

/// Makes a system call with up to six arguments. Not for calls that map, unmap or share memory.
///
/// # Errors
/// The kernel's.
#[allow(clippy::cast_possible_wrap, reason = "addresses in user space are below 2^47")]
pub fn call<const N: usize>(number: libc::c_long, arguments: [Arg<'_>; N]) -> io::Result<i64> {
    let mut raw = [0_i64; 6];
    for (place, argument) in raw.iter_mut().zip(arguments) {
        *place = match argument {
            Arg::Number(number) => number,
            Arg::In(bytes) => bytes.as_ptr() as i64,
            Arg::Out(bytes) => bytes.as_mut_ptr() as i64,
        };
    }
    let [a, b, c, d, e, f] = raw;
    // SAFETY: addresses are of buffers that outlive the call and are as long as the caller tells the kernel; numbers are
    // none, and the calls that would change the memory of this process are not made through here.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Fields of a structure of the kernel's, one after the other.
pub fn words(fields: &[u32]) -> Vec<u8> {
    fields.iter().flat_map(|field| field.to_ne_bytes()).collect()
}

/// Runs `look` in a process of its own, which is killed after so many seconds.
pub fn alone(seconds: u32, look: impl FnOnce() -> io::Result<Seen>) -> Seen {
    match forked(seconds, look) {
        Ok(seen) => seen,
        Err(error) => Seen::of_error(&error),
    }
}

fn forked(seconds: u32, look: impl FnOnce() -> io::Result<Seen>) -> io::Result<Seen> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors have just been made, and nothing else owns them.
    let (mut reader, writer) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: the probe has one thread, so the child may do what any process may.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        drop(reader);
        // SAFETY: alarm(2) takes a number; its signal ends this process, as nothing handles it.
        unsafe { libc::alarm(seconds) };
        let seen = look().unwrap_or_else(|error| Seen::of_error(&error));
        let text = serde_json::to_vec(&seen).unwrap_or_default();
        // Without an answer the parent says why there is none.
        let _ = (&writer).write_all(&text);
        // SAFETY: ends this process at once; nothing of the parent's is flushed twice.
        unsafe { libc::_exit(0) };
    }
    drop(writer);
    let mut text = Vec::new();
    reader.read_to_end(&mut text)?;
    let mut status = 0;
    // SAFETY: waits for our own child, and writes its status.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match serde_json::from_slice(&text) {
        Ok(seen) => Ok(seen),
        Err(_) if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGALRM => {
            Ok(Seen::Refused(format!("no answer within {seconds} s")))
        }
        Err(_) if libc::WIFSIGNALED(status) => {
            Ok(Seen::Refused(format!("killed by signal {}", libc::WTERMSIG(status))))
        }
        Err(_) => Ok(Seen::Refused("no answer".to_owned())),
    }
}

/// The name of an error as manuals have it, or its number.
pub fn name(error: &io::Error) -> String {
    let names = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENFILE, "ENFILE"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::EUSERS, "EUSERS"),
    ];
    let code = error.raw_os_error();
    let known = names.iter().find(|(number, _)| Some(*number) == code);
    known.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}
