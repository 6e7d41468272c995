// SPDX-License-Identifier: Apache-2.0
//! A container in a microVM: the image's EROFS disk, the bundled kernel, the agent as PID 1, and vsock between.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coracle_protocol::{
    AGENT_PORT, CallError, Channel, Ended, ErrorCode, Message, Start, Streams, Text, connect_hybrid_vsock,
};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;
use tempfile::TempDir;

use super::ProcessSpec;
use crate::cache;
use crate::failure::{EXIT_FAILURE, Failure};
use crate::signals;
use crate::vmm::config::MachineConfig;
use crate::vmm::control::{Event, Request};
use crate::vmm::devices::exit::GuestEnd;
use crate::vmm::process::Vmm;
use crate::vmm::stages::Stage;

/// How long a guest may take to start. Emulated ones need ten seconds.
const START: Duration = Duration::from_secs(120);
/// How long an agent may take for one step, such as mounting the image and starting a program.
const STEP: Duration = Duration::from_secs(120);
/// vsock ports, on the host's side, of a process's streams.
const STDIN_PORT: u32 = 2000;
const STDOUT_PORT: u32 = 2001;
const STDERR_PORT: u32 = 2002;
/// Exit statuses of the shell, and Docker, for a program that cannot be executed and for one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What the VM has.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u32,
    /// MiB.
    pub memory_mib: u64,
}

/// A running VM that waits for a process.
pub struct MicroVm {
    vmm: Vmm,
    events: Receiver<Event>,
    agent: Channel<UnixStream>,
    /// Holds the sockets; removed with this.
    folder: TempDir,
}

/// Why a process did not run, and the exit status that tells it.
#[derive(Debug)]
pub struct NotRun {
    /// For people.
    pub failure: Failure,
    /// 125, 126 or 127.
    pub status: u8,
}

impl From<Failure> for NotRun {
    fn from(failure: Failure) -> Self {
        Self { failure, status: EXIT_FAILURE }
    }
}

impl MicroVm {
    /// Boots a VM of this shape with the disk `rootfs` in it, up to where its agent answers. A signal that comes through
    /// `interrupt` stops the VM, now and later.
    ///
    /// # Errors
    /// It cannot be started, or does not get that far.
    pub fn boot(rootfs: &Path, shape: Shape, interrupt: &Interrupt) -> Result<Self, Failure> {
        let folder = tempfile::Builder::new().prefix("coracle-").tempdir().map_err(|error| {
            Failure::new("cannot make a directory for the container's sockets", error, "free space in $TMPDIR")
        })?;
        let vsock = folder.path().join("vsock");
        let vmm = Vmm::start(config(rootfs, shape, &vsock)?)?;
        interrupt.stops(&vmm)?;
        let events = follow(&vmm)?;
        wait_for_agent(&events)?;
        let connected = connect_hybrid_vsock(&vsock, AGENT_PORT, STEP);
        let stream = connected.map_err(|error| Failure::new("cannot reach the agent in the guest", error, LOOK))?;
        let agent = Channel::open(stream, concat!("coracle ", env!("CARGO_PKG_VERSION")));
        let agent = agent.map_err(|error| Failure::new("cannot talk to the agent in the guest", error, LOOK))?;
        Ok(Self { vmm, events, agent, folder })
    }

