// SPDX-License-Identifier: Apache-2.0
//! A container in a microVM: the image's EROFS disk, the bundled kernel, the agent as PID 1, and vsock between.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agent::{Agent, NotRun, PATIENCE, ProcessStart, Running, silence};
use super::image_template::{self, Prepared};
use super::template;
use crate::cache;
use crate::failure::Failure;
use crate::milestones;
use crate::vmm::clock::monotonic_ns;
use crate::vmm::config::MachineConfig;
use crate::vmm::control::{Event, Request};
use crate::vmm::devices::exit::GuestEnd;
use crate::vmm::devices::virtio::block::BlockConfig;
use crate::vmm::devices::virtio::fs::FsConfig;
use crate::vmm::devices::virtio::net::{MacAddress, NetConfig};
use crate::vmm::devices::virtio::vsock::VsockConfig;
use crate::vmm::jail::Jail;
use crate::vmm::process::Vmm;
use crate::vmm::snapshot::{Launch, MEMORY_FILE, RestoreConfig, STATE_FILE};
use crate::vmm::stages::Stage;

/// The guest's address on its vsock.
const GUEST_CID: u64 = 3;

/// MiB of the smallest VM that a container runs in: Linux refuses the agent its heap of 24 MiB where there is less in all.
pub const LEAST_MEMORY_MIB: u64 = 40;

/// What the VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// vCPUs.
    pub cpus: u32,
    /// MiB.
    pub memory_mib: u64,
}

/// What is attached to it.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    /// The image's disk, read-only: `/dev/vda`.
    pub rootfs: PathBuf,
    /// An ext4 disk for what is written, if it is to be kept: `/dev/vdb`.
    pub written: Option<PathBuf>,
    /// Network cards: `eth0` and on.
    pub nets: Vec<NetConfig>,
    /// Directories of the host's.
    pub shares: Vec<FsConfig>,
    /// Where the host reaches its vsock.
    pub vsock: PathBuf,
    /// Where the VMM can be asked for its metrics.
    pub control: PathBuf,
    /// The container sees all of the guest, and finds there whatever its kernel can do.
    pub privileged: bool,
}

/// A VM that runs, or is about to.
pub struct MicroVm {
    vmm: Vmm,
    events: Receiver<Event>,
    vsock: PathBuf,
    /// It is a clone of a template that has yet to become one of its own, with these network cards.
    clone: Option<Vec<MacAddress>>,
    /// The template of its image, if it is a clone of that: the guest has its container then.
    template: Option<PathBuf>,
    /// The agent of a clone that is one of its own already.
    awake: Mutex<Option<Agent>>,
}

/// Whether a VM may be a clone of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Templates {
    /// Where there is one, or one can be made.
    Use,
    /// No: it starts from its kernel.
    Avoid,
}

/// Ends a VM from another thread.
#[derive(Debug)]
pub struct Stopper(UnixStream);

impl Stopper {
    /// Ends it, as if its power were cut.
    pub fn stop(&self) {
        // A VMM that has gone needs no stopping.
        let _ = Request::Stop.send(&self.0);
    }
}

/// What is left of a VM that has ended: its VMM gives back memory and interrupts, for which the kernel waits for grace
/// periods. Dropping this waits for that.
pub struct Remains(Vmm);

impl Drop for Remains {
    fn drop(&mut self) {
        // One that cannot be waited for is gone.
        let _ = self.0.wait();
    }
}

impl MicroVm {
    /// Starts a VM of this shape with these devices: as a clone of a template, unless that cannot be or is not wanted.
    /// Where there is a template of this image, the guest has its container already.
    ///
    /// # Errors
    /// The VMM cannot be started.
    pub fn start(
        shape: Shape,
        devices: &Devices,
        templates: Templates,
        prepared: Option<&Prepared>,
    ) -> Result<Self, Failure> {
        // virtiofsd maps the guest's memory, and that of a clone is private to its VMM.
        if templates == Templates::Use && devices.shares.is_empty() {
            if let Some(prepared) = prepared {
                match Self::with_container(shape, devices, prepared) {
                    Ok(Some(vm)) => return Ok(vm),
                    Ok(None) => {}
                    Err(failure) => log::warn!("there is no template of the image: {}", failure.why),
                }
            }
            match template::obtain(shape, devices).and_then(|template| Self::clone_of(&template, devices)) {
                Ok(vm) => return Ok(vm),
                Err(failure) => log::warn!("starting from the kernel, since there is no template: {}", failure.why),
            }
        }
        Self::launch(machine(shape, devices)?.into(), devices, None)
    }

