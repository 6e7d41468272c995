// SPDX-License-Identifier: Apache-2.0
//! Base templates: snapshots of VMs whose agent is ready and that have nothing of anybody's in them. Each container's VM
//! is a clone of one, where there is one or one can be made.
//!
//! A template has placeholders where a container has its image, its disk and its networks; a clone gets the real ones
//! at the restore. It is found by what it was made of: kernel, initramfs, release, kind of host, shape, kinds of devices.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Lines};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::agent::{Agent, PATIENCE, silent};
use super::image_template::About;
use super::microvm::{Devices, Shape, ending, machine};
use crate::cache;
use crate::failure::Failure;
use crate::file_lock;
use crate::vmm::control::{Event, Reply, Request};
use crate::vmm::devices::virtio::net::{NetBackend, NetConfig, Tap};
use crate::vmm::file_identity::FileIdentity;
use crate::vmm::host::Host;
use crate::vmm::process::Vmm;
use crate::vmm::snapshot::format::VERSION;
use crate::vmm::snapshot::{self, NEW_PREFIX, NewSnapshot, STATE_FILE, Scope};
use crate::vmm::stages::Stage;

/// How often, and how many times, it is asked whether its connections are gone.
const SETTLE: (Duration, u32) = (Duration::from_millis(20), 100);
/// Bytes of a placeholder for a disk: more than any disk has, so that a guest which has not yet heard of its disk's size
/// can read all of it.
const PLACEHOLDER: u64 = 1 << 42;
/// The longest packet of a TAP that a template has; a card that can do more is another one.
const TAP_MTU: u16 = 1500;

/// Where templates are.
pub fn directory() -> PathBuf {
    cache::directory().join("templates")
}

/// That directory, made if there is none, and of this user's or root's alone: who can write a template decides what the
/// guests are that are made of it.
pub(super) fn own_directory() -> Result<PathBuf, Failure> {
    let all = directory();
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&all);
    let found = made.and_then(|()| fs::metadata(&all)).map_err(|error| no_template(error, NO_PLACE))?;
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if (owner != 0 && owner != rustix::process::geteuid().as_raw()) || mode & 0o022 != 0 {
        let why = format!("{} is of user {owner} with mode {mode:o}: others may write there", all.display());
        return Err(no_template(why, "`chmod go-w` that directory, or another CORACLE_CACHE"));
    }
    Ok(all)
}

/// The template for a VM of this shape with devices of these kinds: it is made if there is none.
///
/// # Errors
/// It cannot be made, or no template would fit these devices.
pub fn obtain(shape: Shape, devices: &Devices) -> Result<PathBuf, Failure> {
    let all = own_directory()?;
    let key = key(shape, devices)?;
    let place = all.join(&key);
    if place.exists() {
        return Ok(place);
    }
    // One is made at a time. Others that want the same wait, which takes as long as a start of their own.
    let lock = file_lock::open(&all.join(".lock"));
    let held = lock.and_then(|lock| file_lock::take(&lock, FlockOperation::LockExclusive).map(|_| lock));
    let _held = held.map_err(|error| no_template(error, NO_PLACE))?;
    if !place.exists() {
        remove_remains(&all, NEW_PREFIX);
        make(shape, devices, &all, &place)?;
    }
    Ok(place)
}

/// A template as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Template {
    /// Its name: what it depends on, in one word.
    pub name: String,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Number of disks.
    pub disks: usize,
    /// Number of network cards.
    pub nets: usize,
    /// What it is a template of, where that is an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<About>,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// All templates, by name. One that cannot be read has the shape of nothing.
///
/// # Errors
/// The directory cannot be read.
pub fn list() -> Result<Vec<Template>, Failure> {
    let what = || format!("cannot list the templates in {}", directory().display());
    let entries = match fs::read_dir(directory()) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| Failure::new(what(), error, NO_PLACE))?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| is_name(name));
    let mut all: Vec<_> = names.map(describe).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(all)
}

fn describe(name: String) -> Template {
    let Ok(state) = snapshot::read(&directory().join(&name).join(STATE_FILE)) else {
        return Template { name, shape: Shape { cpus: 0, memory_mib: 0 }, disks: 0, nets: 0, image: None, bytes: 0 };
    };
    let image = About::read(&directory().join(&name));
    let shape = Shape { cpus: state.config.cpus, memory_mib: state.config.memory_mib };
    let (disks, nets) = (state.config.disks.len(), state.config.nets.len());
    Template { name, shape, disks, nets, image, bytes: state.memory.data }
}