    /// Runs a process to its end, its streams being ours. Standard input is passed on only `with_stdin`.
    ///
    /// # Errors
    /// [`NotRun`]: it was not started, or its VM has gone.
    pub fn run(mut self, spec: &ProcessSpec, with_stdin: bool) -> Result<Ended, NotRun> {
        let (stdin, stdout) = (self.listen(STDIN_PORT)?, self.listen(STDOUT_PORT)?);
        let stderr = self.listen(STDERR_PORT)?;
        match self.agent.call(&Message::Start(start(spec, with_stdin))) {
            Ok(Message::Started) => {}
            Ok(_) => return Err(self.gone("it answered something else").into()),
            Err(CallError::Refused(refused)) => return Err(not_started(spec, &refused)),
            Err(error) => return Err(self.gone(error).into()),
        }
        if with_stdin {
            let stream = self.accept(&stdin)?;
            thread::spawn(move || pass_on_input(stream));
        }
        let output = copy(self.accept(&stdout)?, io::stdout());
        let errors = copy(self.accept(&stderr)?, io::stderr());
        let limit = self.agent.stream().set_read_timeout(None);
        limit.map_err(|error| self.gone(error))?;
        let ended = match self.agent.next_of_last() {
            Ok(Message::Ended(ended)) => ended,
            Ok(_) => return Err(self.gone("it said something else than the end of the process").into()),
            Err(error) => return Err(self.gone(error).into()),
        };
        // The last bytes are still on their way.
        for copying in [output, errors] {
            // One that panicked has said so itself.
            let _ = copying.join();
        }
        self.stop();
        Ok(ended)
    }

    fn stop(&mut self) {
        // One that has gone already needs no stopping.
        let _ = Request::Stop.send(&self.vmm.control).and_then(|()| self.vmm.wait());
    }

    /// A socket on which the guest reaches `port` of the host.
    fn listen(&self, port: u32) -> Result<UnixListener, Failure> {
        UnixListener::bind(self.folder.path().join(format!("vsock_{port}")))
            .map_err(|error| Failure::new("cannot make a socket for the container's streams", error, "look at $TMPDIR"))
    }

    /// The agent has connected by the time it says `Started`.
    fn accept(&self, listener: &UnixListener) -> Result<UnixStream, Failure> {
        // One that has not is not waited for.
        listener.set_nonblocking(true).map_err(|error| self.gone(error))?;
        Ok(listener.accept().map_err(|error| self.gone(error))?.0)
    }

    /// The VM has failed: what its VMM says counts more than what was seen of it here.
    fn gone(&self, seen: impl std::fmt::Display) -> Failure {
        self.events
            .recv_timeout(Duration::from_secs(1))
            .ok()
            .and_then(|event| ending(&event))
            .unwrap_or_else(|| Failure::new("the container's microVM has failed", seen, LOOK))
    }
}

/// The user's Ctrl-C, or another signal that ends.
#[derive(Debug)]
pub struct Interrupt {
    signals: Arc<OwnedFd>,
    number: Arc<AtomicU8>,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP from here on. Call it before threads are started.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let signals = signals::readable(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
        Ok(Self { signals: Arc::new(signals), number: Arc::default() })
    }

    /// The signal that came, if one did.
    pub fn signal(&self) -> Option<u8> {
        Some(self.number.load(Ordering::SeqCst)).filter(|number| *number != 0)
    }

    fn stops(&self, vmm: &Vmm) -> Result<(), Failure> {
        let control = vmm.control.try_clone().map_err(|error| Failure::new("cannot follow the VMM", error, LOOK))?;
        let (signals, number) = (Arc::clone(&self.signals), Arc::clone(&self.number));
        thread::spawn(move || {
            while poll(&mut [PollFd::new(&*signals, PollFlags::IN)], None).is_ok() {
                if let Some(signal) = signals::take(&signals).and_then(|signal| u8::try_from(signal).ok()) {
                    number.store(signal, Ordering::SeqCst);
                    // A VMM that has gone needs no stopping.
                    let _ = Request::Stop.send(&control);
                }
            }
        });
        Ok(())
    }
}

const LOOK: &str = "`coracle boot` with the same kernel and `guest/console.cpio`, to see what the guest says";

fn built(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.exists() {
        return Ok(path);
    }
    let what = format!("cannot find {}", path.display());
    Err(Failure::new(what, "the guest has not been built", "scripts/start in Coracle's source, or set CORACLE_CACHE"))
}

