// SPDX-License-Identifier: Apache-2.0
//! `coracle boot` on real KVM: kernels of every form, machines of every shape, and every way in which a guest ends.

mod common;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{CORACLE, Control, Guest, cache, eventually, kernel, run};

#[test]
fn main_path_an_elf_kernel_boots_to_a_shell_that_answers() {
    let mut guest = Guest::shell(&[]);
    assert_eq!(guest.sh("echo $((6 * 7))").trim(), "42");
    assert!(guest.sh("uname -r").contains("coracle"));
    assert_eq!(guest.sh("nproc").trim(), "1");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn main_path_a_bzimage_boots() {
    let (kernel, initrd) = (cache("kernel/bzImage"), cache("guest/console.cpio"));
    let mut guest = Guest::start([kernel.as_os_str(), "--initrd".as_ref(), initrd.as_os_str()]);
    guest.log_in();
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn a_kernel_boots_by_pvh() {
    let mut guest = Guest::shell(&["--protocol", "pvh"]);
    assert!(guest.sh("cat /proc/cmdline").contains("virtio_mmio.device=4K@0xd0000000:5"));
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn main_path_two_vcpus_both_work() {
    let mut guest = Guest::shell(&["--cpus", "2"]);
    assert_eq!(guest.sh("nproc").trim(), "2");
    for cpu in 0..2 {
        // Pins itself to the CPU by its interrupt-free way: the affinity mask of the shell's child.
        assert_eq!(guest.sh(&format!("taskset -c {cpu} sh -c 'echo on {cpu}'")).trim(), format!("on {cpu}"));
    }
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn four_vcpus_and_memory_beyond_the_hole() {
    let mut guest = Guest::shell(&["--cpus", "4", "--memory", "4G"]);
    assert_eq!(guest.sh("nproc").trim(), "4");
    let kib: u64 = guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").trim().parse().unwrap();
    assert!((3_900_000..4_194_304).contains(&kib), "{kib}");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn sixty_four_mib_are_enough() {
    let mut guest = Guest::shell(&["--memory", "64M"]);
    let kib: u64 = guest.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").trim().parse().unwrap();
    assert!(kib < 65_536, "{kib}");
    assert_eq!(guest.power_off(), 0);
}

#[test]
fn main_path_a_reboot_is_told_apart() {
    let mut guest = Guest::shell(&[]);
    guest.type_in("reboot -f\n");
    let (status, _, stderr) = guest.wait();
    assert_eq!(status.code(), Some(100), "{stderr}");
    assert!(stderr.contains("asked for a reboot"), "{stderr}");
}

#[test]
fn main_path_a_kernel_without_init_panics_and_says_so() {
    let guest = Guest::start([kernel().as_os_str()]);
    let (status, stdout, _) = guest.wait();
    assert_eq!(status.code(), Some(101));
    assert!(stdout.contains("Kernel panic"), "{stdout}");
}

/// A kernel of a few bytes: loads an empty interrupt table and reads where nothing is mapped, which faults, and faults
/// again, and again.
#[test]
fn main_path_a_triple_fault_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("triple");
    // lidt [rip + 11]; mov rax, [0x7000_0000_0000]; hlt; the ten bytes behind are the empty table.
    let mut code = vec![0x0f, 0x01, 0x1d, 11, 0, 0, 0, 0x48, 0xa1, 0, 0, 0, 0, 0, 0x70, 0, 0, 0xf4];
    code.extend([0; 10]);
    std::fs::write(&path, tiny_kernel(&code)).unwrap();
    let (status, _, stderr) = Guest::start([path.as_os_str()]).wait();
    assert_eq!(status.code(), Some(102), "{stderr}");
    assert!(stderr.contains("triple fault"), "{stderr}");
}

/// An ELF file for x86-64 with one segment at 1 MiB: `code`, entered at its start.
fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes());
    for word in [0x10_0000u64, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    for word in [1u32, 7] {
        elf.extend(word.to_le_bytes());
    }
    let length = code.len() as u64;
    for word in [120u64, 0x10_0000, 0x10_0000, length, length, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[test]
fn main_path_timings_tell_every_stage_in_order() {
    let mut guest = Guest::shell(&["--timings=json"]);
    guest.type_in("poweroff\n");
    let (status, _, stderr) = guest.wait();
    assert_eq!(status.code(), Some(0));
    let line = stderr.lines().find(|line| line.starts_with('[')).expect("a line of JSON");
    let marks: Vec<serde_json::Value> = serde_json::from_str(line).unwrap();
    let stages: Vec<_> = marks.iter().filter_map(|mark| mark["stage"].as_str()).collect();
    // A kernel that has nothing to warn of is silent until the shell's prompt.
    let order = ["process-start", "kvm-created", "memory-ready", "kernel-loaded", "first-run", "init", "agent-ready"];
    let reached: Vec<_> = stages.iter().filter(|stage| **stage != "first-output").copied().collect();
    assert_eq!(reached, order, "{line}");
    assert!(stages.iter().position(|stage| *stage == "first-output") > Some(4), "{line}");
    let times: Vec<_> = marks.iter().map(|mark| mark["wall_ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{line}");
    assert!(marks.last().unwrap()["exits"].as_u64().unwrap() > 0, "{line}");
}

#[test]
fn main_path_a_profile_names_kernel_functions() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("boot.svg");
    let mut guest = Guest::shell(&[&format!("--profile={}", svg.display())]);
    guest.type_in("poweroff\n");
    let (status, _, stderr) = guest.wait();
    assert_eq!(status.code(), Some(0));
    assert!(stderr.contains("samples)"), "{stderr}");
    let named = stderr.lines().filter(|line| line.contains(" %") && line.contains('_')).count();
    assert!(named >= 5, "{stderr}");
    assert!(std::fs::read_to_string(svg).unwrap().contains("<svg"));
}

#[test]
fn main_path_a_paused_guest_stands_still_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    let mut guest = Guest::shell(&["--control", socket.to_str().unwrap()]);
    let mut control = Control::connect(&socket);
    let info = control.request("info");
    assert_eq!((&info["state"], &info["cpus"]), (&"running".into(), &1.into()));
    control.request("pause");
    assert_eq!(control.request("info")["state"], "paused");
    let before = control.request("metrics")["vcpu0_exits"].clone();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(control.request("metrics")["vcpu0_exits"], before);
    control.request("resume");
    assert_eq!(guest.sh("echo still here").trim(), "still here");
    assert!(control.send("{\"request\":\"fly\"}")["error"].is_string());
    assert!(control.send("nonsense")["error"].is_string());
    control.request("stop");
    assert_eq!(guest.wait().0.code(), Some(103));
    assert!(!socket.exists());
}

#[test]
fn a_killed_coracle_takes_its_vmm_along() {
    let guest = Guest::shell(&[]);
    let vmm = guest.vmm_pid();
    drop(guest);
    eventually("the VMM ends", || (!std::path::Path::new(&format!("/proc/{vmm}")).exists()).then_some(()));
}

#[test]
fn ctrl_c_ends_the_guest_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("v.sock");
    let guest = Guest::shell(&["--vsock", socket.to_str().unwrap()]);
    assert!(socket.exists());
    common::host("kill", &["-INT", &guest.pid().to_string()]);
    assert_eq!(guest.wait().0.code(), Some(103));
    assert!(!socket.exists());
}

#[test]
fn main_path_a_console_that_nobody_reads_ends_the_guest() {
    let (kernel, initrd) = (kernel(), cache("guest/console.cpio"));
    let mut boot = Command::new(CORACLE);
    boot.arg("boot").arg(kernel).arg("--initrd").arg(initrd).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut guest = boot.spawn().unwrap();
    // The first byte is read, as `| head -c 1` does; what comes then has no reader.
    guest.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let ended = eventually("it ends", || guest.try_wait().unwrap());
    assert_eq!(ended.code(), Some(103));
}

#[test]
fn main_path_output_that_cannot_be_written_ends_the_guest_and_is_told() {
    let (kernel, initrd) = (kernel(), cache("guest/console.cpio"));
    let full = std::fs::File::create("/dev/full").unwrap();
    let (status, _, stderr) =
        run(Command::new(CORACLE).arg("boot").arg(kernel).arg("--initrd").arg(initrd).stdout(full));
    assert_eq!(status, Some(125));
    assert!(stderr.contains("No space left"), "{stderr}");
}

#[test]
fn the_log_file_gets_what_the_console_got() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("console.log");
    let mut guest = Guest::shell(&["--log-file", log.to_str().unwrap()]);
    guest.sh("echo to be logged");
    assert_eq!(guest.power_off(), 0);
    assert!(std::fs::read_to_string(log).unwrap().contains("to be logged"));
}

#[test]
fn without_a_console_nothing_is_printed() {
    let (kernel, initrd) = (kernel(), cache("guest/initramfs.cpio"));
    let words = ["--initrd".as_ref(), initrd.as_os_str(), "--console".as_ref(), "none".as_ref(), "--timings".as_ref()];
    let guest = Guest::spawn(Command::new(CORACLE).arg("boot").arg(kernel).args(words));
    std::thread::sleep(Duration::from_secs(1));
    common::host("kill", &["-TERM", &guest.pid().to_string()]);
    let (status, stdout, _) = guest.wait();
    assert_eq!((status.code(), stdout.as_str()), (Some(103), ""));
}

#[test]
fn the_users_words_replace_the_default_command_line() {
    let words = ["--no-default-cmdline", "--cmdline", "console=ttyS0 panic=-1 reboot=k mine=yes"];
    let pvm = run(Command::new(CORACLE).arg("version")).1.contains("PVM");
    // On PVM hosts the kernel cannot run without the words that the default has for it.
    let extra = if pvm { " clearcpuid=popcnt,cx16,rdrand,rdseed,bmi1,bmi2,movbe,erms,fsrm,smap,smep,umip" } else { "" };
    let line = format!("{}{extra}", words[2]);
    let mut guest = Guest::start(Guest::shell_words(&[words[0], words[1], &line]));
    guest.log_in();
    // The bundled kernel puts a word of its own before all others.
    assert_eq!(guest.sh("cat /proc/cmdline").trim(), format!("noreplace-smp {line}"));
    assert_eq!(guest.power_off(), 0);
}
