// SPDX-License-Identifier: Apache-2.0
//! Snapshots on real KVM: guests that go on elsewhere, as themselves or as many.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{CORACLE, Control, Guest, eventually, host, run};
use coracle::sandbox::Agent;
use coracle::vmm::snapshot::{format, host_print::HostPrint};
use tempfile::TempDir;

/// A folder for sockets, disks and snapshots.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn word(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A disk of this many bytes that starts with `text`.
    fn disk(&self, name: &str, text: &str, size: u64) -> String {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
        self.word(name)
    }

    /// Boots to a shell, with a vsock and a control socket.
    fn boot(&self, words: &[&str]) -> Guest {
        let (vsock, control) = (self.word("v.sock"), self.word("c.sock"));
        // What the kernel has to say would come between commands and their output.
        Guest::shell(&[&["--vsock", &vsock, "--control", &control, "--cmdline", "loglevel=1"], words].concat())
    }

    /// Takes a snapshot named `ready`.
    fn snapshot(&self, control: &str, words: &[&str]) {
        let (control, directory) = (self.word(control), self.word("ready"));
        host(CORACLE, &[&["snapshot", "create", &control, &directory], words].concat());
    }

    /// A clone of `ready` with sockets that start with `name`.
    fn restore(&self, name: &str, words: &[&str]) -> Guest {
        let (vsock, control) = (self.word(&format!("{name}-v.sock")), self.word(&format!("{name}-c.sock")));
        let ready = self.word("ready");
        // The tests ask the agent themselves.
        let all = [&["--restore", &ready, "--no-renew", "--vsock", &vsock, "--control", &control], words].concat();
        Guest::start(all)
    }

    fn agent(&self, name: &str) -> Agent {
        eventually("an agent", || Agent::connect(&self.path(&format!("{name}-v.sock"))).ok())
    }
}

fn now_us() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros().try_into().unwrap()
}

/// How far the guest's clock is from the host's, in microseconds: no farther than this.
fn clock_distance(guest: &mut Guest) -> i128 {
    let before = now_us();
    let text = guest.sh("echo $EPOCHREALTIME");
    let after = now_us();
    let (seconds, micros) = text.trim().split_once('.').unwrap_or_else(|| panic!("{text:?}"));
    let then = seconds.parse::<i128>().unwrap() * 1_000_000 + micros.parse::<i128>().unwrap();
    (before - then).max(then - after).max(0)
}

fn uptime(guest: &mut Guest) -> f64 {
    guest.sh("read up idle < /proc/uptime; echo $up").trim().parse().unwrap()
}

/// A template as `coracle run` will have it: a shell instead of the agent alone, a placeholder where the image goes.
#[test]
fn main_path_clones_of_one_snapshot_are_machines_of_their_own() {
    let folder = Folder::new();
    let placeholder = folder.disk("placeholder", "", 512);
    let mut guest = folder.boot(&["--disk", &format!("{placeholder},ro")]);
    guest.sh("echo from before > /kept; kept=variable");
    assert_eq!(guest.sh("cat /sys/block/vda/size").trim(), "1");
    let before = uptime(&mut guest);
    folder.snapshot("c.sock", &["--stop"]);
    assert_eq!(guest.wait().0.code(), Some(103));

    let mut random = Vec::new();
    for (name, size) in [("one", 8 << 20), ("two", 24 << 20)] {
        let image = folder.disk(name, &format!("I am {name}"), size);
        let mut clone = folder.restore(name, &["--disk", &format!("{image},ro")]);
        folder.agent(name).renew(Some(name), &[]).unwrap();
        let distance = clock_distance(&mut clone);
        assert!(distance < 50_000, "{name}: {distance} µs off");
        assert_eq!(clone.sh("echo $kept; cat /kept").trim(), "variable\nfrom before");
        assert_eq!(clone.sh("hostname").trim(), name);
        let sectors = (size / 512).to_string();
        eventually("the disk's new size", || (clone.sh("cat /sys/block/vda/size").trim() == sectors).then_some(()));
        assert_eq!(clone.sh("head -c 8 /dev/vda").trim(), format!("I am {name}"));
        let after = uptime(&mut clone);
        assert!(after >= before && after < before + 600.0, "{before} s, then {after} s");
        // Each behind a word, since the kernel may write to the console in between.
        let kernel = "for at in uuid boot_id; do echo is $(cat /proc/sys/kernel/random/$at); done";
        let answers = clone.sh(&format!("{kernel}; echo is $(head -c 16 /dev/urandom | md5sum)"));
        let answers = answers.lines().filter_map(|line| line.trim().strip_prefix("is "));
        random.extend(answers.map(str::to_owned));
        assert_eq!(clone.power_off(), 0);
    }
    let count = random.len();
    random.sort();
    random.dedup();
    assert_eq!((count, random.len()), (6, 6), "{random:?}");
}

