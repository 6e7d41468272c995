// SPDX-License-Identifier: Apache-2.0
//! Finding a program, and becoming it.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_char;
use core::ptr::null;

use coracle_protocol::{ErrorCode, Process};
use rustix::io::Errno;

use crate::sys;
use crate::workload::Refusal;

/// Looks the program up in `PATH` as `execvp(3)` does; returns why there is none.
pub fn execute(process: &Process, environment: &[Vec<u8>]) -> Refusal {
    let arguments = process.arguments.as_slice();
    let program = String::from_utf8_lossy(arguments.first().map(Vec::as_slice).unwrap_or_default());
    match try_execute(arguments, environment, process.path()) {
        Errno::NOENT => (ErrorCode::NOT_FOUND, format!("`{program}` is not in the image, or not in its PATH")),
        error => {
            let why = match error {
                Errno::ACCESS => "permission denied: it is no file, or has no execute bit",
                Errno::NOEXEC => "it is neither a script with `#!` nor a program for this machine",
                Errno::TOOBIG => "its arguments and environment are too long",
                _ => "",
            };
            (ErrorCode::NOT_EXECUTABLE, format!("`{program}` cannot be executed: {why} ({error})"))
        }
    }
}

fn try_execute(arguments: &[Vec<u8>], environment: &[Vec<u8>], path: &[u8]) -> Errno {
    let terminated = |words: &[Vec<u8>]| words.iter().map(|word| CString::new(word.as_slice()).ok()).collect();
    let (Some(words), Some(variables)): (Option<Vec<CString>>, Option<Vec<CString>>) =
        (terminated(arguments), terminated(environment))
    else {
        return Errno::INVAL;
    };
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([null()]).collect()
    };
    let Some(program) = arguments.first() else { return Errno::NOENT };
    let mut outcome = Errno::NOENT;
    for file in candidates(program, path) {
        match sys::exec(&file, &pointers(&words), &pointers(&variables)) {
            Errno::NOENT | Errno::NOTDIR => {}
            error => outcome = error,
        }
    }
    outcome
}

/// Which files a program may be, in the order in which `execvp(3)` tries them.
pub fn candidates(program: &[u8], path: &[u8]) -> impl Iterator<Item = CString> {
    let path = if program.contains(&b'/') { &b""[..] } else { path };
    path.split(|byte| *byte == b':').filter_map(move |directory| {
        let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        CString::new([directory, separator, program].concat()).ok()
    })
}
