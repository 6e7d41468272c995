// SPDX-License-Identifier: Apache-2.0
//! Each device from inside a guest, with the tools that people use.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{CORACLE, Control, Guest, eventually, host, sha256};

fn disk(folder: &Path, name: &str, mib: u64) -> String {
    let path = folder.join(name);
    fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.display().to_string()
}

#[test]
fn main_path_what_a_guest_writes_to_a_disk_is_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let image = disk(folder.path(), "disk", 1);
    let mut guest = Guest::shell(&["--disk", &format!("{image},serial=CORACLE-1")]);
    assert_eq!(guest.sh("cat /sys/block/vda/size").trim(), "2048");
    assert_eq!(guest.sh("cat /sys/block/vda/serial").trim(), "CORACLE-1");
    guest.sh("dd if=/dev/urandom of=/dev/vda bs=64k count=4 seek=7 conv=fsync 2>/dev/null");
    let inside = guest.sh("sha256sum /dev/vda").split_whitespace().next().unwrap().to_owned();
    assert_eq!(sha256(Path::new(&image)), inside);
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn main_path_a_read_only_disk_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let image = disk(folder.path(), "disk", 4);
    fs::write(&image, vec![7; 4 << 20]).unwrap();
    let before = sha256(Path::new(&image));
    let mut guest = Guest::shell(&["--disk", &format!("{image},ro")]);
    assert_eq!(guest.sh("cat /sys/block/vda/ro").trim(), "1");
    assert_ne!(guest.try_sh("dd if=/dev/zero of=/dev/vda bs=4k count=1 conv=fsync").0, 0);
    assert_eq!(guest.power_off(), 0);
    assert_eq!(sha256(Path::new(&image)), before);
}

#[test]
fn a_file_system_survives_and_discard_gives_space_back() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    let image = disk(folder.path(), "disk", 32);
    host("mkfs.ext4", &["-q", "-F", &image]);
    let mut guest = Guest::shell(&["--disk", &image, "--cpus", "2"]);
    guest.sh("mkdir -p /d && mount -t ext4 /dev/vda /d");
    guest.sh("dd if=/dev/urandom of=/d/large bs=64k count=64 2>/dev/null && sync");
    let full = fs::metadata(&image).unwrap().blocks();
    guest.sh("rm /d/large && sync && fstrim /d && umount /d");
    assert_eq!(guest.power_off(), 0);
    let trimmed = fs::metadata(&image).unwrap().blocks();
    assert!(trimmed + 4096 <= full, "{full} blocks, {trimmed} after");
    host("e2fsck", &["-f", "-n", &image]);
}

/// A network namespace with a TAP `tap0` that the host side reaches at 192.0.2.1; gone when dropped.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let namespace = Self(format!("coracle-{name}-{}", std::process::id()));
        host("ip", &["netns", "add", &namespace.0]);
        namespace.ip(&["tuntap", "add", "tap0", "mode", "tap"]);
        namespace.ip(&["addr", "add", "192.0.2.1/24", "dev", "tap0"]);
        namespace.ip(&["link", "set", "tap0", "up"]);
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    fn ip(&self, words: &[&str]) {
        host("ip", &[&["-n", &self.0], words].concat());
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn shell(&self, words: &[&str]) -> Guest {
        let mut guest = Guest::spawn(self.command(CORACLE).arg("boot").args(Guest::shell_words(words)));
        guest.log_in();
        guest.sh("ip addr add 192.0.2.2/24 dev eth0 && ip link set eth0 up");
        guest
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

#[test]
fn main_path_a_guest_and_its_host_ping_each_other() {
    let namespace = Namespace::new("ping");
    let mut guest = namespace.shell(&["--net", "tap=tap0,mac=02:00:00:00:00:07"]);
    assert_eq!(guest.sh("cat /sys/class/net/eth0/address").trim(), "02:00:00:00:00:07");
    assert!(guest.sh("ping -c 3 192.0.2.1").contains("3 packets received"));
    let (status, stdout, _) = common::run(namespace.command("ping").args(["-c", "3", "-s", "1400", "192.0.2.2"]));
    assert_eq!(status, Some(0), "{stdout}");
    assert_eq!(guest.power_off(), 0);
}

/// Memory of the VMM that is resident and shared, which the guest's RAM is, in KiB.
fn guest_ram_resident(vmm: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{vmm}/smaps_rollup")).unwrap();
    let shmem = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    shmem.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

#[test]
fn main_path_memory_that_a_guest_frees_goes_back_to_the_host() {
    let mut guest = Guest::shell(&["--memory", "256M"]);
    guest.sh("mkdir -p /m && mount -t tmpfs -o size=128m tmp /m");
    let vmm = guest.vmm_pid();
    let before = guest_ram_resident(vmm);
    guest.sh("dd if=/dev/zero of=/m/fill bs=1M count=32 2>/dev/null");
    let full = guest_ram_resident(vmm);
    assert!(full >= before + (24 << 10), "{before} KiB before, {full} KiB full");
    guest.sh("rm /m/fill");
    eventually("the freed memory is given back", || (guest_ram_resident(vmm) + (20 << 10) <= full).then_some(()));
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn a_balloon_takes_memory_and_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let mut guest = Guest::shell(&["--memory", "256M", "--control", socket.to_str().unwrap()]);
    let mut control = Control::connect(&socket);
    let free =
        |guest: &mut Guest| -> u64 { guest.sh("awk '/MemFree/ {print $2}' /proc/meminfo").trim().parse().unwrap() };
    let before = free(&mut guest);
    assert_eq!(control.send("{\"request\":\"balloon\",\"target_mib\":32}")["ok"], serde_json::Value::Null);
    eventually("the balloon inflates", || (free(&mut guest) + (30 << 10) <= before).then_some(()));
    control.send("{\"request\":\"balloon\",\"target_mib\":0}");
    eventually("the balloon deflates", || (free(&mut guest) + (8 << 10) >= before).then_some(()));
    assert!(control.send("{\"request\":\"balloon\",\"target_mib\":100000}")["error"].is_string());
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn main_path_a_virtio_console_takes_a_shell() {
    let mut guest = Guest::shell(&["--console", "virtio"]);
    assert_eq!(guest.sh("cat /sys/class/tty/console/active").trim(), "hvc0");
    // More than any buffer on the way holds at once.
    let lines = guest.sh("seq 1 500");
    assert!(lines.lines().filter(|line| !line.is_empty()).count() >= 500 && lines.contains("\n499\n500\n"), "{lines}");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn a_flood_on_the_console_does_not_stop_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let (log, socket) = (folder.path().join("log"), folder.path().join("control.sock"));
    let words = ["--log-file", log.to_str().unwrap(), "--control", socket.to_str().unwrap()];
    let mut guest = Guest::shell(&words);
    guest.type_in("yes flood\n");
    guest.wait_for("flood\r\nflood");
    let mut control = Control::connect(&socket);
    for _ in 0..20 {
        assert_eq!(control.request("info")["state"], "running");
        std::thread::sleep(Duration::from_millis(50));
    }
    control.request("stop");
    assert_eq!(guest.wait().0.code(), Some(103));
    assert!(fs::metadata(log).unwrap().len() < 16 << 20);
}
