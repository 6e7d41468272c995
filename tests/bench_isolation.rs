// SPDX-License-Identifier: Apache-2.0
//! `coracle bench isolation`, as a user runs it.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use common::eventually;
use common::home::{Home, signal};

/// What only some kernels have: the control of such a probe finds nothing on others.
fn is_here(probe: &str) -> bool {
    let configured = |word: &str| {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let text = std::fs::read_to_string(format!("/boot/config-{}", release.trim())).unwrap_or_default();
        text.contains(&format!("{word}=y"))
    };
    match probe {
        "module-loading" => Path::new("/proc/modules").exists(),
        "memory-node" => Path::new("/dev/mem").exists(),
        "kernel-memory" => Path::new("/proc/kcore").exists(),
        "sysrq" => Path::new("/proc/sysrq-trigger").exists(),
        "pressure" => Path::new("/proc/pressure/cpu").exists(),
        "userfaultfd" => Path::new("/dev/userfaultfd").exists(),
        "trace-events" => Path::new("/sys/kernel/tracing/available_events").exists(),
        "kexec" => configured("CONFIG_KEXEC"),
        // A host of which nothing is on a disk, one whose protocols are modules, and one whose root has not all rights.
        "disks" | "disk-activity" | "disk-nodes" | "vsock" | "kernel-crypto" | "io-ports" | "out-of-memory-score" => {
            false
        }
        _ => true,
    }
}

fn cells(row: &Value) -> BTreeMap<&str, &str> {
    let cells = row["cells"].as_array().unwrap().iter();
    cells.map(|cell| (cell["backend"].as_str().unwrap(), cell["verdict"].as_str().unwrap())).collect()
}

/// All probes look, in a container of podman's; then the user wants no more.
#[test]
fn what_is_shared_is_found_and_an_interrupt_keeps_it() {
    let home = Home::new();
    let [out, errors, folder] = ["out", "errors", "report"].map(|name| home.path().join(name));
    let words = ["bench", "isolation", "--backends", "podman", "--format", "json", "--report"];
    let mut command = home.command(&[&words[..], &[folder.to_str().unwrap()]].concat());
    let files = [&out, &errors].map(|path| std::fs::File::create(path).unwrap());
    let [stdout, stderr] = files;
    let mut child = command.stdout(stdout).stderr(stderr).spawn().unwrap();
    let said = || std::fs::read_to_string(&errors).unwrap();
    for step in ["host: after", "podman: looking", "control: cpu-burner"] {
        eventually(step, || (said().contains(step) || child.try_wait().unwrap().is_some()).then_some(()));
    }
    signal(child.id(), libc::SIGINT);
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(130), "{}", said());
    let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!((&report["schema"], &report["version"]), (&"coracle-bench-isolation".into(), &1.into()));
    assert_eq!((&report["interrupted"], &report["complete"]), (&true.into(), &false.into()));
    let rows: BTreeMap<&str, &Value> =
        report["probes"].as_array().unwrap().iter().map(|row| (row["name"].as_str().unwrap(), row)).collect();
    for (name, row) in &rows {
        assert!(row["control"]["found"] == true || !is_here(name), "{name}: {}", row["control"]);
    }
    assert!(rows.values().filter(|row| row["control"]["found"] == true).count() >= 45, "{report}");
    // What is so whatever the host is.
    for (name, podman) in [
        ("boot-id", "shared"),
        ("kernel-release", "shared"),
        ("kernel-log", "limited"),
        ("forks", "shared"),
        ("page-cache", "shared"),
        ("files", "isolated"),
        ("inotify-limit", "shared"),
        ("system-calls", "limited"),
        ("ptrace", "shared"),
        ("mount", "limited"),
        ("visible-process", "shared"),
        ("boundary-user", "shared"),
        ("boundary-seccomp", "isolated"),
    ] {
        assert_eq!(cells(rows[name]), BTreeMap::from([("podman", podman)]), "{name}: {}", rows[name]);
    }
    let page = std::fs::read_to_string(folder.join("index.html")).unwrap();
    assert!(page.contains("Interrupted: this is not all.") && page.ends_with("</html>\n"));
    assert_eq!(std::fs::read_to_string(folder.join("cells.csv")).unwrap().lines().count(), 1 + rows.len());
    assert_eq!(home.left(), 0);
}