/// Nor is there anything for it to catch up with, which on PVM was work for each second.
#[test]
fn no_time_passes_for_a_snapshot() {
    let folder = Folder::new();
    let mut guest = folder.boot(&[]);
    let began = Instant::now();
    let before = uptime(&mut guest);
    folder.snapshot("c.sock", &["--stop"]);
    assert_eq!(guest.wait().0.code(), Some(103));
    let ran = began.elapsed();
    std::thread::sleep(Duration::from_secs(3));
    let restored = Instant::now();
    let mut clone = folder.restore("one", &[]);
    let after = uptime(&mut clone);
    let most = (ran + restored.elapsed()).as_secs_f64();
    let passed = after - before;
    assert!((0.0..most).contains(&passed), "{passed} s passed, of {most} s in which it can have run");
    assert_eq!(clone.power_off(), 0);
}

#[test]
fn a_busy_guest_goes_on_in_both_places() {
    let folder = Folder::new();
    let (image, other) = (folder.disk("disk", "", 16 << 20), folder.disk("other", "", 1 << 20));
    let words = ["--cpus", "2", "--disk", &image, "--disk", &other, "--console", "virtio"];
    let mut guest = folder.boot(&words);
    let mut agent = Agent::connect(&folder.path("v.sock")).unwrap();
    // Writes, reads and computes all the time, and keeps the account of it in memory.
    guest.sh("n=0; (while true; do dd if=/dev/zero of=/dev/vda bs=64k count=64 oflag=direct 2>/dev/null; done) &");
    guest.sh("(while true; do head -c 100000 /dev/urandom | sha256sum > /last; done) &");
    folder.snapshot("c.sock", &[]);
    // The one that it was taken of goes on, its connections included.
    guest.sh("sleep 1; cat /last");
    agent.renew(Some("original"), &[]).unwrap();
    assert_eq!(guest.sh("hostname").trim(), "original");
    assert_eq!(guest.power_off(), 0);

    // Its disk was written to since: only as another disk can it be had.
    let (status, _, stderr) = run(Command::new(CORACLE).args(["boot", "--restore", &folder.word("ready")]));
    assert_eq!(status, Some(125), "{stderr}");
    assert!(stderr.contains("disk is not what it was") && stderr.lines().count() == 3, "{stderr}");

    let mut clone = folder.restore("clone", &["--disk", &image, "--disk", &other]);
    folder.agent("clone").renew(Some("clone"), &[]).unwrap();
    assert_eq!(clone.sh("hostname; nproc").trim(), "clone\n2");
    // Waits for their ends: busybox' shell takes a child that dies while it reads a line for the end of its input.
    clone.sh("sleep 1; cat /last; kill %1 %2 2>/dev/null; wait; true");
    clone.sh("dd if=/dev/urandom of=/dev/vdb bs=64k count=4 conv=fsync 2>/dev/null");
    let inside = clone.sh("sha256sum /dev/vdb").split_whitespace().next().unwrap().to_owned();
    assert_eq!(common::sha256(Path::new(&other)), inside);
    assert_eq!(clone.power_off(), 0);
}

