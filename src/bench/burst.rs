// SPDX-License-Identifier: Apache-2.0
//! Many starts at once: so many workers, each of which starts the next when its last has ended.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::measure::{Stopwatch, nanoseconds};

/// How a number of starts went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Burst {
    /// From the first launch to the last end, in nanoseconds.
    pub all_ns: u64,
    /// To the first byte of each, or to its end where it wrote nothing, in nanoseconds.
    pub starts_ns: Vec<u64>,
}

/// Why there is no [`Burst`].
#[derive(Debug)]
pub enum NoBurst {
    /// The user wants no more.
    Interrupted,
    /// One of them failed.
    Because(String),
}

impl From<io::Error> for NoBurst {
    fn from(error: io::Error) -> Self {
        Self::Because(error.to_string())
    }
}

/// Starts `total` programs, with one worker for each of `commands`, which differ in nothing but what must not be shared.
///
/// # Errors
/// One failed, or the user wants no more.
pub fn run(stopwatch: &mut Stopwatch, commands: &[Vec<String>], total: usize) -> Result<Burst, NoBurst> {
    let (left, stop) = (AtomicUsize::new(total), AtomicBool::new(false));
    let (over, wait) = channel::<()>();
    let begun = Instant::now();
    let outcome = thread::scope(|scope| {
        let work = |command: &[String]| {
            let mut taken = Vec::new();
            let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            while !stop.load(Ordering::Relaxed) && take() {
                taken.push(start(command).inspect_err(|_| stop.store(true, Ordering::Relaxed))?);
            }
            Ok::<_, NoBurst>(taken)
        };
        let workers: Vec<_> = commands
            .iter()
            .map(|command| {
                let over = over.clone();
                scope.spawn(move || {
                    let outcome = work(command);
                    drop(over);
                    outcome
                })
            })
            .collect();
        drop(over);
        // What runs comes to its end; nothing more is started.
        while wait.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
            if stopwatch.is_interrupted() {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let all_ns = nanoseconds(begun.elapsed());
        let failed = || NoBurst::Because("a thread has failed".to_owned());
        let starts = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(failed())));
        let starts = starts.collect::<Result<Vec<_>, _>>()?;
        Ok(Burst { all_ns, starts_ns: starts.concat() })
    });
    stopwatch.settle();
    match outcome {
        Ok(_) if stopwatch.is_interrupted() => Err(NoBurst::Interrupted),
        outcome => outcome,
    }
}

/// One start, to its end; gives the time to its first byte.
fn start(command: &[String]) -> Result<u64, NoBurst> {
    let [program, arguments @ ..] = command else { return Err(NoBurst::Because("there is no program".to_owned())) };
    let mut command = Command::new(program);
    // A Ctrl-C on our terminal is ours to handle.
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
    let begun = Instant::now();
    let mut child = command.spawn()?;
    let (mut first, mut buffer) = (None, [0; 4096]);
    if let Some(mut output) = child.stdout.take() {
        while output.read(&mut buffer)? > 0 {
            first.get_or_insert_with(|| begun.elapsed());
        }
    }
    let status = child.wait()?;
    match status.success() {
        true => Ok(nanoseconds(first.unwrap_or_else(|| begun.elapsed()))),
        false => Err(NoBurst::Because(format!("one of several at once failed: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[test]
    fn workers_share_the_starts_and_the_first_failure_ends_it() {
        // A process of its own, since the stopwatch takes over signals and orphans: as in tests/stopwatch.rs.
        let mut taken = Vec::new();
        for command in [words("echo a"), words("true")] {
            taken.push(start(&command).unwrap());
        }
        assert!(taken.iter().all(|ns| *ns > 0));
        assert!(matches!(start(&words("exit 3")), Err(NoBurst::Because(why)) if why.contains('3')));
        assert!(start(&["/no/such".to_owned()]).is_err() && start(&[]).is_err());
    }
}
