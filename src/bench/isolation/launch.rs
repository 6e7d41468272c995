// SPDX-License-Identifier: Apache-2.0
//! The probe's program, run in each kind of sandbox, and on the host itself.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::TempDir;

use super::super::backend::Failed;
use super::super::interrupt::Interrupt;
use super::super::machine::version;
use super::attack::FLOOD;
use super::image::PROGRAM;
use super::limits::{Group, Hierarchies, Limits};

/// Lines that wait to be listened to.
const WAITING: usize = 256;
/// Bytes of the longest: a kernel's symbols and logs are longer, and are not printed.
const LINE: u64 = 64 << 10;

/// A kind of sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `coracle run`.
    Vm,
    /// `coracle run --isolation container`.
    Container,
    /// `podman run`, as it is.
    Podman,
    /// `podman run` with all that it has against its tenants.
    Hardened,
}

/// A name that is no sandbox's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is one of vm, container, podman, hardened")]
pub struct UnknownKind;

impl Kind {
    /// All, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Vm, Self::Container, Self::Podman, Self::Hardened];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
            Self::Podman => "podman",
            Self::Hardened => "hardened",
        }
    }

    /// What it is, for who reads a report.
    pub fn what(self) -> &'static str {
        match self {
            Self::Vm => "coracle run, as users have it",
            Self::Container => "coracle run --isolation container",
            Self::Podman => "podman run, as users have it",
            Self::Hardened => "podman run without capabilities, with user namespace, no new privileges, read-only",
        }
    }

    /// What is added to `podman run`.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Hardened => &[
                "--cap-drop=ALL",
                "--security-opt=no-new-privileges",
                "--read-only",
                "--uidmap=0:100000:65536",
                "--gidmap=0:100000:65536",
            ],
            _ => &[],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(UnknownKind)
    }
}

