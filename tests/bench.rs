// SPDX-License-Identifier: Apache-2.0
//! `coracle bench`, as a user runs it.

mod common;

use serde_json::Value;

use common::home::{Home, signal};
use common::{cache, eventually};

#[test]
fn starts_of_vm_and_container_are_measured() {
    let home = Home::new();
    let folder = home.path().join("report");
    let words = [
        "bench",
        "startup",
        "-n",
        "2",
        "--warm-up",
        "0",
        "--seed",
        "7",
        "--backends",
        "vm,vm-cold,crun,vmm",
        "--format",
        "json",
    ];
    let (status, stdout, stderr) = home.run(&[&words[..], &["--report", folder.to_str().unwrap(), "IMAGE"]].concat());
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["schema"], &report["version"]), (&"coracle-bench-startup".into(), &1.into()));
    assert_eq!((&report["complete"], &report["seed"]), (&true.into(), &7.into()), "{stdout}");
    let [vm, cold, crun, vmm] = report["backends"].as_array().unwrap().as_slice() else { panic!("{stdout}") };
    // What is weighed and counted: exactly where nothing waits for anything else, and of a VM alone what only VMs have.
    for one in [vm, cold, crun, vmm] {
        assert!(one["systemCalls"]["median"].as_u64().unwrap() > 100 && one["systemCalls"]["n"] == 2, "{one}");
        let [settled, peak] = ["settled", "peak"].map(|figure| one["weight"][figure].as_u64().unwrap());
        assert!(64 << 10 < settled && settled <= peak && peak < 256 << 20, "{one}");
        assert_eq!(one["userExits"].is_null(), one["isContainer"] == true, "{one}");
    }
    assert!(vm["userExits"]["min"].as_u64().unwrap() > 0, "{vm}");
    let counted = if report["host"]["kind"] == "PVM" { "kernelInstructions" } else { "exits" };
    assert!(vm[counted]["min"].as_u64().unwrap() > 1000 && crun[counted].is_null(), "{vm}");
    for one in [vm, cold, crun] {
        let [first, exit] = ["firstByte", "exit"].map(|figure| one[figure]["medianNs"].as_u64().unwrap());
        assert!(0 < first && first <= exit, "{one}");
        assert_eq!(one["samples"].as_array().unwrap().len(), 2);
    }
    assert_eq!((&report["baseline"], &crun["ratio"]), (&"crun".into(), &Value::Null));
    assert!(vm["ratio"]["ratio"].as_f64().unwrap() > 0.0 && vmm["ready"]["n"] == 2, "{stdout}");
    let stages: Vec<&str> =
        report["waterfall"].as_array().unwrap().iter().map(|step| step["stage"].as_str().unwrap()).collect();
    for stage in ["process start", "KVM created", "agent ready", "program running", "first byte", "program ended"] {
        assert!(stages.contains(&stage), "{stages:?}");
    }
    let saved: Value = serde_json::from_slice(&std::fs::read(folder.join("result.json")).unwrap()).unwrap();
    assert_eq!(saved, report);
    assert!(std::fs::read_to_string(folder.join("index.html")).unwrap().contains("</html>"));
    assert_eq!(std::fs::read_to_string(folder.join("runs.csv")).unwrap().lines().count(), 1 + 2 * 4 * 2);
    assert_eq!(home.left(), 0);
    assert_eq!(home.ok(&["ps", "-aq"]), "");
}