    /// Starts a clone of the template of this image, where there is one.
    ///
    /// # Errors
    /// The VMM cannot be started, or the template is no good here.
    pub fn with_container(shape: Shape, devices: &Devices, prepared: &Prepared) -> Result<Option<Self>, Failure> {
        let Some(template) = image_template::find(shape, devices, prepared)? else { return Ok(None) };
        let vm = Self::clone_of(&template, devices)?;
        Ok(Some(Self { template: Some(template), ..vm }))
    }

    fn launch(launch: Launch, devices: &Devices, clone: Option<Vec<MacAddress>>) -> Result<Self, Failure> {
        let launched = monotonic_ns();
        let vmm = Vmm::start(launch)?;
        let events = follow(&vmm, launched)?;
        Ok(Self { vmm, events, vsock: devices.vsock.clone(), clone, template: None, awake: Mutex::default() })
    }

    /// The template of the image from which the guest has its container.
    pub fn template(&self) -> Option<&Path> {
        self.template.as_deref()
    }

    /// Makes a clone one of its own before it is known what it is to run.
    ///
    /// # Errors
    /// It does not get that far.
    pub fn rouse(mut self) -> Result<Self, Failure> {
        self.awake = Mutex::new(Some(self.agent()?));
        Ok(self)
    }

    /// Its sockets have been moved, with the directory that they are in.
    pub fn moved(&mut self, from: &Path, to: &Path) {
        self.vmm.moved(from, to);
        if let Ok(rest) = self.vsock.strip_prefix(from) {
            self.vsock = to.join(rest);
        }
        if let Ok(Some(agent)) = self.awake.get_mut() {
            agent.moved(&self.vsock);
        }
    }

