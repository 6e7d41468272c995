// SPDX-License-Identifier: Apache-2.0
//! A container in a microVM: the image's EROFS disk, the bundled kernel, the agent as PID 1, and vsock between.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coracle_protocol::{Container, Ended, Process, Text};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::json;
use tempfile::TempDir;

use super::agent::{Agent, Handle, NotRun, ProcessStart, Running};
use super::{ProcessSpec, capabilities};
use crate::cache;
use crate::failure::Failure;
use crate::signals;
use crate::vmm::config::MachineConfig;
use crate::vmm::control::{Event, Request};
use crate::vmm::devices::exit::GuestEnd;
use crate::vmm::process::Vmm;
use crate::vmm::stages::Stage;

/// How long a guest may take to start. Emulated ones need ten seconds.
const START: Duration = Duration::from_secs(120);

/// Bytes of `/dev/shm` that a container has with Docker.
const SHM_SIZE: u64 = 64 << 20;

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
    /// The VMM's socket, through which the agent is reached.
    vsock: PathBuf,
    /// Holds the sockets; removed with this.
    _folder: TempDir,
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
        Ok(Self { vmm, events, vsock, _folder: folder })
    }

    /// Starts a container's first process, or another one in the container that runs.
    ///
    /// # Errors
    /// [`NotRun`]: it was not started, or the VM has gone.
    pub fn start(&self, start: ProcessStart) -> Result<Running, NotRun> {
        let agent = Agent::connect(&self.vsock).map_err(|failure| self.explain(failure))?;
        agent.start(start).map_err(|NotRun { failure, status }| NotRun { failure: self.explain(failure), status })
    }

    /// Runs a process to its end, its streams being ours. Standard input is passed on only `with_stdin`.
    ///
    /// # Errors
    /// [`NotRun`]: it was not started, or its VM has gone.
    pub fn run(mut self, spec: &ProcessSpec, with_stdin: bool, interrupt: &Interrupt) -> Result<Ended, NotRun> {
        let mut running = self.start(start(spec, with_stdin))?;
        interrupt.goes_to(running.handle.clone());
        if let Some(stream) = running.stdin.take() {
            thread::spawn(move || pass_on_input(stream));
        }
        let clone = |stream: &UnixStream| stream.try_clone().map_err(failed);
        let output = copy(clone(&running.stdout)?, io::stdout());
        let errors = running.stderr.as_ref().map(|stream| Ok::<_, Failure>(copy(clone(stream)?, io::stderr())));
        let errors = errors.transpose()?;
        let ended = running.wait().map_err(|failure| self.explain(failure))?;
        // The last bytes are still on their way.
        for copying in [Some(output), errors].into_iter().flatten() {
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

    /// Where the VM has failed: what its VMM says counts more than what was seen of it here.
    fn explain(&self, seen: Failure) -> Failure {
        let events = std::iter::from_fn(|| self.events.recv_timeout(Duration::from_millis(500)).ok());
        events.filter_map(|event| ending(&event)).next().unwrap_or(seen)
    }
}

/// The user's Ctrl-C, and other signals that ask for an end: the first is the container's, the next one ends the VM.
#[derive(Debug)]
pub struct Interrupt {
    signals: Arc<OwnedFd>,
    state: Arc<Mutex<Interrupted>>,
}

#[derive(Debug, Default)]
struct Interrupted {
    /// Who hears the first one.
    process: Option<Handle>,
    /// The one that ended the VM.
    ended_by: Option<u8>,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM, SIGHUP and SIGQUIT from here on. Call it before threads are started.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        let signals = signals::readable(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT])?;
        Ok(Self { signals: Arc::new(signals), state: Arc::default() })
    }

    /// The signal that ended the VM, if one did.
    pub fn signal(&self) -> Option<u8> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended_by
    }

    fn goes_to(&self, process: Handle) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).process = Some(process);
    }

    fn stops(&self, vmm: &Vmm) -> Result<(), Failure> {
        let control = vmm.control.try_clone().map_err(failed)?;
        let (signals, state) = (Arc::clone(&self.signals), Arc::clone(&self.state));
        thread::spawn(move || {
            while poll(&mut [PollFd::new(&*signals, PollFlags::IN)], None).is_ok() {
                let Some(signal) = signals::take(&signals).and_then(|signal| u8::try_from(signal).ok()) else {
                    continue;
                };
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.process.take().is_none_or(|process| process.signal(signal).is_err()) {
                    state.ended_by = Some(signal);
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
    let control = vmm.control.try_clone().map_err(failed)?;
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

fn failed(error: io::Error) -> Failure {
    Failure::new("cannot follow the VMM", error, LOOK)
}

fn start(spec: &ProcessSpec, stdin: bool) -> ProcessStart {
    let bytes = |words: &[String]| words.iter().map(|word| word.clone().into_bytes()).collect();
    let container = Container {
        root: Text::new("/dev/vda"),
        hostname: Text::new(&spec.hostname),
        shm_size: SHM_SIZE,
        ..Container::default()
    };
    let process = Process {
        arguments: bytes(&spec.arguments),
        environment: bytes(&spec.environment),
        directory: spec.directory.clone().into_bytes(),
        user: spec.user.clone().into_bytes(),
        capabilities: capabilities::DEFAULT,
        ..Process::default()
    };
    ProcessStart { container: Some(container), process, stdin }
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
            if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
                break;
            }
        }
        // Nobody reads what we write: the process in the container hears of it.
        let _ = from.shutdown(Shutdown::Both);
    })
}