/// Three containers, looked at and removed; then one that cannot be started.
#[test]
fn as_many_as_were_asked_for_run_answer_and_are_removed() {
    let home = Home::new();
    let folder = home.path().join("report");
    let words = ["bench", "density", "-q", "-n", "3", "--reserve", "1m", "--format", "json", "--report"];
    let (status, stdout, stderr) = home.run(&[&words[..], &[folder.to_str().unwrap(), "IMAGE"]].concat());
    assert_eq!(status, Some(0), "{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["schema"], &report["interrupted"]), (&"coracle-bench-density".into(), &false.into()));
    let [step] = report["steps"].as_array().unwrap().as_slice() else { panic!("{stdout}") };
    assert_eq!((&step["containers"], &step["answering"]), (&3.into(), &3.into()), "{stdout}");
    let bytes = |name: &str| step[name].as_u64().unwrap();
    assert!(1 << 20 < bytes("overhead") && bytes("overhead") < bytes("pss") && bytes("pss") < 128 << 20, "{step}");
    assert!(0 < step["readyP50Ns"].as_u64().unwrap() && step["perSecond"].as_f64().unwrap() > 0.0, "{step}");
    assert_eq!(report["started"].as_array().unwrap().len(), 3);
    assert!(std::fs::read_to_string(folder.join("index.html")).unwrap().contains("</html>"));
    let (status, _, stderr) = home.run(&["bench", "density", "-q", "IMAGE", "no-such-program"]);
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    assert!(stderr.contains("no-such-program"), "{stderr}");
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
}

/// One program in the sandbox, and two servers in it; in a VM the server that is quick to start where its kernel is
/// interpreted. Then an image that has none of them.
#[test]
fn main_path_files_network_and_servers_are_measured() {
    let home = Home::new();
    let (folder, image) = (home.path().join("report"), format!("oci:{}", cache("images/io").display()));
    let words =
        ["bench", "io", "-q", "-n", "2", "--warm-up", "0", "--seconds", "1", "--size", "1m", "--format", "json"];
    let measured = |words: &[&str]| {
        let (status, stdout, stderr) = home.run(words);
        assert_eq!(status, Some(0), "{stderr}");
        serde_json::from_str::<Value>(&stdout).unwrap()
    };
    let of_container =
        ["--backends", "container", "--only", "layer-random-read,volume-write,net,redis-get", "--report"];
    let report = measured(&[&words[..], &of_container, &[folder.to_str().unwrap(), &image]].concat());
    assert_eq!((&report["schema"], &report["complete"]), (&"coracle-bench-io".into(), &true.into()), "{report}");
    let rows = report["workloads"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["layer-random-read", "volume-write", "net-to-host", "net-from-host", "redis-get"]);
    for row in rows {
        let cell = &row["cells"][0];
        assert!(cell["rate"]["n"] == 2 && cell["rate"]["min"].as_f64().unwrap() > 1.0, "{row}");
        // iperf3 tells no times.
        assert_eq!(cell["p99"].is_null(), row["name"].as_str().unwrap().starts_with("net-"), "{row}");
    }
    assert!(std::fs::read_to_string(folder.join("index.html")).unwrap().contains("</html>"));
    assert_eq!(std::fs::read_to_string(folder.join("runs.csv")).unwrap().lines().count(), 1 + 2 * 5);
    let report = measured(&[&words[..], &["--backends", "vm,container", "--only", "redis-set", &image]].concat());
    let [vm, container] = report["workloads"][0]["cells"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert!(vm["ratio"]["ratio"].as_f64().unwrap() > 0.0 && container["ratio"].is_null(), "{report}");
    let (status, _, stderr) = home.run(&["bench", "io", "-q", "--backends", "container", "IMAGE"]);
    assert_eq!((status, stderr.lines().count()), (Some(125), 3), "{stderr}");
    assert!(stderr.contains("`fio` not found") && stderr.contains("scripts/test-images io"), "{stderr}");
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
    let volumes = home.path().join("data").read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!volumes.into_iter().any(|name| name.to_string_lossy().starts_with("bench-io-")), "a volume is left");
}

/// Runs `bench startup` with these words; gives its result.
fn result(home: &Home, words: &[&str]) -> Value {
    serde_json::from_str(&home.ok(&[&["bench", "startup", "-q", "--format", "json"], words].concat())).unwrap()
}

#[test]
fn main_path_our_own_containers_are_measured_at_once_and_against_earlier_ones() {
    let home = Home::new();
    let folder = home.path().join("report");
    let words = ["-n", "4", "--warm-up", "0", "--only-times", "--backends", "container,crun"];
    let more = ["--concurrency", "1,2", "--report", folder.to_str().unwrap(), "IMAGE"];
    let first = result(&home, &[&words[..], &more].concat());
    let [container, crun] = first["backends"].as_array().unwrap().as_slice() else { panic!("{first}") };
    assert_eq!((&container["name"], &container["firstByte"]["n"]), (&"container".into(), &4.into()), "{first}");
    for one in [container, crun] {
        let rates: Vec<(u64, u64)> = one["rates"]
            .as_array()
            .unwrap()
            .iter()
            .map(|rate| {
                assert!(rate["perSecond"].as_f64().unwrap() > 0.0, "{one}");
                (rate["atOnce"].as_u64().unwrap(), rate["start"]["n"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(rates, [(1, 4), (2, 4)], "{one}");
    }
    assert!(std::fs::read_to_string(folder.join("index.html")).unwrap().contains("Many at once"));
    let earlier = folder.join("result.json").display().to_string();
    let second = result(&home, &[&words[..], &["--baseline", &earlier, "IMAGE"]].concat());
    let comparison = &second["comparison"];
    assert_eq!(comparison["started"], first["started"]);
    let names: Vec<&Value> = comparison["backends"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert!(names == ["container", "crun"] && comparison["differs"] == Value::Array(Vec::new()), "{comparison}");
    let (status, _, stderr) = home.run(&["bench", "startup", "--baseline", "/etc/passwd", "IMAGE"]);
    assert!(status == Some(125) && stderr.contains("/etc/passwd"), "{stderr}");
    // A server, to its first answer; crun has no network here.
    let serve = ["IMAGE", "sh", "-c", "echo here > /index.html; exec httpd -f -p 80 -h /"];
    let served = result(&home, &[&["-n", "2", "--backends", "container,crun", "--http", "80"][..], &serve].concat());
    assert_eq!((&served["backends"][0]["firstByte"]["n"], &served["http"]), (&2.into(), &80.into()), "{served}");
    assert!(served["backends"][1]["failed"].as_str().unwrap().contains("no network"), "{served}");
    // The command fails where there is no such interface.
    let words = ["-n", "1", "--only-times", "--backends", "container,crun", "--network", "default"];
    let linked = result(&home, &[&words[..], &["IMAGE", "ip", "link", "show", "eth0"]].concat());
    assert_eq!((&linked["networked"], &linked["backends"][0]["failed"]), (&true.into(), &"".into()), "{linked}");
    assert!(linked["backends"][1]["failed"].as_str().unwrap().contains("eth0"), "{linked}");
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
}

/// Stands in for microsandbox's program: keeps what index the image's archive has, and runs the words behind `--`.
const MSB: &str = r#"#!/bin/sh
set -e
case $1 in
--version) echo msb 9 ;;
load) for archive; do :; done; tar -xOf "$archive" index.json > "$MSB_HOME/image" ;;
run)
  [ -s "$MSB_HOME/image" ]
  while [ "$1" != -- ]; do [ "$1" != --entrypoint ] || program=$2; shift; done
  shift
  exec $program "$@" ;;
esac
"#;

#[test]
fn main_path_programs_of_others_are_named_by_path() {
    let home = Home::new();
    let msb = home.path().join("msb");
    std::fs::write(&msb, MSB).unwrap();
    std::fs::set_permissions(&msb, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let crun = common::host("sh", &["-c", "command -v crun"]);
    let backends = format!("microsandbox={},crun={},runc=/nowhere", msb.display(), crun.trim());
    let found = result(&home, &["-n", "2", "--only-times", "--backends", &backends, "IMAGE"]);
    let [by_path, missing, other] = found["backends"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert_eq!((&by_path["command"][0], &by_path["firstByte"]["n"]), (&crun.trim().into(), &2.into()), "{found}");
    assert!(missing["failed"].as_str().unwrap().contains("`/nowhere --version` does not work"), "{found}");
    assert_eq!((&other["version"], &other["firstByte"]["n"]), (&"msb 9".into(), &2.into()), "{found}");
}

#[test]
fn what_cannot_be_measured_is_explained() {
    let home = Home::new();
    for (words, status, why) in [
        (&["-n", "0", "IMAGE"][..], 2, "0 is not in"),
        (&["--backends", "docker", "IMAGE"], 2, "it is one of vm"),
        (&["--backends", "vm=/bin/true", "IMAGE"], 2, "it is Coracle's own"),
        (&["--backends", "crun,crun=/bin/crun", "IMAGE"], 125, "with two programs"),
        (&["oci:/nowhere"], 125, "/nowhere"),
        (&["--backends", "crun", "IMAGE", "no-such-program"], 125, "no-such-program"),
        (&["--backends", "crun", "IMAGE", "sh", "-c", "exit 3"], 125, "it ended with status 3"),
        (&["--report", "/proc/none", "IMAGE"], 125, "cannot write to /proc/none"),
    ] {
        let (found, stdout, stderr) = home.run(&[&["bench", "startup", "-q"], words].concat());
        assert_eq!((found, stdout.as_str()), (Some(status), ""), "{words:?}: {stderr}");
        assert!(stderr.contains(why) && (status == 2 || stderr.lines().count() == 3), "{words:?}: {stderr}");
    }
    assert_eq!(home.left(), 0);
}

#[test]
fn an_interrupt_keeps_what_was_measured() {
    let words =
        ["bench", "startup", "-n", "10000", "--only-times", "--warm-up", "0", "--backends", "crun", "--format", "csv"];
    interrupted(&[&words[..], &["IMAGE"]].concat(), "crun,3,false,");
    let image = format!("oci:{}", cache("images/io").display());
    let words = ["bench", "io", "-n", "10000", "--seconds", "1", "--only", "net-to-host", "--backends", "container"];
    interrupted(&[&words[..], &["--format", "csv", &image]].concat(), "net-to-host,container,3,false,");
}

/// Interrupts it in its fifth round; it has to print this line of an earlier one.
fn interrupted(words: &[&str], line: &str) {
    let home = Home::new();
    let folder = home.path().join("report");
    let mut child = home.command(words);
    let output = std::fs::File::create(&folder).unwrap();
    let errors = home.path().join("errors");
    let mut child = child.stdout(output).stderr(std::fs::File::create(&errors).unwrap()).spawn().unwrap();
    eventually("the fifth round", || std::fs::read_to_string(&errors).unwrap().contains("round 5 ").then_some(()));
    signal(child.id(), libc::SIGINT);
    let status = eventually("it ends", || child.try_wait().unwrap());
    let csv = std::fs::read_to_string(&folder).unwrap();
    assert_eq!(status.code(), Some(130), "{csv}{}", std::fs::read_to_string(&errors).unwrap());
    assert!((4..10000).contains(&csv.lines().count()) && csv.contains(line), "{csv}");
    assert_eq!((home.left(), home.ok(&["ps", "-aq"]).as_str()), (0, ""));
}
