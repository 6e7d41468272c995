// SPDX-License-Identifier: Apache-2.0
//! A shell on the console, for a person.

use core::ffi::{CStr, c_char};
use core::ptr::null;

use rustix::fs::{Access, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::process::Pid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::sys::{self, Fork};

const SHELL: &CStr = c"/bin/sh";
const CONSOLE: &CStr = c"/dev/console";

/// Whether the initramfs has a shell.
pub fn has_shell() -> bool {
    rustix::fs::access(SHELL, Access::EXEC_OK).is_ok()
}

/// Starts a login shell that has the console as its controlling terminal.
///
/// # Errors
/// Those of `fork(2)`. If the shell itself cannot be started the child says so on the console and ends with status 127.
pub fn start_shell() -> Result<Pid> {
    // SAFETY: `run_shell` makes system calls only.
    match unsafe { sys::fork() }? {
        Fork::Parent(pid) => Ok(pid),
        Fork::Child => {
            // Without a terminal there is still a shell, on the descriptors that the kernel opened.
            let _ = take_terminal();
            run_shell()
        }
    }
}

/// Descriptors 0 to 2 become the console, of which this process becomes the leader: `^C` then reaches the foreground job.
fn take_terminal() -> Result<()> {
    rustix::process::setsid()?;
    let console = rustix::fs::open(CONSOLE, OFlags::RDWR, Mode::empty())?;
    rustix::process::ioctl_tiocsctty(&console)?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

fn run_shell() -> ! {
    sys::block_signals(0);
    // A leading dash makes it a login shell, which reads /etc/profile.
    let arguments = [c"-sh".as_ptr(), null()];
    let environment: [*const c_char; 5] = [
        c"PATH=/bin:/sbin:/usr/bin:/usr/sbin".as_ptr(),
        c"HOME=/".as_ptr(),
        c"TERM=vt100".as_ptr(),
        c"PS1=guest:\\w\\$ ".as_ptr(),
        null(),
    ];
    let error = sys::exec(SHELL, &arguments, &environment);
    sys::say(match error {
        Errno::NOENT => b"coracle-agent: cannot start /bin/sh: there is none in the initramfs; use console.cpio\n",
        Errno::NOEXEC => b"coracle-agent: cannot start /bin/sh: it is not a program for this machine\n",
        _ => b"coracle-agent: cannot start /bin/sh\n",
    });
    sys::exit(127)
}
