// SPDX-License-Identifier: Apache-2.0
//! What a user is told when something cannot be booted: three lines, exit status 125, nothing left behind.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{CORACLE, Guest, kernel, run};

/// `coracle boot` with these words fails in three lines, the first of which names `what`.
fn refuses(words: &[&str], what: &str) -> String {
    let (status, stdout, stderr) = run(Command::new(CORACLE).arg("boot").args(words));
    assert_eq!((status, stdout.as_str()), (Some(125), ""), "{words:?}: {stderr}");
    let lines: Vec<_> = stderr.lines().collect();
    let [first, why, next] = lines.as_slice() else { panic!("{words:?}: not three lines:\n{stderr}") };
    assert!(first.starts_with("coracle: ") && first.contains(what), "{words:?}: {stderr}");
    assert!(why.starts_with("  why: ") && why.len() > 10, "{stderr}");
    assert!(next.starts_with("  try: ") && next.len() > 10, "{stderr}");
    stderr
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn main_path_files_that_are_no_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let real = fs::read(kernel()).unwrap();
    let mut foreign = real[..4096].to_vec();
    foreign[18] = 183;
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"#!/bin/sh\necho not a kernel\n"),
        ("short", &real[..100]),
        ("truncated", &real[..real.len() / 2]),
        ("arm64", &foreign),
    ] {
        let path = file(folder.path(), name, bytes);
        refuses(&[&path], &path);
    }
    let folder_path = folder.path().display().to_string();
    refuses(&[&folder_path], &folder_path);
    assert!(refuses(&["/no/such/kernel"], "/no/such/kernel").contains("No such file"));
}

#[test]
fn main_path_initrds_that_cannot_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel().display().to_string();
    let empty = file(folder.path(), "empty", b"");
    refuses(&[&kernel, "--initrd", &empty], &empty);
    refuses(&[&kernel, "--initrd", "/no/such/initrd"], "/no/such/initrd");
    let large = folder.path().join("large");
    fs::File::create(&large).unwrap().set_len(200 << 20).unwrap();
    let large = large.display().to_string();
    refuses(&[&kernel, "--initrd", &large], &large);
}

#[test]
fn main_path_machines_that_cannot_be() {
    let kernel = kernel().display().to_string();
    for memory in ["0", "1", "64T"] {
        let told = if memory == "64T" { "1000000G" } else { memory };
        refuses(&[&kernel, "--memory", told], "memory");
    }
    refuses(&[&kernel, "--memory", "4"], "kernel");
    refuses(&[&kernel, "--cpus", "0"], "0 vCPUs");
    refuses(&[&kernel, "--cpus", "1000"], "1000 vCPUs");
}

#[test]
fn main_path_command_lines_that_no_kernel_takes() {
    let kernel = kernel().display().to_string();
    assert!(refuses(&[&kernel, "--cmdline", &"x".repeat(5000)], "").contains("2047"));
    refuses(&[&kernel, "--cmdline", "tab\there"], "command line");
}

#[test]
fn main_path_disks_that_cannot_be_attached() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = kernel().display().to_string();
    refuses(&[&kernel, "--disk", "/no/such/disk"], "/no/such/disk");
    let here = folder.path().display().to_string();
    refuses(&[&kernel, "--disk", &here], &here);
    let odd = file(folder.path(), "odd", &[0; 1000]);
    assert!(refuses(&[&kernel, "--disk", &odd], &odd).contains("512"));
    refuses(&[&kernel, "--pmem", "/no/such/image"], "/no/such/image");
    refuses(&[&kernel, "--net", "tap=nosuchtap"], "nosuchtap");
    refuses(&[&kernel, "--vsock", "/no/such/folder/v.sock"], "/no/such/folder");
    refuses(&[&kernel, "--log-file", "/no/such/folder/log"], "/no/such/folder");
}

#[test]
fn main_path_nothing_is_made_for_a_kernel_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let text = file(folder.path(), "text", b"nonsense");
    let [log, vsock, control] = ["log", "vsock", "control"].map(|name| folder.path().join(name).display().to_string());
    for kernel in ["/no/such/kernel", &text] {
        refuses(&[kernel, "--log-file", &log, "--vsock", &vsock, "--control", &control], kernel);
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn a_disk_in_use_is_not_shared() {
    let folder = tempfile::tempdir().unwrap();
    let disk = file(folder.path(), "disk", &[0; 1 << 20]);
    let guest = Guest::shell(&["--disk", &disk]);
    let kernel = kernel().display().to_string();
    assert!(refuses(&[&kernel, "--disk", &disk], &disk).contains("in use"));
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn a_user_who_may_not_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    // Root without its capabilities is refused as anybody is.
    let script = format!(
        "chmod 000 {0}; mount --bind {0} /dev/kvm; exec setpriv --bounding-set=-all --inh-caps=-all \"$1\" boot \"$2\"",
        file(folder.path(), "node", b"")
    );
    let (status, _, stderr) = run(Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", &script, "sh", CORACLE])
        .arg(kernel()));
    assert_eq!(status, Some(125), "{stderr}");
    assert_eq!(stderr.lines().count(), 3, "{stderr}");
    assert!(stderr.contains("/dev/kvm"), "{stderr}");
}

#[test]
fn main_path_wrong_usage_is_status_2() {
    for words in [&["boot"][..], &["boot", "x", "--memory", "lots"], &["boot", "x", "--disk", "a,b"], &["fly"]] {
        assert_eq!(run(Command::new(CORACLE).args(words)).0, Some(2), "{words:?}");
    }
}