/// Removes a template. Clones of it have its memory mapped, and go on.
///
/// # Errors
/// There is none of this name, or it cannot be removed.
pub fn remove(name: &str) -> Result<(), Failure> {
    let removed = match is_name(name) {
        true => fs::remove_dir_all(directory().join(name)),
        false => Err(ErrorKind::NotFound.into()),
    };
    removed.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::NotFound => "there is none of this name".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(format!("cannot remove template {name}"), why, "`coracle template ls`")
    })
}

/// Whether this could be what [`key`] makes: no path, and nothing that is being made.
fn is_name(name: &str) -> bool {
    name.len() == 16 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

pub(super) const NO_PLACE: &str = "a cache directory (CORACLE_CACHE) that you may write to";

pub(super) fn no_template(why: impl std::fmt::Display, advice: &str) -> Failure {
    Failure::new("cannot make a template of the microVM", why, advice)
}

/// By what a file is known that a template depends on.
pub(super) fn identity(path: &Path) -> Result<FileIdentity, Failure> {
    let identity = File::open(path).and_then(|file| FileIdentity::of(&file));
    identity.map_err(|error| no_template(format!("{}: {error}", path.display()), "scripts/start in Coracle's source"))
}

/// Everything that a template depends on, in one word.
pub(super) fn key(shape: Shape, devices: &Devices) -> Result<String, Failure> {
    let nets = devices.nets.iter().map(|net| match &net.backend {
        NetBackend::Tap(name) if Tap::mtu_of(name) == Some(TAP_MTU) => Ok("tap"),
        NetBackend::Tap(name) => {
            Err(no_template(format!("TAP {name} has another MTU than {TAP_MTU}"), "a network with that"))
        }
        NetBackend::Passt(_) => Ok("passt"),
    });
    let all = json!([
        VERSION,
        env!("CARGO_PKG_VERSION"),
        Host::detect().to_string(),
        identity(&cache::guest_kernel())?,
        identity(&cache::guest_initramfs())?,
        shape,
        devices.written.is_some(),
        devices.privileged,
        nets.collect::<Result<Vec<_>, _>>()?,
    ]);
    Ok(hash(all.to_string().as_bytes(), 8))
}

/// The first `bytes` bytes of the SHA-256 of `text`, in hexadecimal.
pub(super) fn hash(text: &[u8], bytes: usize) -> String {
    Sha256::digest(text).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

/// Removes what is left of one that was being made when its maker was killed: nobody else makes one now whose name starts
/// so.
pub(super) fn remove_remains(all: &Path, prefix: &str) {
    let entries = fs::read_dir(all).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes())) {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            log::warn!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

/// A TAP for the making of templates of a kind in this cache directory: if one is left of a maker that was killed, it is
/// used.
fn tap_name(kind: char, number: usize) -> String {
    let place = hash(directory().as_os_str().as_encoded_bytes(), 3);
    format!("cor{kind}{place}-{number}")
}

/// Boots a VM to where its agent is ready and takes the snapshot.
fn make(shape: Shape, devices: &Devices, all: &Path, place: &Path) -> Result<(), Failure> {
    let system = |error: std::io::Error| no_template(error, NO_PLACE);
    // Beside the container's sockets, so that what goes with those goes with it.
    let folder = match devices.vsock.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(sockets) => tempfile::Builder::new().prefix("template-").tempdir_in(sockets),
        None => tempfile::tempdir(),
    };
    let folder = folder.map_err(system)?;
    let placeholders = Placeholders::new(folder.path(), devices, 't')?;
    let vmm = Vmm::start(machine(shape, &placeholders.devices)?)?;
    let new = NewSnapshot::begin(all).map_err(system)?;
    let prepare = || Agent::connect(&placeholders.devices.vsock)?.prepare();
    snapshot_of(vmm, Stage::AgentReady, prepare, &new)?;
    new.publish(place).map_err(system)
}

/// Takes the snapshot of a VM that is prepared once it has reached a stage, and ends it.
pub(super) fn snapshot_of(
    mut vmm: Vmm,
    stage: Stage,
    prepare: impl FnOnce() -> Result<(), Failure>,
    new: &NewSnapshot,
) -> Result<(), Failure> {
    let system = |error: std::io::Error| no_template(error, NO_PLACE);
    vmm.control.set_read_timeout(Some(PATIENCE)).map_err(system)?;
    let control = vmm.control.try_clone().map_err(system)?;
    let mut talk = Talk { vmm: &control, lines: BufReader::new(&control).lines() };
    talk.reach(stage)?;
    prepare()?;
    talk.settle()?;
    // Paused for good: what the guest would do from here on, each clone does.
    talk.ask(&Request::Pause)?;
    Request::Snapshot { memory: Scope::Whole }
        .send_with(&control, new.files())
        .map_err(|error| no_template(error, LOOK))?;
    talk.reply()?;
    // One that has ended by itself is no worse.
    let _ = Request::Stop.send(&control).and_then(|()| vmm.wait());
    Ok(())
}

const LOOK: &str = "`coracle boot` with the same kernel and `guest/console.cpio`, to see what the guest says";

/// What stands in for a container's devices.
pub(super) struct Placeholders {
    /// All of them.
    pub devices: Devices,
    taps: Vec<String>,
    /// Kept for cards that want someone to connect to.
    _listeners: Vec<UnixListener>,
    /// In the directory of the real one, so that the file system can do the same.
    _written: Option<tempfile::NamedTempFile>,
}

impl Placeholders {
    /// In this folder, for templates of this kind, of which one is made at a time.
    pub fn new(folder: &Path, devices: &Devices, kind: char) -> Result<Self, Failure> {
        let system = |error: std::io::Error| no_template(error, NO_PLACE);
        let rootfs = folder.join("rootfs");
        File::create(&rootfs).and_then(|file| file.set_len(PLACEHOLDER)).map_err(system)?;
        let beside = |path: &PathBuf| {
            let file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
            file.as_file().set_len(PLACEHOLDER).map(|()| file)
        };
        let written = devices.written.as_ref().map(beside).transpose().map_err(system)?;
        let mut placeholders = Self {
            devices: Devices {
                rootfs,
                written: written.as_ref().map(|file| file.path().to_owned()),
                nets: Vec::new(),
                shares: Vec::new(),
                vsock: folder.join("vsock"),
                control: folder.join("control"),
                privileged: devices.privileged,
            },
            taps: Vec::new(),
            _listeners: Vec::new(),
            _written: written,
        };
        for (number, net) in devices.nets.iter().enumerate() {
            let backend = match net.backend {
                NetBackend::Tap(_) => {
                    let name = tap_name(kind, number);
                    Tap::create(&name).map_err(|error| no_template(&error, &error.try_next()))?;
                    placeholders.taps.push(name.clone());
                    NetBackend::Tap(name)
                }
                NetBackend::Passt(_) => {
                    let path = folder.join(format!("net{number}"));
                    placeholders._listeners.push(UnixListener::bind(&path).map_err(system)?);
                    NetBackend::Passt(path)
                }
            };
            placeholders.devices.nets.push(NetConfig { backend, mac: None });
        }
        Ok(placeholders)
    }
}

impl Drop for Placeholders {
    fn drop(&mut self) {
        for name in &self.taps {
            if let Err(error) = Tap::remove(name) {
                log::warn!("cannot remove {name}: {error}");
            }
        }
    }
}

/// The owner's side of a VMM's control socket, one thing after the other.
struct Talk<'a> {
    vmm: &'a UnixStream,
    lines: Lines<BufReader<&'a UnixStream>>,
}

