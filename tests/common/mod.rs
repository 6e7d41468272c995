// SPDX-License-Identifier: Apache-2.0
//! A guest under test: started as a user would, typed to, and read from.
//!
//! Nothing here skips: where KVM, the kernel or the initramfs is missing, a test fails and says what to run.
#![allow(dead_code, reason = "each test program uses its own part")]

pub mod home;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test.
pub const CORACLE: &str = env!("CARGO_BIN_EXE_coracle");

/// How long anything in a guest may take. Guests are slow on an emulated or busy host; a hang is a hang after this.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What the scripts build for guests.
pub fn cache(name: &str) -> PathBuf {
    let path = coracle::cache::directory().join(name);
    assert!(path.exists(), "{} is missing: run guest/kernel/build and scripts/build-initramfs", path.display());
    path
}

/// The bundled guest kernel, as ELF.
pub fn kernel() -> PathBuf {
    cache("kernel/vmlinux")
}

/// Runs `command` to its end; gives status, stdout and stderr.
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("a program that starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

/// Runs a host command that must succeed; gives its stdout.
pub fn host(program: &str, arguments: &[&str]) -> String {
    let (status, stdout, stderr) = run(Command::new(program).args(arguments));
    assert_eq!(status, Some(0), "{program} {arguments:?}: {stderr}");
    stdout
}

/// SHA-256 of a file on the host.
pub fn sha256(path: &std::path::Path) -> String {
    let line = host("sha256sum", &[path.to_str().expect("a UTF-8 path")]);
    line.split_whitespace().next().expect("a digest").to_owned()
}

#[derive(Default)]
struct Seen {
    text: String,
    ended: bool,
}

/// A running guest.
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Arc<(Mutex<Seen>, Condvar)>,
    errors: Arc<(Mutex<Seen>, Condvar)>,
    /// Output up to here has been looked at.
    read: usize,
    commands: u32,
}

fn collect(mut source: impl Read + Send + 'static) -> Arc<(Mutex<Seen>, Condvar)> {
    let seen = Arc::<(Mutex<Seen>, Condvar)>::default();
    let writer = Arc::clone(&seen);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = source.read(&mut buffer) {
            writer.0.lock().unwrap().text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            writer.1.notify_all();
        }
        writer.0.lock().unwrap().ended = true;
        writer.1.notify_all();
    });
    seen
}

impl Guest {
    /// Starts `coracle boot` with these words.
    pub fn start<I: IntoIterator<Item: AsRef<OsStr>>>(arguments: I) -> Self {
        Self::spawn(Command::new(CORACLE).arg("boot").args(arguments))
    }

