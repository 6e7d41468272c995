// SPDX-License-Identifier: Apache-2.0
//! `coracle run`: programs of an image in a microVM, as a user sees them.

mod common;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::eventually;
use common::home::{Home, read_to, signal};

/// `coracle run` with these words; nothing is left afterwards.
fn run(home: &Home, words: &[&str]) -> (Option<i32>, String, String) {
    let outcome = home.run(&[&["run", "--rm"], words].concat());
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""), "something is left");
    outcome
}

#[test]
fn main_path_output_errors_and_status_are_the_programs() {
    let script = "echo out; echo err >&2; exit 7";
    let (status, stdout, stderr) = run(&Home::new(), &["IMAGE", "sh", "-c", script]);
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(7), "out\n", "err\n"));
}

#[test]
fn a_program_finds_what_an_oci_runtime_promises() {
    let script = "echo $$; id -u; hostname; pwd; echo $A-$B; cat /proc/1/comm; echo to-stdout > /dev/stdout; \
                  head -c 3 /dev/zero | wc -c; touch /written && ls /written; ping -c 1 127.0.0.1 | grep -c 1.packets.received; grep CapBnd /proc/self/status; \
                  test -c /dev/null && test -w /dev/null && : > /dev/null && ls /dev/vda";
    let words = [
        "run",
        "--rm",
        "--hostname",
        "box",
        "-w",
        "/some/where",
        "-e",
        "A=1",
        "-e",
        "B",
        "--entrypoint",
        "sh",
        "IMAGE",
        "-c",
        script,
    ];
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
        (&["--memory", "1m", "IMAGE", "true"], 125, "at least"),
    ] {
        let (found, stdout, stderr) = run(&home, words);
        assert_eq!((found, stdout.as_str()), (Some(status), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && stderr.lines().count() == 3, "{words:?}: {stderr}");
    }
}

#[test]
fn a_user_of_numbers_needs_no_entry() {
    let script = "id -u; id -g; echo $HOME; grep CapEff /proc/self/status";
    let (status, stdout, stderr) = run(&Home::new(), &["-u", "1000:77", "IMAGE", "sh", "-c", script]);
    assert_eq!(stdout, "1000\n77\n/\nCapEff:\t0000000000000000\n", "{stderr}");
    assert_eq!(status, Some(0));
}

#[test]
fn main_path_what_goes_in_comes_out() {
    let home = Home::new();
    // A pattern that repeats only after 251 bytes shows any loss or reordering.
    let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut child = home.spawn(&["run", "--rm", "-i", "IMAGE", "cat"]);
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
    let (status, stdout, stderr) = run(&home, &["IMAGE", "sh", "-c", "yes 0123456789abcde | head -c 4194304"]);
    assert_eq!((status, stdout.len()), (Some(0), 4 << 20), "{stderr}");
    let mut child = home.spawn(&["run", "--rm", "IMAGE", "yes"]);
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 4096]).unwrap();
    drop(output);
    let status = eventually("`yes` ends without a reader", || child.try_wait().unwrap());
    // As a program in a pipeline does.
    assert_eq!(status.code(), Some(128 + libc::SIGPIPE));
    assert_eq!(home.left(), 0);
}

#[test]
fn a_signal_is_the_program_s_and_the_third_ends_it() {
    let home = Home::new();
    let script = "trap 'echo heard' TERM; echo here; while :; do sleep 0.1; done";
    let mut child = home.spawn(&["run", "--rm", "IMAGE", "sh", "-c", script]);
    read_to(&mut child, "here\n");
    for _ in 0..2 {
        signal(child.id(), libc::SIGTERM);
        read_to(&mut child, "heard\n");
    }
    signal(child.id(), libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(137));
    assert_eq!(home.left(), 0);
}

#[test]
fn a_signal_does_not_wait_behind_input_that_nobody_reads() {
    let home = Home::new();
    let mut child = home.spawn(&["run", "--rm", "-i", "IMAGE", "sh", "-c", "echo here; exec sleep 1000"]);
    let mut input = child.stdin.take().unwrap();
    // It fails only when nobody takes any more, since the container has ended.
    let taken = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&taken);
    let writing = std::thread::spawn(move || {
        while let Ok(written) = input.write(&[0; 1 << 16]) {
            count.fetch_add(written, Ordering::Relaxed);
        }
    });
    read_to(&mut child, "here\n");
    std::thread::sleep(std::time::Duration::from_secs(2));
    // More than all buffers on the way hold.
    assert!(taken.load(Ordering::Relaxed) < 64 << 20);
    // Signals that come close together are one.
    let ended = eventually("it ends", || {
        signal(child.id(), libc::SIGTERM);
        child.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(137));
    writing.join().unwrap();
    assert_eq!(home.left(), 0);
}

#[test]
fn docker_s_flags_mean_what_they_mean_there() {
    let home = Home::new();
    let script = "grep ndots /etc/resolv.conf >&2; grep -c up$ /etc/hosts >&2; id -G >&2; readlink /dev/core >&2; \
                  cat /proc/sys/net/ipv4/ip_unprivileged_port_start >&2; echo out";
    let flags = ["-a", "stderr", "--dns-option", "ndots:3", "--add-host", "up:host-gateway", "-u", "7:8"];
    let (status, stdout, stderr) = run(&home, &[&flags[..], &["IMAGE", "sh", "-c", script]].concat());
    let expected = "options ndots:3\n1\n8\n/proc/kcore\n0\n";
    assert_eq!((status, stdout.as_str(), stderr.as_str()), (Some(0), "", expected));
    // A program may end with 2 itself.
    for words in [&["-w", "etc", "IMAGE", "true"][..], &["--no-such-flag", "IMAGE", "true"], &[]] {
        assert_eq!(run(&home, words).0, Some(125), "{words:?}");
    }
}