#[test]
fn a_clone_has_clones_and_a_copied_snapshot_is_read_whole() {
    let folder = Folder::new();
    let guest = folder.boot(&[]);
    folder.snapshot("c.sock", &["--stop"]);
    drop(guest);
    let mut first = folder.restore("first", &[]);
    folder.agent("first").renew(None, &[]).unwrap();
    first.sh("echo second generation > /file");
    fs::remove_dir_all(folder.path("ready")).unwrap();
    folder.snapshot("first-c.sock", &["--stop"]);
    drop(first);
    fs::rename(folder.path("ready"), folder.path("made")).unwrap();
    host("cp", &["-r", "--sparse=always", &folder.word("made"), &folder.word("ready")]);
    let mut second = folder.restore("second", &[]);
    assert_eq!(second.sh("cat /file").trim(), "second generation");
    assert_eq!(second.power_off(), 0);
}

#[test]
fn what_differs_from_a_snapshot_is_one() {
    let folder = Folder::new();
    let guest = folder.boot(&[]);
    let difference = |control: &str, name: &str| {
        run(Command::new(CORACLE).args(["snapshot", "create", "--diff", &folder.word(control), &folder.word(name)]))
    };
    let (status, _, stderr) = difference("c.sock", "none");
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    assert!(stderr.contains("booted from its kernel") && !folder.path("none").exists(), "{stderr}");
    folder.snapshot("c.sock", &["--stop"]);
    drop(guest);
    fs::rename(folder.path("ready"), folder.path("base")).unwrap();
    let restore = |directory: &str, control: &str| {
        let (directory, vsock) = (folder.word(directory), folder.word("clone-v.sock"));
        Guest::start(["--restore", &directory, "--vsock", &vsock, "--control", &folder.word(control)])
    };
    let mut first = restore("base", "first.sock");
    first.sh("head -c 1000000 /dev/urandom > /file; sha256sum /file > /sum");
    assert_eq!(difference("first.sock", "ready").0, Some(0));
    // The one that it was taken of goes on, and changes nothing of it.
    first.sh("rm /file");
    assert_eq!(first.power_off(), 0);
    let bytes = |name: &str| fs::metadata(folder.path(name).join("memory")).unwrap().blocks() * 512;
    assert!(2 * bytes("ready") < bytes("base"), "{} and {}", bytes("ready"), bytes("base"));
    let mut second = restore("ready", "second.sock");
    second.sh("sha256sum -c /sum");
    assert_eq!(second.power_off(), 0);
    fs::rename(folder.path("base"), folder.path("away")).unwrap();
    let mut third = restore("away", "third.sock");
    third.sh("true");
    fs::rename(folder.path("away"), folder.path("moved")).unwrap();
    let (status, _, stderr) = difference("third.sock", "late");
    assert_eq!((status, stderr.lines().count(), folder.path("late").exists()), (Some(125), 3, false), "{stderr}");
    assert!(stderr.contains("holds only what differs from"), "{stderr}");
    drop(third);
    let (ready, base) = (folder.word("ready"), folder.word("moved/memory"));
    let vsock = folder.word("last-v.sock");
    let mut last = Guest::start(["--restore", &ready, "--base-file", &base, "--vsock", &vsock]);
    last.sh("sha256sum -c /sum");
    assert_eq!(last.power_off(), 0);
    let (status, _, stderr) = run(Command::new(CORACLE).args(["boot", "--restore", &folder.word("ready")]));
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    assert!(stderr.contains("holds only what differs from"), "{stderr}");
}

#[test]
fn a_snapshot_needs_its_two_files_and_a_place() {
    let folder = Folder::new();
    let mut guest = folder.boot(&[]);
    let mut control = Control::connect(&folder.path("c.sock"));
    let reply = control.send("{\"request\":\"snapshot\"}");
    assert!(reply["error"].as_str().unwrap().contains("two descriptors"), "{reply}");
    folder.snapshot("c.sock", &[]);
    let failed = |directory: &str| {
        let words = ["snapshot", "create", &folder.word("c.sock"), directory];
        let (status, _, stderr) = run(Command::new(CORACLE).args(words));
        assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
        stderr
    };
    assert!(failed(&folder.word("ready")).contains("exists already"));
    assert!(failed("/nonexistent/snapshot").contains("No such file"));
    assert!(failed("/dev/full/snapshot").contains("directory"));
    // Nothing half done is left, and the guest has not noticed.
    let left = fs::read_dir(folder.0.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".snapshot"));
    assert_eq!(left.count(), 0);
    assert_eq!(guest.sh("echo here").trim(), "here");
    assert_eq!(guest.power_off(), 0);
}