    /// Starts a command that is, or becomes, `coracle boot`.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coracle");
        let output = collect(child.stdout.take().expect("a pipe"));
        let errors = collect(child.stderr.take().expect("a pipe"));
        let input = child.stdin.take();
        Self { child, input, output, errors, read: 0, commands: 0 }
    }

    /// Boots the bundled kernel to its shell, with more words.
    pub fn shell(arguments: &[&str]) -> Self {
        let mut guest = Self::start(Self::shell_words(arguments));
        guest.log_in();
        guest
    }

    /// The words with which the bundled kernel boots to its shell, and more.
    pub fn shell_words(arguments: &[&str]) -> Vec<String> {
        let (kernel, initrd) = (kernel(), cache("guest/console.cpio"));
        let mut words = vec![kernel.display().to_string(), "--initrd".into(), initrd.display().to_string()];
        words.extend(arguments.iter().map(|word| (*word).to_owned()));
        words
    }

    /// Waits for the shell's prompt, and has it echo nothing from then on, nor the kernel warn in between.
    pub fn log_in(&mut self) {
        self.wait_for("# ");
        self.sh("stty -echo; PS1=; echo 4 > /proc/sys/kernel/printk");
        // What the first prompts left behind is nobody's output.
        self.sh("true");
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.input.as_mut().expect("an open input").write_all(text.as_bytes()).expect("a guest that listens");
    }

    /// Waits until `text` has come; gives what came before it since the last time.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let (lock, changed) = &*self.output;
        let mut seen = lock.lock().unwrap();
        loop {
            if let Some(at) = seen.text[self.read..].find(text) {
                let before = seen.text[self.read..self.read + at].to_owned();
                self.read += at + text.len();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if seen.ended || left.is_zero() {
                let status = self.child.try_wait();
                panic!("no {text:?} from the guest ({status:?}):\n{}\n{}", seen.text, self.stderr());
            }
            seen = changed.wait_timeout(seen, left).unwrap().0;
        }
    }

    /// Runs a command in the guest's shell; gives its output, whatever its status.
    pub fn try_sh(&mut self, command: &str) -> (u32, String) {
        self.commands += 1;
        let marker = format!("={}=", self.commands);
        // Written in two parts, so that an echo of the line is not taken for its end.
        self.type_in(&format!("{command}\necho \"<\"\"{marker}$?>\"\n"));
        let output = self.wait_for(&format!("<{marker}"));
        let status = self.wait_for(">").parse().expect("a status");
        (status, output.replace("\r\n", "\n"))
    }

    /// Runs a command in the guest's shell that must succeed; gives its output.
    pub fn sh(&mut self, command: &str) -> String {
        let (status, output) = self.try_sh(command);
        assert_eq!(status, 0, "in the guest: {command}\n{output}");
        output
    }

    /// Everything that coracle has said on stderr.
    pub fn stderr(&self) -> String {
        self.errors.0.lock().unwrap().text.clone()
    }

    /// Process number of `coracle boot`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process number of its VMM.
    pub fn vmm_pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(children).expect("a running coracle");
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).expect("a VMM")
    }

    /// Waits for its end; gives the exit status, all of stdout, and all of stderr.
    pub fn wait(mut self) -> (ExitStatus, String, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "the guest does not end:\n{}", self.output.0.lock().unwrap().text);
            thread::sleep(Duration::from_millis(20));
        };
        let all = |seen: &Arc<(Mutex<Seen>, Condvar)>| {
            let seen = seen.1.wait_while(seen.0.lock().unwrap(), |seen| !seen.ended).unwrap();
            seen.text.clone()
        };
        (status, all(&self.output), all(&self.errors))
    }

    /// Switches the guest off; gives the exit code.
    pub fn power_off(mut self) -> i32 {
        self.type_in("poweroff\n");
        self.wait().0.code().expect("an exit code")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A guest that has ended needs no ending.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of a VM's control socket.
pub struct Control {
    reader: std::io::BufReader<UnixStream>,
}

impl Control {
    /// Connects.
    pub fn connect(path: &std::path::Path) -> Self {
        let stream = UnixStream::connect(path).expect("a control socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { reader: std::io::BufReader::new(stream) }
    }

    /// Sends a request as it is; gives the reply.
    pub fn send(&mut self, line: &str) -> Value {
        writeln!(self.reader.get_mut(), "{line}").expect("a VMM that listens");
        let mut reply = String::new();
        std::io::BufRead::read_line(&mut self.reader, &mut reply).expect("a reply");
        serde_json::from_str(&reply).expect("JSON")
    }

    /// Sends a request by its name; gives what is in `ok`.
    pub fn request(&mut self, name: &str) -> Value {
        let reply = self.send(&format!("{{\"request\":\"{name}\"}}"));
        reply.get("ok").unwrap_or_else(|| panic!("{name}: {reply}")).clone()
    }
}

/// Polls until `check` gives something.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// What an HTTP server says, once it answers.
pub fn fetch(address: &str) -> String {
    eventually(&format!("an answer from {address}"), || {
        let mut stream = std::net::TcpStream::connect(address).ok()?;
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.").then_some(())?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned())
    })
}

/// Runs `body` in a new network namespace, which stands for a host.
pub fn in_a_network_of_its_own(body: impl FnOnce() + Send + 'static) {
    let run = thread::spawn(|| {
        // SAFETY: affects this thread only, which shares no file-system or user state by this flag.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "no new network namespace, which needs root: {}", std::io::Error::last_os_error());
        host("ip", &["link", "set", "lo", "up"]);
        body();
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}
