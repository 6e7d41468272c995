// SPDX-License-Identifier: Apache-2.0
//! A VMM whose guest runs is locked up, as its process shows: from boot on, in a clone, and while all of it is used.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::home::Home;
use common::{Guest, cache, eventually, host, kernel};

/// Somebody without rights.
const USER: u32 = 60777;

/// A field of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn root(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/root")).unwrap()
}

/// What every VMM started by root has in common; gives its user.
fn assert_locked(pid: u32) -> String {
    // The filter comes right before the guest runs.
    eventually("the filter is there", || (status(pid, "Seccomp") == "2").then_some(()));
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(status(pid, set).trim_start_matches('0'), "", "{set}");
    }
    assert_eq!(status(pid, "Groups"), "");
    let user = status(pid, "Uid").split(' ').next().unwrap().to_owned();
    assert!(user.parse::<u32>().unwrap() > 2_000_000_000, "{user}");
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = fs::read_to_string(task.join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
        assert!(status.contains(&format!("Uid:\t{user}\t{user}\t{user}")), "{status}");
        assert_eq!(fs::read_link(task.join("root")).unwrap(), root(pid));
    }
    user
}

#[test]
fn a_booted_vm_sees_the_directory_of_its_vsock() {
    let folder = tempfile::tempdir().unwrap();
    let (vsock, control) = (folder.path().join("vsock"), folder.path().join("control"));
    let guest = Guest::shell(&["--vsock", vsock.to_str().unwrap(), "--control", control.to_str().unwrap()]);
    let pid = guest.vmm_pid();
    assert_locked(pid);
    assert_eq!(root(pid), fs::canonicalize(folder.path()).unwrap());
    assert!(status(pid, "Uid").ends_with(" 0"), "its vsock's directory is root's");
    assert_eq!(guest.power_off(), 0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "sockets are removed by the owner");
}

#[test]
fn a_vm_without_vsock_sees_nothing() {
    let guest = Guest::shell(&[]);
    let pid = guest.vmm_pid();
    let user = assert_locked(pid);
    assert_eq!(status(pid, "Uid"), [user.as_str(); 4].join(" "));
    assert!(root(pid).to_str().unwrap().ends_with("/fdinfo"), "{:?}", root(pid));
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn without_a_jail_a_vm_has_its_users_rights() {
    let guest = Guest::shell(&["--no-jail"]);
    let pid = guest.vmm_pid();
    assert_eq!((status(pid, "Seccomp").as_str(), root(pid).to_str()), ("0", Some("/")));
    assert_eq!(status(pid, "Uid"), "0 0 0 0");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn containers_have_different_users_and_do_not_see_their_monitors_socket() {
    let home = Home::new();
    let users = ["one", "two"].map(|name| {
        home.ok(&["run", "-d", "--name", name, "--network", "none", "IMAGE", "sleep", "1000"]);
        let pid: u32 = home.field(name, "{{.State.Pid}}").parse().unwrap();
        let files = fs::read_dir(format!("/proc/{pid}/root")).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        // The second is the port for its errors.
        assert!(files.iter().all(|name| name == "vsock" || name.starts_with("vsock_")), "{files:?}");
        assert_locked(pid)
    });
    assert_ne!(users[0], users[1]);
    home.ok(&["rm", "-f", "one", "two"]);
    assert_eq!((home.left(), home.containers()), (0, 0));
}

#[test]
fn without_root_it_is_the_same_but_for_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    std::os::unix::fs::chown(folder.path(), Some(USER), Some(USER)).unwrap();
    host("mknod", &["-m", "666", &place("kvm"), "c", "10", "232"]);
    // What the user runs may lie where it does not see it.
    let program = env!("CARGO_BIN_EXE_coracle");
    let mut script = format!("set -e; mount --bind {} /dev/kvm;", place("kvm"));
    let [kernel, initrd] = [kernel(), cache("guest/console.cpio")].map(|path| path.display().to_string());
    let vmm = env!("CARGO_BIN_EXE_coracle-vmm");
    for (name, file) in [("kernel", &*kernel), ("initrd", &*initrd), ("coracle", program), ("coracle-vmm", vmm)] {
        fs::write(place(name), "").unwrap();
        script.push_str(&format!("mount --bind '{file}' {};", place(name)));
    }
    script.push_str("exec setpriv --reuid=60777 --regid=60777 --clear-groups \"$0\" boot \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation=private", "sh", "-c", &script, &place("coracle"), &place("kernel")]);
    command.args(["--initrd", &place("initrd"), "--vsock", &place("vsock")]);
    let mut guest = Guest::spawn(&mut command);
    guest.log_in();
    let pid = guest.vmm_pid();
    eventually("the filter is there", || (status(pid, "Seccomp") == "2").then_some(()));
    assert_eq!((status(pid, "Uid"), status(pid, "CapEff")), ([USER.to_string().as_str(); 4].join(" "), "0".repeat(16)));
    assert_eq!(root(pid), fs::canonicalize(folder.path()).unwrap());
    assert_eq!(guest.power_off(), 0);
    assert!(!folder.path().join("vsock").exists());
}

#[test]
fn root_with_less_than_roots_rights_is_locked_up_too() {
    // Root of a user namespace that knows nobody else, and root without capabilities, as in containers.
    let launchers: [&[&str]; 2] = [&["unshare", "-r"], &["setpriv", "--bounding-set=-all", "--inh-caps=-all"]];
    for launcher in launchers {
        let folder = tempfile::tempdir().unwrap();
        let vsock = folder.path().join("vsock");
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(env!("CARGO_BIN_EXE_coracle")).arg("boot");
        command.args(Guest::shell_words(&["--vsock", vsock.to_str().unwrap()]));
        let mut guest = Guest::spawn(&mut command);
        guest.log_in();
        let pid = guest.vmm_pid();
        eventually("the filter is there", || (status(pid, "Seccomp") == "2").then_some(()));
        assert_eq!(status(pid, "CapEff"), "0".repeat(16), "{launcher:?}");
        assert_eq!(root(pid), fs::canonicalize(folder.path()).unwrap(), "{launcher:?}");
        assert_eq!(guest.power_off(), 0);
        assert!(!vsock.exists());
    }
}