/// A VM has nothing of the host's, and what is around it has no rights there.
#[test]
fn a_vm_has_a_kernel_of_its_own() {
    let home = Home::new();
    let expected = [
        ("boot-id", "isolated"),
        ("forks", "isolated"),
        ("kernel-log", "isolated"),
        ("files", "isolated"),
        ("mount", "isolated"),
        ("visible-process", "isolated"),
        ("boundary-user", "isolated"),
        ("boundary-capabilities", "isolated"),
        ("boundary-seccomp", "isolated"),
        ("boundary-privileges", "isolated"),
    ];
    let only = expected.map(|(name, _)| name).join(",");
    let (status, stdout, stderr) =
        home.run(&["bench", "isolation", "--backends", "vm", "--only", &only, "--format", "json"]);
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["complete"], &report["interrupted"]), (&true.into(), &false.into()), "{stdout}");
    for (row, (name, vm)) in report["probes"].as_array().unwrap().iter().zip(expected) {
        assert_eq!((&row["name"], cells(row)), (&name.into(), BTreeMap::from([("vm", vm)])), "{row}");
    }
    assert_eq!(home.left(), 0);
}

/// Each attack hurts where it must, and what it is bounded by has gone afterwards. Of the attacks, these are judged by what
/// is counted: on a busy machine nothing can be said of times.
#[test]
fn bad_neighbours_hurt_within_their_limits() {
    let home = Home::new();
    let attacks = ["disk-filler", "inode-filler", "file-exhaustion"];
    let list = attacks.join(",");
    let (status, stdout, stderr) =
        home.run(&["bench", "isolation", "--backends", "podman", "--only", &list, "--format", "json"]);
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let rows = report["probes"].as_array().unwrap();
    assert_eq!(rows.len(), attacks.len(), "{stdout}");
    for row in rows {
        assert_eq!(row["control"]["found"], true, "{row}");
        let cell = &row["cells"][0];
        assert!(cell["neighbour"]["before"]["n"].as_u64().is_some_and(|n| n > 0), "{row}");
        if row["name"] == "disk-filler" || row["name"] == "file-exhaustion" {
            assert_eq!(cell["verdict"], "shared", "{row}");
        }
    }
    assert_eq!(home.left(), 0);
}

#[test]
fn what_cannot_be_looked_at_is_explained() {
    let home = Home::new();
    for (words, status, why) in [
        (&["--backends", "docker"][..], 2, "it is one of vm, container, podman, hardened"),
        (&["--only", "no-such-probe"], 2, "there is no such probe"),
        (&["--report", "/proc/none"], 125, "cannot write to /proc/none"),
    ] {
        let (found, stdout, stderr) = home.run(&[&["bench", "isolation", "-q"], words].concat());
        assert_eq!((found, stdout.as_str()), (Some(status), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && (status == 2 || stderr.lines().count() == 3), "{words:?}: {stderr}");
    }
    // Without an engine there is nothing to look at.
    let words = ["bench", "isolation", "-q", "--only", "boot-id", "--backends", "hardened"];
    let programs = home.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink("/bin/mount", programs.join("mount")).unwrap();
    let (found, _, stderr) = common::run(home.command(&words).env("PATH", &programs));
    assert!(found == Some(125) && stderr.contains("podman is not installed"), "{stderr}");
    assert!(home.ok(&["bench", "isolation", "--list"]).lines().count() > 45);
    assert_eq!(home.left(), 0);
}