/// Whatever is wrong with a snapshot, there is an error in three lines and no guest.
#[test]
fn bad_snapshots_are_refused() {
    let folder = Folder::new();
    let disk = folder.disk("disk", "content", 1 << 20);
    let guest = folder.boot(&["--disk", &disk]);
    folder.snapshot("c.sock", &["--stop"]);
    drop(guest);
    let (state, memory) = (folder.path("ready/state"), folder.path("ready/memory"));
    let good = fs::read(&state).unwrap();
    let bad = folder.path("bad");
    let refused = |words: &[&str], reason: &str| {
        let all =
            [&["boot", "--restore", bad.to_str().unwrap(), "--memory-file", memory.to_str().unwrap()], words].concat();
        let (status, stdout, stderr) = run(Command::new(CORACLE).args(all));
        assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{reason}: {stdout}{stderr}");
        assert!(stderr.contains(reason), "{reason}: {stderr}");
    };
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bytes
    };
    let changed = |change: &dyn Fn(&mut coracle::vmm::snapshot::State)| {
        let mut state = format::decode(&good).unwrap();
        change(&mut state);
        format::encode(&state).unwrap()
    };
    let other_host = HostPrint { vendor: "VMX".into(), cpu: "another CPU".into(), cpuid: 0 };
    let cases: [(Vec<u8>, &str); 13] = [
        (Vec::new(), "no snapshot"),
        (b"not a snapshot, but longer than its header would be".to_vec(), "no snapshot"),
        (good[..20].to_vec(), "should have 32 bytes"),
        (good[..good.len() - 1].to_vec(), "damaged: it should have"),
        ([&good[..], b"x"].concat(), "damaged: it should have"),
        (flipped(3), "no snapshot"),
        (flipped(8), "checksum of its header"),
        (flipped(30), "checksum of its header"),
        (flipped(good.len() / 2), "checksum of its state"),
        (format::seal(format::VERSION + 1, &good[format::HEADER..]), "knows version"),
        (changed(&|state| state.host = other_host.clone()), "another CPU"),
        (changed(&|state| state.config.memory_mib /= 2), "another size of memory"),
        (changed(&|state| drop(state.devices.pop())), "another number of devices"),
    ];
    for (bytes, reason) in cases {
        fs::write(&bad, bytes).unwrap();
        refused(&[], reason);
    }
    fs::write(&bad, &good).unwrap();
    refused(&["--disk", &disk, "--disk", &disk], "1 disks, and 2 were named");
    refused(&["--pmem", &disk], "0 regions of persistent memory, and 1 were named");
    refused(&["--disk", &format!("{disk},ro")], "device 0 (block)");
    let control = folder.word("left.sock");
    refused(&["--control", &control, "--disk", &format!("{disk},ro")], "device 0 (block)");
    assert!(!Path::new(&control).exists(), "the socket goes with the VMM that never ran");
    std::thread::sleep(Duration::from_millis(20));
    fs::write(folder.path("disk"), vec![1; 1 << 20]).unwrap();
    refused(&[], "written to since");

    // The memory, changed behind the state's back: found by its times, then by its content.
    fs::set_permissions(&memory, fs::Permissions::from_mode(0o600)).unwrap();
    let file = File::options().read(true).write(true).open(&memory).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1 << 20).unwrap();
    refused(&["--disk", &disk], "it has been changed since");
    file.set_len(64 << 20).unwrap();
    refused(&["--disk", &disk], "it has another size");
    fs::remove_file(&memory).unwrap();
    refused(&["--disk", &disk], "No such file");
}
