// SPDX-License-Identifier: Apache-2.0
//! The stopwatch of `coracle bench`, in a process where nobody else has children.

use std::process::Command;
use std::time::{Duration, Instant};

use coracle::bench::measure::{Outcome, Stopwatch, Until};

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

// All in one: the stopwatch waits for all children of its process.
#[test]
fn main_path_a_run_is_timed_to_its_first_byte_and_its_end() {
    let mut stopwatch = Stopwatch::new().unwrap();
    let patience = Duration::from_secs(60);
    let mut run = |script: &str, until, limit| stopwatch.run(&mut shell(script), until, limit).unwrap();
    let begun = Instant::now();
    let Outcome::Done(seen) =
        run("sleep 0.3; echo one; sleep 0.4; echo two; echo no >&2; exit 7", Until::Exit, patience)
    else {
        panic!("it was not seen to its end");
    };
    let whole = begun.elapsed();
    let first = Duration::from_nanos(seen.first_byte_ns.unwrap());
    let exit = Duration::from_nanos(seen.exit_ns);
    assert!(first >= Duration::from_millis(300) && exit - first >= Duration::from_millis(390), "{seen:?}");
    assert!(exit <= whole, "{exit:?} of {whole:?}");
    assert_eq!((seen.status, seen.output.as_slice(), seen.errors.as_str()), (7, &b"one\ntwo\n"[..], "no"));
    // What it leaves running counts, and has ended before the next run.
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let script =
        format!("(sleep 0.5; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; : > {}) & exit 0", mark.display());
    let Outcome::Done(seen) = run(&script, Until::Exit, patience) else { panic!("it was not seen to its end") };
    assert!(mark.exists() && seen.cpu_ns > 1_000_000 && seen.first_byte_ns.is_none(), "{seen:?}");
    // A byte ends a run, as does the limit, whatever the program thinks of signals.
    let Outcome::Done(seen) = run("printf '\\001\\002'; exec sleep 1000", Until::Byte(2), patience) else {
        panic!("the byte was not seen");
    };
    assert_eq!((seen.status, seen.first_byte_ns.is_some()), (137, true));
    let stubborn = "trap '' TERM; while :; do sleep 0.1; done";
    assert!(matches!(run(stubborn, Until::Exit, Duration::from_millis(200)), Outcome::TimedOut));
    assert!(stopwatch.run(&mut Command::new("no-such-program"), Until::Exit, patience).is_err());
}
