// SPDX-License-Identifier: Apache-2.0
//! `coracle run`: programs of an image in a microVM, as a user sees them.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{CORACLE, PATIENCE, cache, eventually};
use tempfile::TempDir;

/// A store of images of its own, and a place for what is temporary, to see what is left there.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(home.0.path().join("tmp")).unwrap();
        home
    }

    /// `coracle run` with these words; `IMAGE` among them is the busybox image.
    fn command(&self, words: &[&str]) -> Command {
        let image = format!("oci:{}", cache("images/busybox").display());
        let mut command = Command::new(CORACLE);
        command.arg("run").args(words.iter().map(|word| if *word == "IMAGE" { image.as_str() } else { word }));
        command.env("CORACLE_DATA", self.0.path().join("data")).env("TMPDIR", self.0.path().join("tmp"));
        command
    }

    fn run(&self, words: &[&str]) -> (Option<i32>, String, String) {
        let outcome = common::run(&mut self.command(words));
        assert_eq!(self.left(), 0, "something is left in $TMPDIR");
        outcome
    }

    fn left(&self) -> usize {
        self.0.path().join("tmp").read_dir().unwrap().count()
    }
}

#[test]
fn main_path_output_errors_and_status_are_the_programs() {
    let script = "echo out; echo err >&2; exit 7";
    let (status, stdout, stderr) = Home::new().run(&["--rm", "IMAGE", "sh", "-c", script]);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(7), "out\n", "err\n"));
}

#[test]
fn a_program_finds_what_an_oci_runtime_promises() {
    let script = "echo $$; id -u; hostname; pwd; echo $A-$B; cat /proc/1/comm; echo to-stdout > /dev/stdout; \
                  head -c 3 /dev/zero | wc -c; touch /written && ls /written; ping -c 1 127.0.0.1 | grep -c 1.packets.received; grep CapBnd /proc/self/status; \
                  test -c /dev/null && test -w /dev/null && : > /dev/null && ls /dev/vda";
    let words =
        ["--hostname", "box", "-w", "/some/where", "-e", "A=1", "-e", "B", "--entrypoint", "sh", "IMAGE", "-c", script];
    let home = Home::new();
    let (status, stdout, stderr) = common::run(home.command(&words).env("B", "passed on"));
    let lines: Vec<&str> = stdout.lines().collect();
    let expected = ["1", "0", "box", "/some/where", "1-passed on", "sh", "to-stdout", "3", "/written", "1"];
    assert_eq!(lines.get(..10), Some(&expected[..]), "{stdout}\n{stderr}");
    // Docker's default set, and no disk of the host's in sight.
    assert_eq!(lines.get(10).and_then(|line| line.split_whitespace().last()), Some("00000000a80425fb"), "{stdout}");
    assert_eq!((status, lines.len()), (Some(1), 11), "{stdout}\n{stderr}");
}

#[test]
fn what_cannot_run_is_told_apart() {
    let home = Home::new();
    for (words, status, why) in [
        (&["IMAGE", "no-such-program"][..], 127, "is not in the image"),
        (&["IMAGE", "/dev"], 126, "permission denied"),
        (&["-u", "somebody", "IMAGE", "true"], 125, "user `somebody`"),
        (&["--entrypoint", "", "IMAGE"], 125, "names a program"),
        (&["--cpus", "0", "IMAGE", "true"], 125, "vCPUs"),
    ] {
        let (found, stdout, stderr) = home.run(words);
        assert_eq!((found, stdout.as_str()), (Some(status), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && stderr.lines().count() == 3, "{words:?}: {stderr}");
    }
}

#[test]
fn a_user_of_numbers_needs_no_entry() {
    let (status, stdout, stderr) = Home::new().run(&[
        "-u",
        "1000:77",
        "IMAGE",
        "sh",
        "-c",
        "id -u; id -g; echo $HOME; grep CapEff /proc/self/status",
    ]);
    assert_eq!(stdout, "1000\n77\n/\nCapEff:\t0000000000000000\n", "{stderr}");
    assert_eq!(status, Some(0));
}

#[test]
fn main_path_what_goes_in_comes_out() {
    let home = Home::new();
    // A pattern that repeats only after 251 bytes shows any loss or reordering.
    let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut child = home.command(&["-i", "IMAGE", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, data) = (child.stdin.take().unwrap(), sent.clone());
    let writing = thread::spawn(move || input.write_all(&data).unwrap());
    let mut back = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent, "{} bytes of {} came back, or changed", back.len(), sent.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(home.left(), 0);
}

#[test]
fn a_reader_that_stops_stops_the_program_and_all_of_much_output_comes() {
    let home = Home::new();
    let (status, stdout, stderr) = home.run(&["IMAGE", "sh", "-c", "yes 0123456789abcde | head -c 16777216"]);
    assert_eq!((status, stdout.len()), (Some(0), 16 << 20), "{stderr}");
    let mut child = home.command(&["IMAGE", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 4096]).unwrap();
    drop(output);
    let status = eventually("`yes` ends without a reader", || child.try_wait().unwrap());
    // PID 1 of a namespace is not killed by SIGPIPE: it sees the error.
    assert_eq!(status.code(), Some(1));
}

/// Sends SIGTERM to `coracle run`.
fn terminate(child: &std::process::Child) {
    // SAFETY: the process is our child and has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id().try_into().unwrap(), libc::SIGTERM) }, 0);
}

#[test]
fn the_first_signal_is_the_program_s_and_the_next_one_ends_it_all() {
    let home = Home::new();
    let script = "trap 'echo heard' TERM; echo here; while :; do sleep 0.1; done";
    let mut child = home.command(&["IMAGE", "sh", "-c", script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(output.next().unwrap().unwrap(), "here");
    terminate(&child);
    assert_eq!(output.next().unwrap().unwrap(), "heard");
    let started = std::time::Instant::now();
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    assert!(started.elapsed() < PATIENCE && started.elapsed() < Duration::from_secs(60));
    assert_eq!(home.left(), 0);
}

#[test]
fn a_signal_before_there_is_a_program_ends_it() {
    let home = Home::new();
    let mut child = home.command(&["IMAGE", "sleep", "1000"]).spawn().unwrap();
    eventually("the VM starts", || (home.left() != 0).then_some(()));
    terminate(&child);
    // One that came too late is the program's, which does not hear it.
    let status = eventually("the end", || {
        thread::sleep(Duration::from_secs(1));
        child.try_wait().unwrap().or_else(|| {
            terminate(&child);
            None
        })
    });
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
    assert_eq!(home.left(), 0);
}
