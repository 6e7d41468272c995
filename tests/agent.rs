// SPDX-License-Identifier: Apache-2.0
//! The guest's agent in a real guest: over vsock, and at its console.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use coracle_protocol::{AGENT_PORT, Channel, Message, Ping, Shutdown, ShutdownMode, connect_hybrid_vsock};

/// Where a kernel's instructions are emulated one by one, and others want the CPU as well, a boot takes its time.
const PATIENCE: Duration = Duration::from_secs(240);

/// A file that scripts/setup, guest/kernel/build or scripts/build-initramfs has put into the cache.
fn built(name: &str) -> PathBuf {
    let home = || Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache");
    let cache = std::env::var_os("CORACLE_CACHE").map_or_else(
        || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("coracle"),
        PathBuf::from,
    );
    let file = cache.join(name);
    assert!(file.exists(), "{} is missing: run guest/kernel/build and scripts/build-initramfs", file.display());
    file
}

struct Guest {
    coracle: Child,
    console: Receiver<Vec<u8>>,
    shown: String,
    directory: tempfile::TempDir,
}

impl Guest {
    fn boot(initramfs: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut coracle = Command::new(env!("CARGO_BIN_EXE_coracle"))
            .arg("boot")
            .arg(built("kernel/vmlinux"))
            .arg("--initrd")
            .arg(built(initramfs))
            .arg("--vsock")
            .arg(directory.path().join("vsock"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = coracle.stdout.take().unwrap();
        let (sender, console) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut chunk) {
                if sender.send(chunk[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { coracle, console, shown: String::new(), directory }
    }

    /// Connects to the agent as soon as it is there.
    fn agent(&self) -> Channel<std::os::unix::net::UnixStream> {
        let started = Instant::now();
        loop {
            let limit = Duration::from_secs(20);
            match connect_hybrid_vsock(&self.directory.path().join("vsock"), AGENT_PORT, limit) {
                Ok(stream) => return Channel::open(stream, "agent test").unwrap(),
                Err(error) => assert!(started.elapsed() < PATIENCE, "{error}\n{}", self.shown),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.coracle.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Waits until the console shows `text` beyond what was waited for before, and returns what came before it.
    fn expect(&mut self, text: &str) -> String {
        let started = Instant::now();
        loop {
            if let Some((before, after)) = self.shown.split_once(text) {
                let (before, after) = (before.to_owned(), after.to_owned());
                self.shown = after;
                return before;
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            match self.console.recv_timeout(left) {
                Ok(bytes) => self.shown.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no `{text}` on the console ({error}):\n{}", self.shown),
            }
        }
    }

    fn end(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.coracle.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "the guest does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Where the test has passed, it has ended already.
        let _ = self.coracle.kill();
        let _ = self.coracle.wait();
    }
}

#[test]
fn main_path_the_agent_answers_over_vsock_and_powers_off() {
    let mut guest = Guest::boot("guest/initramfs.cpio");
    let mut agent = guest.agent();
    let facts = agent.ready().facts.clone();
    assert!(facts.kernel.as_str().starts_with("6.1."), "{facts:?}");
    assert_eq!(facts.cpus, 1);
    assert!((64 << 10..=128 << 10).contains(&facts.memory_kib), "{facts:?}");
    for token in 0..20 {
        let ping = Ping { token };
        assert_eq!(agent.call(&Message::Ping(ping)).unwrap(), Message::Pong(ping));
    }
    assert_eq!(agent.call(&Message::Prepare).unwrap(), Message::Ack);
    assert_eq!(agent.call(&Message::Prepare).unwrap(), Message::Ack);
    // A second connection is served beside the first.
    let mut second = guest.agent();
    let shutdown = Shutdown { mode: ShutdownMode::PowerOff, grace_ms: 1000 };
    assert_eq!(second.call(&Message::Shutdown(shutdown)).unwrap(), Message::Ack);
    drop((agent, second));
    assert_eq!(guest.end().code(), Some(0));
}

#[test]
fn the_agent_reboots() {
    let mut guest = Guest::boot("guest/initramfs.cpio");
    let shutdown = Shutdown { mode: ShutdownMode::Reboot, grace_ms: 0 };
    assert_eq!(guest.agent().call(&Message::Shutdown(shutdown)).unwrap(), Message::Ack);
    assert_eq!(guest.end().code(), Some(100));
}

#[test]
fn main_path_the_console_has_a_shell_with_job_control() {
    const PROMPT: &str = "guest:/# ";
    let mut guest = Guest::boot("guest/console.cpio");
    guest.expect(PROMPT);
    // The echo of a line never contains what the line prints.
    guest.type_line("echo ter''minal: $(tty), pid1: $(cat /proc/1/comm)");
    guest.expect("terminal: /dev/console, pid1: init");
    guest.expect(PROMPT);
    guest.type_line(
        "for at in /proc /sys /dev /dev/pts /dev/shm /run; do grep -q \" $at \" /proc/mounts || echo miss''ing $at; done",
    );
    let between = guest.expect(PROMPT);
    assert!(!between.contains("missing"), "{between}");
    // Only in the foreground of a controlling terminal does ^C reach a program.
    guest.type_line("echo sleep''ing; sleep 1000; echo status: $?");
    guest.expect("sleeping");
    std::thread::sleep(Duration::from_secs(3));
    guest.type_line("\x03");
    guest.expect("^C");
    guest.expect(PROMPT);
    // An orphan becomes a child of PID 1, and does not stay a zombie.
    guest.type_line(
        "(sleep 0.1 &); sleep 2; echo zom''bies: $(grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l)",
    );
    guest.expect("zombies: 0");
    guest.expect(PROMPT);
    // The host is served while someone types.
    let ping = Ping { token: 7 };
    assert_eq!(guest.agent().call(&Message::Ping(ping)).unwrap(), Message::Pong(ping));
    guest.type_line("poweroff");
    assert_eq!(guest.end().code(), Some(0));
}

#[test]
fn the_end_of_the_console_s_shell_is_the_end_of_the_guest() {
    let mut guest = Guest::boot("guest/console.cpio");
    guest.expect("guest:/# ");
    guest.type_line("exit");
    assert_eq!(guest.end().code(), Some(0));
}