/// What sandboxes are started from.
pub struct Ground {
    /// Our own program.
    pub coracle: PathBuf,
    /// The probe's, on the host.
    pub probe: PathBuf,
    /// The image, as `coracle run` knows it.
    pub image: String,
    /// Its files, mounted.
    pub files: PathBuf,
    /// Where podman keeps what it has.
    pub engine: ShortPath,
    /// Where images and containers of `coracle run` are kept.
    pub data: PathBuf,
    /// Control groups.
    pub hierarchies: Hierarchies,
    /// The host's own namespaces.
    pub namespaces: Vec<(&'static str, PathBuf)>,
    /// Name of those made here.
    pub marker: String,
    /// How long one step may take.
    pub patience: Duration,
}

/// A directory that has a short name as well, in our mount namespace: podman takes no path of more than 50 characters.
pub struct ShortPath(TempDir);

impl ShortPath {
    /// Gives this directory one.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn to(directory: &Path) -> io::Result<Self> {
        let short = TempDir::with_prefix_in("coracle-", "/run")?;
        mount_bind(directory, short.path())?;
        Ok(Self(short))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for ShortPath {
    fn drop(&mut self) {
        // Else it could not be removed.
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

impl Ground {
    /// What a kind says of its version.
    ///
    /// # Errors
    /// It is not installed.
    pub fn version(&self, kind: Kind) -> Result<String, String> {
        match kind {
            Kind::Vm | Kind::Container => Ok(concat!("coracle ", env!("CARGO_PKG_VERSION")).to_owned()),
            _ => version("podman").ok_or_else(|| "podman is not installed: apt-get install podman crun".to_owned()),
        }
    }

    /// The words that run the probe's program in a sandbox of this kind, and `more` for it; on the host for `None`.
    pub fn command(&self, kind: Option<Kind>, group: &Group, more: &[String]) -> Vec<String> {
        let own = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut command = match kind {
            None => vec![self.probe.display().to_string()],
            Some(kind @ (Kind::Vm | Kind::Container)) => {
                let mut command = vec![self.coracle.display().to_string()];
                command.extend(own(&["run", "--rm", "--no-spare", "-i", "--network", "none"]));
                if kind == Kind::Container {
                    command.extend(own(&["--isolation", "container"]));
                }
                command.push(self.image.clone());
                command
            }
            Some(kind) => {
                let mut command = vec!["podman".to_owned()];
                for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
                    command.extend([flag.to_owned(), self.engine.path().join(name).display().to_string()]);
                }
                command.extend(own(&["--cgroup-manager=cgroupfs", "--events-backend=file"]));
                command.extend(own(&["run", "--rm", "-i", "--network", "none", "--log-driver=k8s-file"]));
                match self.hierarchies.are_version2() {
                    true => command.push(format!("--cgroup-parent={}", group.parent())),
                    // It inherits the group in which it is started.
                    false => command.push("--cgroups=disabled".to_owned()),
                }
                // A user namespace may not raise limits, and engines would have higher ones than some hosts.
                command.extend(own(&["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]));
                command.extend(own(kind.flags()));
                command.extend(["--rootfs".to_owned(), format!("{}:O", self.files.display())]);
                command.push(PROGRAM.to_owned());
                command
            }
        };
        command.extend(more.iter().cloned());
        command
    }

    /// Starts the probe's program in a sandbox of this kind, or on the host, within limits.
    ///
    /// # Errors
    /// The limits cannot be had, or the program not be started.
    pub fn start(&self, kind: Option<Kind>, name: &str, limits: Limits, more: &[String]) -> io::Result<Session> {
        let group = self.hierarchies.make(&format!("coracle-{}-{name}", self.marker), limits);
        let group =
            group.map_err(|error| io::Error::other(format!("its limits cannot be set, so it is not run: {error}")))?;
        self.start_in(kind, Rc::new(group), more)
    }

    /// Starts it on the host, in the control group of another.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_beside(&self, other: &Session, more: &[String]) -> io::Result<Session> {
        self.start_in(None, Rc::clone(&other.group), more)
    }

    fn start_in(&self, kind: Option<Kind>, group: Rc<Group>, more: &[String]) -> io::Result<Session> {
        let words = self.command(kind, &group, more);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for (variable, name) in [("CORACLE_DATA", "data"), ("CORACLE_RUN", "run")] {
            command.env(variable, self.data.join(name));
        }
        group.hold(&mut command)?;
        Session::start(command, words, group)
    }
}

/// The probe's program, running.
pub struct Session {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<(Instant, String)>,
    errors: File,
    /// How it was started.
    pub words: Vec<String>,
    /// In which control group.
    pub group: Rc<Group>,
}

impl Session {
    fn start(mut command: Command, words: Vec<String>, group: Rc<Group>) -> io::Result<Self> {
        let errors = tempfile::tempfile()?;
        // A Ctrl-C on our terminal is ours to handle.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors.try_clone()?).process_group(0);
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        // What says more than is listened to has to wait.
        let (sender, lines) = sync_channel(WAITING);
        thread::spawn(move || {
            let mut output = output.map(BufReader::new);
            while let Some(line) = output.as_mut().and_then(next_line) {
                // What floods is read, as an engine would, and goes nowhere.
                if line.starts_with(FLOOD) {
                    continue;
                }
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, input, lines, errors, words, group })
    }

    /// The next line, and when it came. `None` where none has come in that time.
    ///
    /// # Errors
    /// It has ended, or the user wants no more.
    pub fn line(&mut self, limit: Duration, interrupt: &mut Interrupt) -> Result<Option<(Instant, String)>, Failed> {
        let deadline = Instant::now() + limit;
        loop {
            if interrupt.has_come() {
                return Err(Failed::Interrupted);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left.min(Duration::from_millis(100))) {
                Ok(line) => return Ok(Some(line)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Failed::Because(self.end_of_it())),
            }
        }
    }

    /// Why it has ended.
    fn end_of_it(&mut self) -> String {
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        let mut text = String::new();
        let _ = self.errors.seek(SeekFrom::Start(0)).and_then(|_| (&self.errors).take(4096).read_to_string(&mut text));
        let said: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        format!("it ended ({status}): {}", said.join("; ").chars().take(400).collect::<String>())
    }

    /// Gives it a line.
    ///
    /// # Errors
    /// It reads no more.
    pub fn say(&mut self, line: &str) -> Result<(), Failed> {
        match self.input.as_mut().map(|input| writeln!(input, "{line}")) {
            Some(Ok(())) => Ok(()),
            _ => Err(Failed::Because(self.end_of_it())),
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it end, and sees to it that all of it has.
    pub fn finish(mut self, limit: Duration) {
        drop(self.input.take());
        let deadline = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        while !self.group.pids().is_empty() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        self.group.end();
        // What is in the group has ended, and the launcher is in it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line, of which no more is kept than any should have.
fn next_line(output: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let count = output.take(LINE).read_until(b'\n', &mut line).ok()?;
    (count > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("docker".parse::<Kind>(), Err(UnknownKind));
        assert!(Kind::ALL.iter().all(|kind| UnknownKind.to_string().contains(kind.name())));
    }
}
