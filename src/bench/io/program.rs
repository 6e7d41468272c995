// SPDX-License-Identifier: Apache-2.0
//! A program that is asked something, and may be long about it.

use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::super::backend::Failed;
use super::super::interrupt::Interrupt;

/// Bytes that are read of what a program writes: what runs in a sandbox may write without end.
const MOST: u64 = 1 << 20;
/// Exit status of `exec` where there is no such program.
const NOT_FOUND: i32 = 127;

/// Runs it and gives what it has written, where it ends with status 0. After `limit` it is killed, and where the user wants
/// no more.
///
/// # Errors
/// It does not end well, or in time.
pub fn ask(words: &[String], limit: Duration, interrupt: &mut Interrupt) -> Result<String, Failed> {
    let [program, arguments @ ..] = words else { return Err(Failed::Because("there is no program".to_owned())) };
    let mut command = Command::new(program);
    // A Ctrl-C on our terminal is ours to handle.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| Failed::Because(format!("cannot start {program}: {error}")))?;
    let (stdout, stderr) = (child.stdout.take().map(read), child.stderr.take().map(read));
    let waited = wait(Pid::from_child(&child), limit, interrupt);
    if waited.is_err() {
        // One that has just ended needs no signal.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    }
    let status = child.wait()?;
    // What it has left behind may have its pipes yet: they are not waited for.
    waited?;
    let [stdout, stderr] = [stdout, stderr].map(|text| text.and_then(|text| text.join().ok()).unwrap_or_default());
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255);
    if code == 0 {
        return Ok(stdout);
    }
    let said: Vec<&str> = stderr.lines().chain(stdout.lines()).map(str::trim).filter(|line| !line.is_empty()).collect();
    let said: String = said.join("; ").chars().take(300).collect();
    Err(Failed::Because(match code {
        NOT_FOUND => format!("it is not there: {said}"),
        _ => format!("{program} ended with status {code}: {said}"),
    }))
}

fn wait(pid: Pid, limit: Duration, interrupt: &mut Interrupt) -> Result<(), Failed> {
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from)?;
    let begun = Instant::now();
    loop {
        let Some(left) = limit.checked_sub(begun.elapsed()) else {
            return Err(Failed::Because(format!("it did not end within {} s", limit.as_secs())));
        };
        let left = Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: 999_999_999 };
        let (ended, signalled) = {
            let mut watched = [PollFd::new(&process, PollFlags::IN), PollFd::new(interrupt.signals(), PollFlags::IN)];
            match poll(&mut watched, Some(&left)) {
                Err(Errno::INTR) => continue,
                polled => polled.map_err(io::Error::from)?,
            };
            (!watched[0].revents().is_empty(), !watched[1].revents().is_empty())
        };
        if ended {
            return Ok(());
        }
        if signalled && interrupt.has_come() {
            return Err(Failed::Interrupted);
        }
    }
}

fn read(from: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is what there is.
        let _ = from.take(MOST).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<String, Failed> {
        let words = ["sh", "-c", script].map(str::to_owned);
        ask(&words, limit, &mut Interrupt::new().unwrap())
    }

    #[test]
    fn a_program_answers_fails_or_is_ended() {
        let because = |outcome| match outcome {
            Err(Failed::Because(why)) => why,
            other => panic!("{other:?}"),
        };
        let long = Duration::from_secs(60);
        assert_eq!(sh("echo yes", long).unwrap(), "yes\n");
        assert_eq!(because(sh("echo no >&2; exit 3", long)), "sh ended with status 3: no");
        assert!(because(sh("echo sh: x not found >&2; exit 127", long)).starts_with("it is not there: sh: x"));
        assert!(because(sh("sleep 100", Duration::ZERO)).contains("did not end"));
        // One that writes without end is cut off.
        assert!(because(sh("exec yes", long)).starts_with("sh ended with status 141"));
    }
}
