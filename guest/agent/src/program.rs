// SPDX-License-Identifier: Apache-2.0
//! Finding a program, and becoming it.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_char;
use core::ptr::null;

use coracle_protocol::ErrorCode;
use rustix::io::Errno;

use crate::sys;
use crate::workload::Refusal;

/// Looks the program up in `PATH` as `execvp(3)` does; returns why there is none.
pub fn execute(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Refusal {
    let program = String::from_utf8_lossy(arguments.first().map(Vec::as_slice).unwrap_or_default());
    match try_execute(arguments, environment) {
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

fn try_execute(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Errno {
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
    let path = environment.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    let directories: Vec<&[u8]> =
        if program.contains(&b'/') { [&b""[..]].into() } else { path.split(|byte| *byte == b':').collect() };
    let mut outcome = Errno::NOENT;
    for directory in directories {
        let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        let Ok(file) = CString::new([directory, separator, program.as_slice()].concat()) else { continue };
        match sys::exec(&file, &pointers(&words), &pointers(&variables)) {
            Errno::NOENT | Errno::NOTDIR => {}
            error => outcome = error,
        }
    }
    outcome
}
