// SPDX-License-Identifier: Apache-2.0
//! Snapshots of containers, and others that go on from them, on real KVM.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Stdio;

use common::home::{Home, signal};
use common::{eventually, host};

/// Has something in memory and something on its disk, waits without a fork, and ends with 3 when asked to.
const PROGRAM: &str = "echo on disk > /file; echo in memory > /dev/shm/file; trap 'echo bye; exit 3' TERM; \
                       sleep 100000 & echo ready; wait";
/// Who a container is, by one program, since each takes a second where a guest's kernel is interpreted: what it keeps, what
/// no other has, and last its addresses.
const WHO: [&str; 10] = [
    "cat",
    "/file",
    "/dev/shm/file",
    "/proc/sys/kernel/hostname",
    "/etc/hostname",
    "/sys/class/net/eth0/address",
    "/proc/sys/kernel/random/uuid",
    "/proc/sys/kernel/random/uuid",
    "/etc/hosts",
    "/proc/net/fib_trie",
];

fn start(home: &Home, name: &str, flags: &[&str]) {
    home.ok(&[&["run", "-d", "--name", name], flags, &["IMAGE", "sh", "-c", PROGRAM]].concat());
    home.log_has(name, "ready");
}

fn snapshots(home: &Home) -> PathBuf {
    home.path().join("data/snapshots")
}

/// Fails with 125 and three lines, of which one has this reason.
fn refused(home: &Home, words: &[&str], reason: &str) {
    let (status, stdout, stderr) = home.run(words);
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{words:?}: {stdout}{stderr}");
    assert!(stderr.contains(reason), "{words:?}: no {reason:?} in {stderr}");
}

#[test]
fn main_path_containers_go_on_from_a_snapshot_as_themselves() {
    let home = Home::new();
    start(&home, "one", &[]);
    assert_eq!(home.ok(&["snapshot", "create", "one", "ready"]), "ready");
    assert_eq!(home.ok(&["snapshot", "ls", "-q"]), "ready");
    // The one that it was taken of goes on.
    home.ok(&["exec", "one", "sh", "-c", "echo later > /file"]);
    home.ok(&["run", "-d", "--from", "ready", "--name", "two"]);
    home.ok(&["snapshot", "restore", "ready", "--rm", "--name", "three"]);
    let mut seen = BTreeSet::new();
    for name in ["two", "three"] {
        let who = home.ok(&[&["exec", name], &WHO[..]].concat());
        let lines: Vec<&str> = who.lines().collect();
        assert_eq!(lines[..2], ["on disk", "in memory"], "{who}");
        assert_eq!((lines[2], lines[3]), (&home.field(name, "{{.Id}}")[..12], lines[2]), "its name: {who}");
        let address = home.field(name, "{{.NetworkSettings.IPAddress}}");
        assert!(lines.contains(&format!("{address}\t{}", lines[2]).as_str()), "its name's address: {who}");
        // The kernel's own list of addresses has this one, and none of another's.
        let local = lines.iter().zip(lines.iter().skip(1)).filter(|(_, next)| next.contains("host LOCAL"));
        let local: BTreeSet<&str> = local.filter_map(|(line, _)| line.split_whitespace().last()).collect();
        assert_eq!(local.into_iter().filter(|one| !one.starts_with("127.")).collect::<Vec<_>>(), [address], "{who}");
        seen.extend(lines[2..3].iter().chain(&lines[4..7]).map(|line| (*line).to_owned()));
    }
    assert_eq!(seen.len(), 8, "nothing of two containers is the same: {seen:?}");
    for (name, status) in [("two", "3"), ("one", "3")] {
        home.ok(&["stop", "-t", "100", name]);
        assert_eq!(home.field(name, "{{.State.ExitCode}}"), status);
        home.log_has(name, "bye");
    }
    // They had their own disks; and their own logs.
    assert_eq!(home.ok(&["logs", "two"]), "bye");
    home.ok(&["rm", "one", "two"]);
    home.ok(&["rm", "-f", "three"]);
    assert_eq!(home.ok(&["snapshot", "rm", "ready"]), "ready");
    assert_eq!((home.left(), home.containers(), fs::read_dir(snapshots(&home)).unwrap().count()), (0, 0, 0));
}

