// SPDX-License-Identifier: Apache-2.0
//! Each device from inside a guest, with the tools that people use.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{CORACLE, Control, Guest, PATIENCE, cache, eventually, host, sha256};

/// Test tools for the guest (fio, iperf3, socat, rngtest), as a read-only file system on persistent memory.
fn tools() -> String {
    cache("test/tools.erofs").display().to_string()
}

/// Makes the tools usable: mounted at /t, where `chroot` finds a root file system with /dev and /proc.
fn mount_tools(guest: &mut Guest) {
    guest.sh("mkdir -p /t && mount -t erofs -o ro /dev/pmem0 /t");
    guest.sh("mount --bind /dev /t/dev && mount -t proc proc /t/proc && mount -t tmpfs tmp /t/tmp");
}

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

#[test]
fn fio_verifies_what_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let image = disk(folder.path(), "disk", 8);
    let mut guest = Guest::shell(&["--disk", &image, "--pmem", &tools(), "--memory", "256M", "--cpus", "2"]);
    mount_tools(&mut guest);
    let job = "--name=v --filename=/dev/vda --rw=randwrite --bs=4k --size=1m --direct=1 --ioengine=libaio --iodepth=16 \
               --verify=crc32c --do_verify=1 --verify_fatal=1 --randrepeat=1 --minimal";
    guest.sh(&format!("chroot /t fio {job} >/dev/null"));
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn persistent_memory_is_mounted_and_refuses_writes() {
    let image = tools();
    let before = sha256(Path::new(&image));
    let mut guest = Guest::shell(&["--pmem", &image]);
    mount_tools(&mut guest);
    assert!(guest.sh("ls /t/usr/bin").contains("fio"));
    assert_ne!(guest.try_sh("touch /t/new").0, 0);
    // The device itself: the guest's kernel takes the write for done, the file must not have it.
    guest.try_sh("dd if=/dev/zero of=/dev/pmem0 bs=4k count=1 seek=1000 conv=fsync");
    assert_eq!(guest.sh("echo alive").trim(), "alive");
    assert_eq!(guest.power_off(), 0);
    assert_eq!(sha256(Path::new(&image)), before);
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

#[test]
fn iperf3_runs_both_ways() {
    let namespace = Namespace::new("iperf");
    let mut server = namespace
        .command("iperf3")
        .args(["-s", "-1", "-p", "5201"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut guest = namespace.shell(&["--net", "tap=tap0", "--pmem", &tools(), "--memory", "256M"]);
    mount_tools(&mut guest);
    guest.sh("ip link set lo up");
    let report = guest.sh("chroot /t iperf3 -c 192.0.2.1 -p 5201 -n 2M -J | grep -c bits_per_second");
    assert!(report.trim().parse::<u32>().unwrap() > 0);
    assert!(server.wait().unwrap().success());
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn the_host_reaches_a_program_in_the_guest_by_vsock() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("v.sock");
    let mut guest = Guest::shell(&["--vsock", socket.to_str().unwrap(), "--pmem", &tools(), "--memory", "256M"]);
    mount_tools(&mut guest);
    guest.sh("chroot /t socat -b 65536 VSOCK-LISTEN:5000,fork EXEC:'/bin/busybox cat' >/dev/null 2>&1 &");
    let echo = eventually("the guest listens on port 5000", || connect(&socket, 5000));
    // A pattern that repeats only after 251 bytes shows any loss or reordering.
    let sent: Vec<u8> = (0..100u32 << 20).map(|n| (n % 251) as u8).collect();
    let (mut writer, data) = (echo.try_clone().unwrap(), sent.clone());
    let sending = std::thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&echo).read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == sent, "{} bytes of {} came back, or changed", back.len(), sent.len());
    assert_eq!(guest.power_off(), 0);
}

/// Connects to a port of the guest; `None` while nobody listens there.
fn connect(path: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    writeln!(stream, "CONNECT {port}").ok()?;
    let mut answer = String::new();
    // Byte by byte: what follows the line is the guest's.
    while !answer.ends_with('\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        answer.push(byte[0].into());
    }
    answer.starts_with("OK ").then_some(stream)
}

#[test]
fn a_program_in_the_guest_reaches_the_host_by_vsock() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("v.sock");
    let mut guest = Guest::shell(&["--vsock", socket.to_str().unwrap(), "--pmem", &tools(), "--memory", "256M"]);
    let listener = UnixListener::bind(folder.path().join("v.sock_7000")).unwrap();
    mount_tools(&mut guest);
    guest.type_in("echo hello host | chroot /t socat - VSOCK-CONNECT:2:7000\n");
    let (stream, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert_eq!(line, "hello host\n");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn random_bytes_are_random() {
    let mut guest = Guest::shell(&["--pmem", &tools(), "--memory", "256M"]);
    mount_tools(&mut guest);
    assert_eq!(guest.sh("cat /sys/class/misc/hw_random/rng_current").trim(), "virtio_rng.0");
    let report =
        guest.sh("dd if=/dev/hwrng bs=2500 count=40 iflag=fullblock 2>/dev/null | chroot /t rngtest -c 30 2>&1; true");
    let failures = report.lines().find_map(|line| line.strip_prefix("rngtest: FIPS 140-2 failures: ")).expect(&report);
    // A true source fails about one block in a thousand.
    assert!(failures.trim().parse::<u32>().unwrap() <= 2, "{report}");
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
    eventually("the balloon inflates", || (free(&mut guest) + (24 << 10) <= before).then_some(()));
    control.send("{\"request\":\"balloon\",\"target_mib\":0}");
    eventually("the balloon deflates", || (free(&mut guest) + (12 << 10) >= before).then_some(()));
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