    /// Whether it has a VMM, which has told nothing of its end, and an agent at the other end of the connection that
    /// waits, if one does.
    pub fn is_alive(&self) -> bool {
        let awake = self.awake.lock().expect("no thread panics while it holds this");
        if awake.as_ref().is_some_and(|agent| !agent.is_connected()) {
            return false;
        }
        loop {
            match self.events.try_recv() {
                Ok(event) if ending(&event).is_none() => {}
                Ok(_) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Starts a VM that goes on from a snapshot of one with devices of these kinds; of a snapshot that holds only what
    /// differs, `base` is the memory file with the rest.
    ///
    /// # Errors
    /// The VMM cannot be started, or the snapshot is no good here.
    pub fn restore(snapshot: &Path, base: Option<PathBuf>, devices: &Devices) -> Result<Self, Failure> {
        // Its cards are up, and get their addresses with all else that is the container's.
        let config = RestoreConfig { base, ..restore(snapshot, devices) };
        let vm = Self::launch(config.into(), devices, Some(Vec::new()))?;
        wait_for(&vm.events, Stage::FirstRun).map(|()| vm)
    }

    /// A template that is no good here is removed, so that the next start makes another.
    fn clone_of(template: &Path, devices: &Devices) -> Result<Self, Failure> {
        let macs = devices.nets.iter().map(NetConfig::address).collect();
        let vm = Self::launch(restore(template, devices).into(), devices, Some(macs))?;
        let outcome = wait_for(&vm.events, Stage::FirstRun);
        if outcome.is_err() {
            // Another start may have removed it already.
            let _ = std::fs::remove_dir_all(template);
        }
        outcome.map(|()| vm)
    }

    /// Waits until its agent can be talked to, once. By then its VMM has all of its files open.
    ///
    /// # Errors
    /// It does not get that far.
    pub fn wait_ready(&self) -> Result<(), Failure> {
        // That of a clone has been there from the first instruction on.
        if self.clone.is_some() { Ok(()) } else { wait_for(&self.events, Stage::AgentReady) }
    }

    /// Waits until its agent answers, and makes a clone one of its own.
    ///
    /// # Errors
    /// It does not get that far.
    pub fn agent(&self) -> Result<Agent, Failure> {
        self.wait_ready()?;
        let connected = Agent::connect(&self.vsock);
        let renewed = connected.and_then(|mut agent| {
            self.clone.iter().try_for_each(|macs| agent.renew(None, macs))?;
            Ok(agent)
        });
        renewed.map_err(|failure| self.gone(failure.why))
    }

    /// Starts the first process in it, after [`MicroVm::wait_ready`]; a clone becomes one of its own before that.
    ///
    /// # Errors
    /// [`NotRun`].
    pub fn start_process(&self, start: ProcessStart) -> Result<Running, NotRun> {
        let gone = |failure: Failure| self.gone(failure.why);
        let awake = self.awake.lock().expect("no thread panics while it holds this").take();
        if let Some(agent) = awake {
            return agent.start(start);
        }
        match &self.clone {
            Some(macs) => Agent::renew_and_start(&self.vsock, macs, start).map_err(gone)?.finish(),
            None => Agent::connect(&self.vsock).map_err(gone)?.start(start),
        }
    }

    /// For whoever may have to end it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn stopper(&self) -> Result<Stopper, Failure> {
        let control = self.vmm.control.try_clone();
        control.map(Stopper).map_err(|error| Failure::new("cannot follow the VMM", error, LOOK))
    }

    /// Process number of the VMM.
    pub fn pid(&self) -> u32 {
        self.vmm.pid()
    }

    /// Ends it, as if its power were cut, and waits until the guest does nothing any more.
    pub fn stop(self) -> Remains {
        // One that has gone already needs no stopping.
        let _ = Request::Stop.send(&self.vmm.control);
        while self.events.recv().is_ok_and(|event| ending(&event).is_none()) {}
        Remains(self.vmm)
    }

    /// The VM has failed: what its VMM says counts more than what was seen of it here.
    pub fn gone(&self, seen: impl std::fmt::Display) -> Failure {
        self.events
            .recv_timeout(Duration::from_secs(1))
            .ok()
            .and_then(|event| ending(&event))
            .unwrap_or_else(|| Failure::new("the container's microVM has failed", seen, LOOK))
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

pub(super) fn restore(template: &Path, devices: &Devices) -> RestoreConfig {
    let disk = |path: &PathBuf, read_only| BlockConfig { path: path.clone(), read_only, serial: None, queues: 1 };
    let written = devices.written.iter().map(|path| disk(path, false));
    RestoreConfig {
        restore: template.join(STATE_FILE),
        memory: template.join(MEMORY_FILE),
        base: None,
        disks: Some(std::iter::once(disk(&devices.rootfs, true)).chain(written).collect()),
        nets: Some(devices.nets.clone()),
        vsock: Some(VsockConfig { path: devices.vsock.clone(), cid: GUEST_CID }),
        pmem: None,
        log_file: None,
        launched_ns: None,
        sample_interval_us: None,
        control: Some(devices.control.clone()),
        jail: Jail::Full,
    }
}

/// A VM of this shape with these devices, from its kernel on.
pub(super) fn machine(shape: Shape, devices: &Devices) -> Result<MachineConfig, Failure> {
    let disk = |path: &Path, read_only| json!({ "path": path, "read_only": read_only });
    let written = devices.written.iter().map(|path| disk(path, false));
    let config = json!({
        "kernel": built(cache::guest_kernel())?,
        "initrd": built(cache::guest_initramfs())?,
        "cpus": shape.cpus,
        "memory_mib": shape.memory_mib,
        "console": "none",
        "command_line": command_line(devices),
        "disks": std::iter::once(disk(&devices.rootfs, true)).chain(written).collect::<Vec<_>>(),
        "nets": devices.nets,
        "fs": devices.shares,
        "vsock": { "path": devices.vsock, "cid": GUEST_CID },
        "control": devices.control,
    });
    serde_json::from_value(config)
        .map_err(|error| Failure::new("cannot describe the microVM", error, "use paths that are valid UTF-8"))
}

/// A VM limits memory by itself. To count each page for control groups is a tenth of the work of a short program's kernel,
/// and those who could limit memory by them have privileges.
fn command_line(devices: &Devices) -> &'static str {
    if devices.privileged { "" } else { "cgroup_disable=memory" }
}

/// Passes the VMM's events on, so that the guest's end is known whenever it comes.
fn follow(vmm: &Vmm, launched: u64) -> Result<Receiver<Event>, Failure> {
    let control = vmm.control.try_clone().map_err(|error| Failure::new("cannot follow the VMM", error, LOOK))?;
    let (sender, events) = channel();
    thread::spawn(move || {
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            let Ok(event) = serde_json::from_str::<Event>(&line) else { continue };
            if let Event::Stage(mark) = &event {
                milestones::reach_at(format_args!("VMM: {}", mark.stage), launched + mark.wall_ns);
                // Nobody is woken for a stage that nobody waits for.
                if !matches!(mark.stage, Stage::FirstRun | Stage::AgentReady) {
                    continue;
                }
            }
            if sender.send(event).is_err() {
                break;
            }
        }
    });
    Ok(events)
}

/// Waits until the VM has reached this stage.
fn wait_for(events: &Receiver<Event>, stage: Stage) -> Result<(), Failure> {
    loop {
        match events.recv_timeout(PATIENCE) {
            Ok(Event::Stage(mark)) if mark.stage == stage => return Ok(()),
            Ok(event) => {
                if let Some(failure) = ending(&event) {
                    return Err(failure);
                }
            }
            Err(RecvTimeoutError::Timeout) => return Err(silence()),
            Err(RecvTimeoutError::Disconnected) => {
                let why = "coracle-vmm ended without a word";
                return Err(Failure::new("the container's microVM did not start", why, "look at `dmesg`"));
            }
        }
    }
}

/// What an event that ends the VM means here.
pub(super) fn ending(event: &Event) -> Option<Failure> {
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
