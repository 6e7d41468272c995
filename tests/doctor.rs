// SPDX-License-Identifier: Apache-2.0
//! What a user is told about a host: `coracle doctor`, on this host and on hosts made to lack something.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const CORACLE: &str = env!("CARGO_BIN_EXE_coracle");

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs a shell script, in which `$1` is coracle, in a mount namespace of its own, where /dev can be changed.
fn in_changed_host(script: &str) -> (i32, String, String) {
    run(Command::new("unshare").args(["--map-root-user", "--mount", "sh", "-ec", script, "sh", CORACLE]))
}

#[test]
fn main_path_doctor_finds_a_host_that_can_run_microvms() {
    let (status, stdout, stderr) = run(Command::new(CORACLE).args(["doctor", "--format", "json"]));
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &report["canRun"], stderr.as_str()), (0, &Value::Bool(true), ""), "{stdout}");
    for check in report["sections"].as_array().unwrap().iter().flat_map(|s| s["checks"].as_array().unwrap()) {
        // Whatever lacks has a price and a remedy; whatever does not, has neither.
        let lacks = check["status"] != "ok";
        assert_eq!(check.get("cost").is_some(), lacks, "{check}");
        assert_eq!(check.get("remedy").is_some(), lacks, "{check}");
    }
}

#[test]
fn main_path_doctor_tells_a_missing_node_from_a_missing_module() {
    let (status, stdout, _) = in_changed_host("mount -t tmpfs none /dev; exec \"$1\" doctor");
    assert_eq!(status, 1, "{stdout}");
    assert!(stdout.contains("KVM is loaded, but there is no device node /dev/kvm"), "{stdout}");
    assert!(stdout.contains("--device /dev/kvm"), "{stdout}");
    assert!(stdout.contains("This host cannot run microVMs"), "{stdout}");
}

#[test]
fn main_path_doctor_tells_who_may_use_kvm() {
    let node = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(node.path(), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    // Root without its capabilities is refused as anybody is.
    let script = format!(
        "mount --bind {} /dev/kvm; exec setpriv --bounding-set=-all --inh-caps=-all \"$1\" doctor",
        node.path().display()
    );
    let (status, stdout, _) = in_changed_host(&script);
    assert_eq!(status, 1, "{stdout}");
    assert!(stdout.contains("permission denied: /dev/kvm belongs to group"), "{stdout}");
    assert!(stdout.contains("sudo usermod -aG kvm $USER"), "{stdout}");
}

#[test]
fn main_path_doctor_is_not_fooled_by_another_device() {
    let (status, stdout, _) = in_changed_host("mount --bind /dev/null /dev/kvm; exec \"$1\" doctor");
    assert_eq!(status, 1, "{stdout}");
    assert!(stdout.contains("/dev/kvm is not KVM's device node"), "{stdout}");
}

#[test]
fn colour_is_for_terminals() {
    let (_, plain, _) = run(Command::new(CORACLE).arg("doctor"));
    assert!(!plain.contains('\x1b'));
    let (_, coloured, _) = run(Command::new(CORACLE).arg("doctor").env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR"));
    assert!(coloured.contains('\x1b'));
    let (_, refused, _) = run(Command::new(CORACLE).arg("doctor").env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1"));
    assert!(!refused.contains("\x1b[32m"));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (status, _, stderr) =
        run(Command::new("bash").args(["-c", "\"$1\" doctor | head -n 1 >&2; exit ${PIPESTATUS[0]}", "bash", CORACLE]));
    assert_eq!(status, 0, "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn completion_is_a_script_that_the_shell_accepts() {
    let (status, script, _) = run(Command::new(CORACLE).args(["completion", "bash"]));
    assert_eq!(status, 0);
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success());
    assert!(script.contains("doctor"));
}

#[test]
fn wrong_usage_is_status_2_and_says_so_on_stderr() {
    let (status, stdout, stderr) = run(Command::new(CORACLE).arg("docter"));
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert!(stderr.contains("'docter'") && stderr.contains("doctor"), "{stderr}");
}
