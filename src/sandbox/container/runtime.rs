// SPDX-License-Identifier: Apache-2.0
//! The OCI runtime: crun, runc, or another that takes their words.

use std::env;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_protocol::ErrorCode;
use rustix::process::{Pid, Signal, set_parent_process_death_signal};

use crate::failure::Failure;

/// The one that is used unless another is named.
pub const DEFAULT: &str = "crun";

/// Finds a runtime: a path, or the name of a program in the search path.
///
/// # Errors
/// There is none; `what` is what cannot be done then.
pub fn find(name: &Path, what: &str) -> Result<PathBuf, Failure> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|status| status.is_file() && status.permissions().mode() & 0o111 != 0)
    };
    let found = match name.components().count() {
        1 => {
            let places = env::var_os("PATH").unwrap_or_default();
            // A user's path often is without those for administrators.
            let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
            env::split_paths(&places).chain(more).map(|place| place.join(name)).find(is_program)
        }
        _ => std::path::absolute(name).ok().filter(is_program),
    };
    found.ok_or_else(|| {
        let why = format!("there is no OCI runtime {}", name.display());
        Failure::new(what, why, "`apt-get install crun`, or --oci-runtime PATH; without --isolation a VM needs none")
    })
}

/// A runtime with the state of one container.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The program.
    pub program: PathBuf,
    /// Where it keeps what it knows.
    pub state: PathBuf,
    /// Where it says what went wrong.
    pub log: PathBuf,
    /// The container, as it calls it.
    pub id: String,
}

/// Standard streams of what is started.
pub type Standard = [OwnedFd; 3];

impl Runtime {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.state).arg("--log").arg(&self.log).args(words);
        command.stdin(Stdio::null()).current_dir("/");
        // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
        unsafe {
            // Whoever has lost the monitor is not to make a container any more.
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        command
    }

    /// Runs the container of a bundle, or, with a file that describes one, another process in it; gives its process
    /// number once it runs. `console` is a socket that its terminal comes to.
    ///
    /// # Errors
    /// For programs and for people.
    pub fn start(
        &self,
        what: &Start<'_>,
        pid_file: &Path,
        console: Option<&Path>,
        standard: Standard,
    ) -> Result<Pid, (ErrorCode, String)> {
        let mut command = match what {
            Start::Bundle(bundle) => {
                let mut command = self.command(&["run", "--detach", "--bundle"]);
                command.arg(bundle);
                command
            }
            Start::Process(file) => {
                let mut command = self.command(&["exec", "--detach", "--process"]);
                command.arg(file);
                command
            }
        };
        command.arg("--pid-file").arg(pid_file);
        command.args(console.into_iter().flat_map(|path| [Path::new("--console-socket"), path]));
        let [input, output, errors] = standard;
        command.arg(&self.id).stdin(input).stdout(output).stderr(errors);
        // A line of an earlier process is nothing of this one.
        let _ = fs::remove_file(&self.log);
        let status = command.status().map_err(|error| self.failed(&error))?;
        drop(command);
        if !status.success() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            return Err(refusal(&said, status.code()));
        }
        let pid = fs::read_to_string(pid_file).map_err(|error| self.failed(&error))?;
        let _ = fs::remove_file(pid_file);
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        pid.ok_or_else(|| (ErrorCode::FAILED, "the OCI runtime gives no process number".to_owned()))
    }

    /// The name of its processes.
    pub fn name(&self) -> String {
        self.program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn failed(&self, error: &io::Error) -> (ErrorCode, String) {
        (ErrorCode::FAILED, format!("{}: {error}", self.program.display()))
    }
}

/// What is to be started.
#[derive(Clone, Copy, Debug)]
pub enum Start<'a> {
    /// The container of a bundle.
    Bundle(&'a Path),
    /// A process, as this file describes it.
    Process(&'a Path),
}

/// What a runtime has said, which has no codes for programs to read.
fn refusal(said: &str, status: Option<i32>) -> (ErrorCode, String) {
    let mut lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains("level=warning"));
    let text = match lines.next_back() {
        Some(line) => line.split_once("msg=").map_or(line, |(_, rest)| rest.trim_matches('"')).replace("\\\"", "\""),
        None => format!("the OCI runtime has failed ({})", status.map_or("killed".to_owned(), |code| code.to_string())),
    };
    let lower = text.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let about_program = has(&["executable", "exec:", "exec format"]);
    let code = match about_program {
        true if has(&["not found", "no such file"]) => ErrorCode::NOT_FOUND,
        true if has(&["permission denied", "not permitted", "is a directory", "exec format"]) => {
            ErrorCode::NOT_EXECUTABLE
        }
        _ => ErrorCode::FAILED,
    };
    (code, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_say_is_understood() {
        // crun 1.8 and runc 1.1, as they wrote them.
        for (said, code) in [
            ("executable file `nope` not found in $PATH: No such file or directory\n", ErrorCode::NOT_FOUND),
            ("open executable: Operation not permitted\n", ErrorCode::NOT_EXECUTABLE),
            ("open executable: Permission denied\n", ErrorCode::NOT_EXECUTABLE),
            (
                "time=\"2026\" level=warning msg=\"unable to get oom kill count\" error=\"no such file or directory\"\n\
                 time=\"2026\" level=error msg=\"runc run failed: unable to start container process: exec: \\\"nope\\\": \
                 executable file not found in $PATH\"\n",
                ErrorCode::NOT_FOUND,
            ),
            (
                "time=\"2026\" level=error msg=\"unable to start container process: exec: \\\"/bin\\\": permission denied\"",
                ErrorCode::NOT_EXECUTABLE,
            ),
            ("mount `proc` to `/proc`: Operation not permitted\n", ErrorCode::FAILED),
            ("", ErrorCode::FAILED),
        ] {
            let (found, text) = refusal(said, Some(1));
            assert_eq!(found, code, "{text}");
            assert!(!text.contains("level=") && !text.is_empty(), "{text}");
        }
    }

    #[test]
    fn a_runtime_is_a_path_or_a_name() {
        assert_eq!(find(Path::new("/bin/sh"), "x"), Ok("/bin/sh".into()));
        assert!(find(Path::new("sh"), "x").unwrap().is_absolute());
        for none in ["no-such-runtime", "/no/such", "/etc/passwd", "/etc"] {
            assert!(find(Path::new(none), "x").unwrap_err().why.contains(none), "{none}");
        }
    }
}
