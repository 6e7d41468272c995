// SPDX-License-Identifier: Apache-2.0
//! Signals as readable events, so that whoever is asked to end can end in order.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::signal::create_sigset;

/// Names of the first 31 signals on x86-64 (signal(7)), without `SIG`, from 1 on.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The number of a signal: `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`.
pub fn number(text: &str) -> Option<u8> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |first: u8, rest: &str| match rest {
        "" => Some(first),
        rest => first.checked_add_signed(rest.parse().ok()?).filter(|number| (34..=64).contains(number)),
    };
    match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => real_time(34, rest),
        (_, Some(rest)) => real_time(64, rest),
        _ => NAMES.iter().position(|other| *other == name).and_then(|at| u8::try_from(at + 1).ok()),
    }
}

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

/// Waits for signals, and gives each to `take_one`, until that says `false`.
pub fn each(signals: &OwnedFd, mut take_one: impl FnMut(u8) -> bool) {
    while poll(&mut [PollFd::new(signals, PollFlags::IN)], None).is_ok() {
        // Signal numbers are small.
        if let Some(number) = take(signals).and_then(|number| u8::try_from(number).ok())
            && !take_one(number)
        {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, expected) in [
            ("TERM", Some(15)),
            ("sigterm", Some(15)),
            ("9", Some(9)),
            ("SIGSYS", Some(31)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX+1", None),
            ("0", None),
            ("65", None),
            ("", None),
            ("FOO", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
    }
}