impl Talk<'_> {
    fn line(&mut self) -> Result<String, Failure> {
        match self.lines.next() {
            Some(Ok(line)) => Ok(line),
            Some(Err(error)) => Err(silent(&error).unwrap_or_else(|| no_template(error, LOOK))),
            None => Err(no_template("coracle-vmm ended without a word", "look at `dmesg`")),
        }
    }

    /// Waits until the VM has come so far.
    fn reach(&mut self, stage: Stage) -> Result<(), Failure> {
        loop {
            let line = self.line()?;
            match serde_json::from_str(&line) {
                Ok(Event::Stage(mark)) if mark.stage == stage => return Ok(()),
                Ok(event) => ending(&event).map_or(Ok(()), Err)?,
                Err(_) => {}
            }
        }
    }

    /// The answer to the last request; events between are passed over.
    fn reply(&mut self) -> Result<Value, Failure> {
        loop {
            let line = self.line()?;
            if let Some(failure) = serde_json::from_str(&line).ok().and_then(|event| ending(&event)) {
                return Err(failure);
            }
            match serde_json::from_str(&line) {
                Ok(Reply::Ok(value)) => return Ok(value),
                Ok(Reply::Error(why)) => return Err(no_template(why, LOOK)),
                Err(_) => {}
            }
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Value, Failure> {
        request.send(self.vmm).map_err(|error| no_template(error, LOOK))?;
        self.reply()
    }

    /// Waits until the guest has no connection, which each clone would have to be told of.
    fn settle(&mut self) -> Result<(), Failure> {
        let (pause, times) = SETTLE;
        for _ in 0..times {
            let metrics = self.ask(&Request::Metrics)?;
            let vsock = metrics.as_object().into_iter().flatten().find(|(name, _)| name.ends_with("-vsock"));
            if vsock.is_none_or(|(_, values)| values["streams"] == 0) {
                break;
            }
            std::thread::sleep(pause);
        }
        Ok(())
    }
}
