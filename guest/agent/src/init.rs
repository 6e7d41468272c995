// SPDX-License-Identifier: Apache-2.0
//! PID 1 of a container that asks for one: it starts the program, passes signals on to it, reaps what is orphaned, and
//! ends when the program does.

use rustix::io::Result;
use rustix::process::{Pid, WaitOptions, wait};

use crate::sys::{self, Fork};

/// Signals that stop or continue the process itself cannot be caught, and those of a terminal are not for PID 1.
const ALL: u64 = u64::MAX;
const SIGCHLD: u8 = 17;

/// Forks: returns in the child, which goes on to its program.
///
/// # Errors
/// No process can be made.
///
/// # Safety
/// This process must have one thread only.
pub unsafe fn fork() -> Result<()> {
    // Before there is anyone who could send one. A blocked signal waits even where PID 1 has no handler.
    sys::block_signals(ALL);
    // SAFETY: with one thread the child may do what it likes.
    match unsafe { sys::fork() }? {
        Fork::Child => {
            sys::block_signals(0);
            Ok(())
        }
        Fork::Parent(program) => {
            // Neither the agent nor a reader of the program's output is to wait for this process.
            sys::close_from(0);
            look_after(program)
        }
    }
}

fn look_after(program: Pid) -> ! {
    loop {
        match sys::wait_for_signal(ALL) {
            Some(SIGCHLD) => {
                while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                    if pid == program {
                        let signal = status.terminating_signal().map(|signal| 128 + signal);
                        let status = status.exit_status().or(signal).and_then(|status| u8::try_from(status).ok());
                        sys::exit(status.unwrap_or(u8::MAX));
                    }
                }
            }
            Some(signal) => sys::kill(program, signal),
            None => {}
        }
    }
}