#[test]
fn a_snapshot_of_a_clone_may_hold_only_what_differs() {
    let home = Home::new();
    let net = ["--network", "none"];
    start(&home, "one", &net);
    refused(&home, &["snapshot", "create", "--diff", "one", "none"], "not started from a snapshot");
    home.ok(&["snapshot", "create", "one", "base"]);
    home.ok(&["rm", "-f", "one"]);
    home.ok(&["run", "-d", "--from", "base", "--name", "two"]);
    home.ok(&["exec", "two", "sh", "-c", "echo changed > /dev/shm/file; echo changed > /file"]);
    home.ok(&["snapshot", "create", "--diff", "two", "next"]);
    // A clone of that differs from the same base.
    home.ok(&["run", "-d", "--from", "next", "--name", "three"]);
    assert_eq!(home.ok(&["exec", "three", "cat", "/dev/shm/file", "/file"]), "changed\nchanged");
    home.ok(&["exec", "three", "sh", "-c", "echo again > /dev/shm/file"]);
    home.ok(&["snapshot", "create", "--diff", "three", "last"]);
    let fact = |name: &str, fact: &str| {
        let all: serde_json::Value = serde_json::from_str(&home.ok(&["snapshot", "inspect", name])).unwrap();
        all[0][fact].clone()
    };
    for (name, base) in [("base", None), ("next", Some("base")), ("last", Some("base"))] {
        assert_eq!(fact(name, "Base").as_str(), base, "{name}");
    }
    let data = |name| fact(name, "DataBytes").as_u64().unwrap();
    assert!(2 * data("next") < data("base"), "{} of {} bytes", data("next"), data("base"));
    home.ok(&["snapshot", "rm", "next"]);
    let (status, _, stderr) = home.run(&["snapshot", "rm", "base"]);
    assert!(status != Some(0) && stderr.contains("snapshot last holds only what differs"), "{status:?} {stderr}");
    assert_eq!(home.ok(&["run", "-d", "--from", "last", "--name", "four"]).len(), 64);
    assert_eq!(home.ok(&["exec", "four", "cat", "/dev/shm/file", "/file"]), "again\nchanged");
    // Its base is another: it is not started with half of its memory.
    let memory = snapshots(&home).join("base/memory");
    fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options().write(true).open(&memory).unwrap().write_all_at(&[1], 12345).unwrap();
    refused(&home, &["run", "--rm", "--from", "last"], "changed since");
    fs::rename(&memory, memory.with_extension("away")).unwrap();
    refused(&home, &["run", "--rm", "--from", "last"], "No such file");
    home.ok(&["rm", "-f", "two", "three", "four"]);
    home.ok(&["snapshot", "rm", "last", "base"]);
    assert_eq!((home.left(), fs::read_dir(snapshots(&home)).unwrap().count()), (0, 0));
}

#[test]
fn a_snapshot_that_fails_leaves_the_container_as_it_was_and_nothing_else() {
    let home = Home::new();
    let net = ["--network", "none"];
    let runs = |name: &str| assert_eq!(home.ok(&["exec", name, "cat", "/file"]), "on disk");
    start(&home, "one", &net);
    // No room: its memory is some MiB.
    let place = snapshots(&home);
    fs::create_dir(&place).unwrap();
    host("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", place.to_str().unwrap()]);
    let (status, _, stderr) = home.run(&["snapshot", "create", "one", "large"]);
    let left = fs::read_dir(&place).unwrap().count();
    host("umount", &[place.to_str().unwrap()]);
    assert_eq!((status, stderr.lines().count(), left), (Some(125), 3, 0), "{stderr}");
    assert!(stderr.contains("No space left"), "{stderr}");
    runs("one");
    refused(&home, &["snapshot", "create", "one", "no/name"], "no name");
    home.ok(&["snapshot", "create", "one", "ready"]);
    refused(&home, &["snapshot", "create", "one", "ready"], "there is a snapshot ready");
    refused(&home, &["run", "--from", "other"], "no snapshot other");
    refused(&home, &["run", "--from", "ready", "-p", "80"], "no network card");
    runs("one");
    // What is written into a snapshot's disk afterwards is found, as in a record.
    let changed = |file: &str, reason: &str| {
        let path = place.join("ready").join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 40).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 40).unwrap();
        refused(&home, &["run", "--rm", "--from", "ready"], reason);
    };
    changed("written.ext4", "written to since");
    changed("container.json", "checksum");
    home.ok(&["snapshot", "rm", "ready"]);
    home.ok(&["kill", "one"]);
    refused(&home, &["snapshot", "create", "one", "late"], "not running");
    home.ok(&["run", "-d", "--name", "mounted", "--network", "none", "-v", "/data", "IMAGE", "sleep", "1000"]);
    refused(&home, &["snapshot", "create", "mounted"], "/data is a volume");
    home.ok(&["rm", "-f", "-v", "one", "mounted"]);
    assert_eq!((home.left(), fs::read_dir(&place).unwrap().count()), (0, 0));
}

/// Its files are there when its VMM stops, and the rest is never written.
#[test]
fn a_vmm_that_is_killed_in_the_middle_leaves_no_snapshot() {
    let home = Home::new();
    start(&home, "one", &["--network", "none", "--rm"]);
    let vmm: u32 = home.field("one", "{{.State.Pid}}").parse().unwrap();
    signal(vmm, libc::SIGSTOP);
    let mut create = home.command(&["snapshot", "create", "one", "half"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("a snapshot that has begun", || fs::read_dir(snapshots(&home)).ok()?.next().map(drop));
    signal(vmm, libc::SIGKILL);
    assert_eq!(create.wait().unwrap().code(), Some(125));
    eventually("the container's end", || home.ok(&["ps", "-aq"]).is_empty().then_some(()));
    assert_eq!((home.ok(&["snapshot", "ls", "-q"]).as_str(), home.left()), ("", 0));
    let nothing = || (fs::read_dir(snapshots(&home)).unwrap().count() == 0).then_some(());
    eventually("that nothing of it is left", nothing);
}
