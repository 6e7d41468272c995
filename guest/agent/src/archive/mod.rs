// SPDX-License-Identifier: Apache-2.0
//! Files of the container as a tar archive, out and in: what `cp` on the host asks for. It runs in a child of the agent's,
//! within the container's root, in place of a program.

mod format;
mod pack;
mod unpack;

#[cfg(test)]
mod tests;

use alloc::format;
use alloc::string::String;

pub use pack::pack;
pub use unpack::unpack;

use coracle_protocol::Task;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;

use crate::sys;

/// Exit status of what went wrong.
const FAILED: u8 = 1;

/// Does the task with the process's standard streams, and ends the process.
pub fn run(task: &Task) -> ! {
    // The agent's ends of our own pipes among them, without which there is an end to our input.
    sys::close_from(3);
    // SAFETY: every process of the agent's has its three streams by now, and nobody closes them.
    let [input, output, errors] = [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let outcome = match task {
        Task::Program => Ok(()),
        Task::Pack(pack) => pack::pack(pack, output),
        Task::Unpack(unpack) => unpack::unpack(unpack, input),
    };
    match outcome {
        Ok(()) => sys::exit(0),
        Err(text) => {
            // Who does not listen is told by the status.
            let _ = write_all(errors, text.as_bytes());
            sys::exit(FAILED)
        }
    }
}

/// What went wrong with a file.
fn failed(path: &[u8], error: Errno) -> String {
    let path = String::from_utf8_lossy(path);
    // Without a libc there is nobody who has words for all.
    let why = match error {
        Errno::NOENT => "there is no such file or directory",
        Errno::NOTDIR => "what is in the way is no directory",
        Errno::ISDIR => "there is a directory of that name",
        Errno::ROFS => "it cannot be written there",
        Errno::NOSPC | Errno::DQUOT => "no space is left there",
        Errno::IO => "input/output error",
        error => return format!("{path}: {error}"),
    };
    format!("{path}: {why}")
}

fn write_all(to: impl AsFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