fn config(rootfs: &Path, shape: Shape, vsock: &Path) -> Result<MachineConfig, Failure> {
    let config = json!({
        "kernel": built(cache::guest_kernel())?,
        "initrd": built(cache::guest_initramfs())?,
        "cpus": shape.cpus,
        "memory_mib": shape.memory_mib,
        "console": "none",
        "disks": [{ "path": rootfs, "read_only": true }],
        "vsock": { "path": vsock, "cid": 3 },
    });
    serde_json::from_value(config)
        .map_err(|error| Failure::new("cannot describe the microVM", error, "use paths that are valid UTF-8"))
}

/// Passes the VMM's events on, so that the guest's end is known whenever it comes.
fn follow(vmm: &Vmm) -> Result<Receiver<Event>, Failure> {
    let control = vmm.control.try_clone().map_err(|error| Failure::new("cannot follow the VMM", error, LOOK))?;
    let (sender, events) = channel();
    thread::spawn(move || {
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    Ok(events)
}

fn wait_for_agent(events: &Receiver<Event>) -> Result<(), Failure> {
    loop {
        match events.recv_timeout(START) {
            Ok(Event::Stage(mark)) if mark.stage == Stage::AgentReady => return Ok(()),
            Ok(event) => {
                if let Some(failure) = ending(&event) {
                    return Err(failure);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let why = format!("its agent said nothing for {} s", START.as_secs());
                return Err(Failure::new("the container's microVM did not start", why, LOOK));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let why = "coracle-vmm ended without a word";
                return Err(Failure::new("the container's microVM did not start", why, "look at `dmesg`"));
            }
        }
    }
}

/// What an event that ends the VM means here.
fn ending(event: &Event) -> Option<Failure> {
    let how = match event {
        Event::Failed(failure) => return Some(failure.clone()),
        Event::End { how: GuestEnd::Panic } => "its kernel panicked; it may have run out of memory",
        Event::End { how: GuestEnd::Stopped } => "it was stopped",
        Event::End { .. } => "it switched itself off",
        Event::Stage(_) | Event::Samples { .. } => return None,
    };
    Some(Failure::new(
        "the container's microVM has ended",
        how,
        "more --memory; else `coracle boot` to see its console",
    ))
}

fn start(spec: &ProcessSpec, with_stdin: bool) -> Start {
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
    Start {
        root: Text::new("/dev/vda"),
        hostname: Text::new(&spec.hostname),
        arguments: bytes(&spec.arguments),
        environment: bytes(&spec.environment),
        directory: spec.directory.clone().into_bytes(),
        user: spec.user.clone().into_bytes(),
        streams: Streams { stdin: with_stdin.then_some(STDIN_PORT), stdout: STDOUT_PORT, stderr: STDERR_PORT },
    }
}

fn not_started(spec: &ProcessSpec, refused: &coracle_protocol::Failure) -> NotRun {
    let program = spec.arguments.first().map(String::as_str).unwrap_or_default();
    let what = format!("cannot run `{program}` in the container");
    let (status, advice) = match refused.code {
        ErrorCode::NOT_FOUND => (NOT_FOUND, "another command, or the program's full path"),
        ErrorCode::NOT_EXECUTABLE => (NOT_EXECUTABLE, "a file with the execute bit, for this architecture"),
        _ => (EXIT_FAILURE, "other flags; `coracle inspect IMAGE` shows what the image asks for"),
    };
    NotRun { failure: Failure::new(what, refused.message.as_str(), advice), status }
}

/// Standard input, to its end, which the process then sees too.
fn pass_on_input(mut to: UnixStream) {
    // The process may end, or close its input, before ours ends.
    let _ = io::copy(&mut io::stdin().lock(), &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// Copies to the end, as it comes.
fn copy(mut from: UnixStream, mut to: impl Write + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let Some(bytes) = buffer.get(..count) else { break };
            // Nobody reads what we write: the process in the container hears of it.
            if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
    })
}
