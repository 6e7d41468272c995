// SPDX-License-Identifier: Apache-2.0
//! The guest's agent in a real guest: over vsock, and at its console.

mod common;

use std::os::unix::net::UnixStream;

use common::{Guest, PATIENCE, cache, eventually, kernel};
use coracle_protocol::{AGENT_PORT, Channel, Message, Ping, Shutdown, ShutdownMode, connect_hybrid_vsock};
use tempfile::TempDir;

/// A guest with this initramfs and a vsock in the folder.
fn boot(initramfs: &str) -> (Guest, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, initrd, vsock) = (kernel(), cache(initramfs), folder.path().join("vsock"));
    let guest =
        Guest::start([kernel.as_os_str(), "--initrd".as_ref(), initrd.as_ref(), "--vsock".as_ref(), vsock.as_ref()]);
    (guest, folder)
}

/// Connects to the agent as soon as it is there.
fn agent(folder: &TempDir) -> Channel<UnixStream> {
    let vsock = folder.path().join("vsock");
    let stream = eventually("the agent listens", || connect_hybrid_vsock(&vsock, AGENT_PORT, PATIENCE).ok());
    Channel::open(stream, "agent test").unwrap()
}

#[test]
fn main_path_the_agent_answers_over_vsock_and_powers_off() {
    let (guest, folder) = boot("guest/initramfs.cpio");
    let mut first = agent(&folder);
    let facts = first.ready().facts.clone();
    assert!(facts.kernel.as_str().starts_with("6.1."), "{facts:?}");
    assert_eq!(facts.cpus, 1);
    assert!((64 << 10..=128 << 10).contains(&facts.memory_kib), "{facts:?}");
    for token in 0..20 {
        let ping = Ping { token };
        assert_eq!(first.call(&Message::Ping(ping)).unwrap(), Message::Pong(ping));
    }
    assert_eq!(first.call(&Message::Prepare).unwrap(), Message::Ack);
    assert_eq!(first.call(&Message::Prepare).unwrap(), Message::Ack);
    // A second connection is served beside the first.
    let mut second = agent(&folder);
    let shutdown = Shutdown { mode: ShutdownMode::PowerOff, grace_ms: 1000 };
    assert_eq!(second.call(&Message::Shutdown(shutdown)).unwrap(), Message::Ack);
    drop((first, second));
    assert_eq!(guest.wait().0.code(), Some(0));
}

#[test]
fn the_agent_reboots() {
    let (guest, folder) = boot("guest/initramfs.cpio");
    let shutdown = Shutdown { mode: ShutdownMode::Reboot, grace_ms: 0 };
    assert_eq!(agent(&folder).call(&Message::Shutdown(shutdown)).unwrap(), Message::Ack);
    assert_eq!(guest.wait().0.code(), Some(100));
}

#[test]
fn main_path_the_console_has_a_shell_with_job_control() {
    const PROMPT: &str = "guest:/# ";
    let (mut guest, folder) = boot("guest/console.cpio");
    guest.wait_for(PROMPT);
    // The echo of a line never contains what the line prints.
    guest.type_in("echo ter''minal: $(tty), pid1: $(cat /proc/1/comm)\n");
    guest.wait_for("terminal: /dev/console, pid1: init");
    guest.wait_for(PROMPT);
    guest.type_in(
        "for at in /proc /sys /dev /dev/pts /dev/shm /run; do grep -q \" $at \" /proc/mounts || echo miss''ing $at; done\n",
    );
    let between = guest.wait_for(PROMPT);
    assert!(!between.contains("missing"), "{between}");
    // Only in the foreground of a controlling terminal does ^C reach a program.
    // Who says so is in the foreground already: a ^C between the shell's fork and that is nobody's.
    guest.type_in("sh -c 'echo sleep\"\"ing; exec sleep 1000'; echo status: $?\n");
    guest.wait_for("sleeping");
    guest.type_in("\x03\n");
    guest.wait_for("^C");
    guest.wait_for(PROMPT);
    // An orphan becomes a child of PID 1, and does not stay a zombie.
    guest.type_in(
        "(sleep 0.1 &); sleep 2; echo zom''bies: $(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)\n",
    );
    guest.wait_for("zombies: 0");
    guest.wait_for(PROMPT);
    // The host is served while someone types.
    let ping = Ping { token: 7 };
    assert_eq!(agent(&folder).call(&Message::Ping(ping)).unwrap(), Message::Pong(ping));
    guest.type_in("poweroff\n");
    assert_eq!(guest.wait().0.code(), Some(0));
}

#[test]
fn the_end_of_the_console_s_shell_is_the_end_of_the_guest() {
    let (mut guest, _folder) = boot("guest/console.cpio");
    guest.wait_for("guest:/# ");
    guest.type_in("exit\n");
    assert_eq!(guest.wait().0.code(), Some(0));
}
