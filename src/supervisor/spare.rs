// SPDX-License-Identifier: Apache-2.0
//! Spares: monitors that wait, each with a VM restored from the template of an image, for the next container of that kind.
//!
//! The monitor of a container that has ended becomes the spare for the next one like it: it executes itself anew, so that
//! nothing of the old container is left in it, restores a VM and makes it one of its own. Whoever starts such a container
//! within [`WAITING`] calls it instead of starting a monitor.
//!
//! ```text
//! RUN/spare-KEY/          locked by the spare; becomes the container's directory for sockets
//!     call                where it is called
//!     order.json          what it was made of
//!     ready               its VM has come as far as it can
//!     control, vm/vsock   of its VM
//! ```
//!
//! A key has all that a process inherits and a monitor would have had from its caller: who finds a spare may as well use
//! it. Whether its VM is the right one is not left to the key: see [`Spare::vm`].

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::containers::{Container, remove_sockets, run_directory};
use super::monitor::check_owner;
use super::record::Config;
use crate::failure::Failure;
use crate::network::{self, Attachment};
use crate::sandbox::{self, Devices, MicroVm, Prepared, Shape, image_template};
use crate::vmm::clock::{monotonic_ns, realtime_ns};
use crate::{file_lock, milestones};

/// The hidden verb that a spare runs under.
pub const VERB: &str = "spare";
/// Set to a number in the environment, they wait for so many seconds; with 0 there are none.
pub const VARIABLE: &str = "CORACLE_SPARES";
/// How many seconds a spare waits for its container.
const WAITING: u32 = 60;
/// Most spares of a user: one more, and nobody becomes it.
const MOST: usize = 4;
/// This part of a host's memory has to be available where a spare is to be left.
const FREE_PART: u64 = 4;
/// So much may the host's clock have been set by since a VM was told the time.
const CLOCK_SET_NS: i64 = 5_000_000;
/// How the directories of spares begin; no container's id does.
const PREFIX: &str = "spare-";
const CALL: &str = "call";
const ORDER: &str = "order.json";
const READY: &str = "ready";

/// What a spare is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    shape: Shape,
    rootfs: PathBuf,
    prepared: Prepared,
    template: PathBuf,
    /// The network that it is in, by name.
    network: Option<String>,
}

/// A spare as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Name of the template of which its VM is a clone.
    pub template: String,
    /// The network that it is in, by name.
    pub network: Option<String>,
    /// Whether the VM has come as far as it can.
    pub ready: bool,
}

/// What a caller says.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    /// `None` has it end.
    container: Option<PathBuf>,
    milestones: Option<PathBuf>,
}

/// Where a spare for such a container would be, if the caller were to start its monitor; `None` where there are none of
/// its kind.
pub fn place(config: &Config) -> Option<PathBuf> {
    // Addresses are leased ahead, in networks that are bridges.
    let connectable = config
        .network
        .as_ref()
        .is_none_or(|network| network.address.is_none() && network.mac.is_none() && network::may_create());
    let plain = config.remove && connectable && config.mounts.is_empty() && config.storage_size.is_none();
    let clone = !config.isolation.is_container() && !config.cold && config.from.is_none();
    if !plain || !clone || seconds() == 0 {
        return None;
    }
    let around = &config.surroundings;
    let program = config.process.arguments.first();
    let network = config.network.as_ref().map(|network| &network.name);
    let kind = json!([config.image.manifest, config.shape, program, around.capabilities, around.pids_limit, network]);
    let mut hash = Sha256::new_with_prefix(kind.to_string());
    inherited(&mut |bytes: &[u8]| {
        hash.update(bytes.len().to_le_bytes());
        hash.update(bytes);
    })
    .ok()?;
    let key: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Some(run_directory().join(format!("{PREFIX}{key}")))
}

fn seconds() -> u32 {
    env::var(VARIABLE).ok().and_then(|value| value.parse().ok()).unwrap_or(WAITING)
}

/// What a monitor has from its caller: the program, the environment, and what proc(5) tells of a process.
fn inherited(add: &mut impl FnMut(&[u8])) -> io::Result<()> {
    let program = fs::metadata("/proc/self/exe")?;
    for number in [program.dev(), program.ino(), program.size()] {
        add(&number.to_le_bytes());
    }
    add(&program.mtime_nsec().to_le_bytes());
    let mut variables: Vec<_> = env::vars_os().filter(|(name, _)| name != milestones::VARIABLE).collect();
    variables.sort();
    for (name, value) in variables.iter().filter(|(name, _)| counts(name.as_bytes())) {
        add(name.as_bytes());
        add(value.as_bytes());
    }
    let status = fs::read("/proc/self/status")?;
    // Not what it does and has done, which comes before and after these.
    let kept =
        [&b"Umask"[..], b"Uid", b"Gid", b"Groups", b"Cap", b"NoNewPrivs", b"Seccomp", b"Cpus_allowed", b"Mems_allowed"];
    for line in status.split(|byte| *byte == b'\n').filter(|line| kept.iter().any(|name| line.starts_with(name))) {
        add(line);
    }
    for file in ["limits", "cgroup", "oom_score_adj"] {
        add(&fs::read(Path::new("/proc/self").join(file))?);
    }
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        add(fs::read_link(Path::new("/proc/self/ns").join(namespace))?.as_os_str().as_bytes());
    }
    add(&rustix::process::getpriority_process(None)?.to_le_bytes());
    Ok(())
}

/// Whether Coracle, or what it starts, heeds this variable.
fn counts(name: &[u8]) -> bool {
    [&b"CORACLE_"[..], b"XDG_", b"RUST_", b"HOME", b"PATH", b"TMPDIR", b"TZ"]
        .iter()
        .any(|begin| name.starts_with(begin))
}

/// Calls the spare at this place: the connection to the monitor that it then is, if there is one.
pub fn call(place: &Path, container: &Container) -> Option<UnixStream> {
    // What is said here is the container's, and what it reads: nobody else is to pretend to be its monitor.
    check_owner(place.parent()?).and_then(|()| check_owner(place)).ok()?;
    let mut stream = UnixStream::connect(place.join(CALL)).ok()?;
    let milestones = env::var_os(milestones::VARIABLE).map(PathBuf::from);
    let call = Call { container: Some(container.directory().to_owned()), milestones };
    let answered = serde_json::to_vec(&call).map_err(io::Error::from).and_then(|mut line| {
        line.push(b'\n');
        stream.write_all(&line)?;
        stream.read_exact(&mut [0])
    });
    // Another caller was first, or it has ended.
    answered.ok().map(|()| stream)
}

/// Tells those to end that wait in such a network. They are in nobody's way until they do.
pub fn dismiss(is_such: impl Fn(Option<&String>) -> bool) {
    for (place, _) in waiting().iter().filter(|(_, waiting)| is_such(waiting.network.as_ref())) {
        let told = UnixStream::connect(place.join(CALL)).and_then(|mut stream| {
            let mut line = serde_json::to_vec(&Call { container: None, milestones: None })?;
            line.push(b'\n');
            stream.write_all(&line)
        });
        // A container's meanwhile, or gone.
        told.unwrap_or_else(|error| log::info!("{} is not told: {error}", place.display()));
    }
}

/// The place of a spare that this process is to become. Callers may come already.
#[derive(Debug)]
pub struct Offer {
    place: PathBuf,
    lock: File,
    listener: UnixListener,
}

impl Order {
    /// One like this VM, which is of a template of its image.
    pub fn like(vm: &MicroVm, shape: Shape, rootfs: &Path, prepared: Prepared, network: Option<&str>) -> Option<Self> {
        Some(Self {
            shape,
            rootfs: rootfs.to_owned(),
            prepared,
            template: vm.template()?.to_owned(),
            network: network.map(str::to_owned),
        })
    }

    /// Takes the place, where there is none already, and not too many elsewhere.
    pub fn offer(&self, place: &Path) -> Option<Offer> {
        let others = waiting().iter().filter(|(other, _)| other != place).count();
        if others >= MOST || !has_room(self.shape) {
            return None;
        }
        DirBuilder::new().mode(0o700).create(place).ok()?;
        let offer = self.take(place);
        if let Err(error) = &offer {
            log::warn!("cannot leave a microVM waiting in {}: {error}", place.display());
        }
        offer.ok().flatten()
    }

    fn take(&self, place: &Path) -> io::Result<Option<Offer>> {
        let lock = File::open(place)?;
        if !file_lock::take(&lock, FlockOperation::NonBlockingLockExclusive)? {
            // Somebody who looked for dead ones was between us and it, and removes it.
            return Ok(None);
        }
        DirBuilder::new().mode(0o700).create(place.join("vm"))?;
        fs::write(place.join(ORDER), serde_json::to_vec(self)?)?;
        Ok(Some(Offer { place: place.to_owned(), lock, listener: UnixListener::bind(place.join(CALL))? }))
    }
}

/// Whether a host has so much memory that a VM may wait in it.
fn has_room(shape: Shape) -> bool {
    let facts = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        facts.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1)?.parse::<u64>().ok())
    };
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(available)) => available > total / FREE_PART + shape.memory_mib * 1024,
        _ => false,
    }
}

/// All that wait, and where. What killed ones have left is removed.
pub fn waiting() -> Vec<(PathBuf, Waiting)> {
    let entries = fs::read_dir(run_directory()).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()));
    let mut all = Vec::new();
    for place in named.map(|entry| entry.path()) {
        let Ok(lock) = File::open(&place) else { continue };
        match file_lock::take(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(true) if is_at(&lock, &place) => remove_sockets(&place),
            // It has become a container's meanwhile, under another name.
            Ok(true) => {}
            Ok(false) => {
                let order =
                    fs::read(place.join(ORDER)).ok().and_then(|text| serde_json::from_slice::<Order>(&text).ok());
                let template = order.as_ref().and_then(|order| order.template.file_name());
                let template = template.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let ready = place.join(READY).exists();
                let network = order.and_then(|order| order.network);
                all.push((place, Waiting { template, network, ready }));
            }
            Err(error) => log::warn!("cannot look at {}: {error}", place.display()),
        }
    }
    all
}

fn is_at(directory: &File, place: &Path) -> bool {
    let ids = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    directory.metadata().ok().map(ids).is_some_and(|found| fs::metadata(place).ok().map(ids) == Some(found))
}

impl Offer {
    /// Becomes the spare: this process executes itself anew.
    ///
    /// # Errors
    /// It cannot; nothing is left.
    pub fn become_spare(self) -> Result<(), Failure> {
        let failed = |error: io::Error| {
            remove_sockets(&self.place);
            reconcile();
            Failure::new("cannot leave a microVM waiting", error, "--no-spare, or CORACLE_SPARES=0")
        };
        let program = env::current_exe().map_err(failed)?;
        let null = || File::options().read(true).write(true).open("/dev/null");
        let mut command = Command::new(program);
        command.arg(VERB).arg(&self.place);
        for descriptor in [self.lock.as_raw_fd(), self.listener.as_raw_fd()] {
            // SAFETY: F_SETFD takes an integer, and the descriptor is open.
            if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } < 0 {
                return Err(failed(io::Error::last_os_error()));
            }
            command.arg(descriptor.to_string());
        }
        // The log is the old container's. Milestones are the caller's.
        command.stderr(null().map_err(failed)?).env_remove(milestones::VARIABLE);
        Err(failed(command.exec()))
    }
}

/// A VM that waits, or is about to, and its place.
pub struct Spare {
    /// Where it was, which is where the next may be.
    pub place: PathBuf,
    /// Held while it is in its place.
    _lock: File,
    vm: Option<Ready>,
}

/// A VM that is one of its own, and waits for its process.
struct Ready {
    // It ends before its network does.
    vm: MicroVm,
    connected: Option<Attachment>,
    /// How far the host's clock was ahead of the time since it started.
    clock_ns: i64,
}

/// Waits as a spare at `place` until it is called: for which container, by whom. `None` where nobody has come in time.
///
/// # Errors
/// The descriptors are not those of an [`Offer`].
pub fn wait(place: &Path, lock: i32, listener: i32) -> Result<Option<(PathBuf, OwnedFd, Spare)>, Failure> {
    // SAFETY: whoever executed us left these descriptors open for us alone. Where one is not open, its first use says so.
    let (lock, listener) = unsafe { (File::from_raw_fd(lock), UnixListener::from_raw_fd(listener)) };
    let failed =
        |error: io::Error| Failure::new("cannot wait for a container", error, "it is for Coracle alone to run this");
    let order = fs::read(place.join(ORDER)).and_then(|text| Ok(serde_json::from_slice::<Order>(&text)?));
    let order = order.map_err(failed)?;
    for descriptor in [lock.as_raw_fd(), listener.as_raw_fd()] {
        // SAFETY: F_SETFD takes an integer.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(failed(io::Error::last_os_error()));
        }
    }
    let own = place.to_owned();
    let making = thread::spawn(move || order.make(&own));
    let called = called(&listener);
    drop(listener);
    let spare = |making: JoinHandle<Option<Ready>>| Spare {
        place: place.to_owned(),
        _lock: lock,
        // A thread that panicked has made nothing.
        vm: making.join().ok().flatten(),
    };
    match called {
        Some((Call { container: Some(container), milestones }, client)) => {
            milestones::follow(milestones.as_deref());
            follow_log(&container);
            Ok(Some((container, client.into(), spare(making))))
        }
        _ => {
            // Nobody else is to be in the place before it is empty.
            let Spare { vm, _lock, .. } = spare(making);
            drop(vm);
            remove_sockets(place);
            Ok(None)
        }
    }
}

/// The first who calls.
fn called(listener: &UnixListener) -> Option<(Call, UnixStream)> {
    let limit = Timespec { tv_sec: seconds().into(), tv_nsec: 0 };
    loop {
        let mut watched = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut watched, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(1..) => {}
            Ok(0) | Err(_) => return None,
        }
        let Ok((mut stream, _)) = listener.accept() else { continue };
        // Nothing follows the line until it is answered, so the reader holds nothing back.
        let mut line = String::new();
        let limit = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let read = limit.and_then(|()| BufReader::new(&stream).take(1 << 16).read_line(&mut line));
        let call: Option<Call> = read.ok().and_then(|_| serde_json::from_str(&line).ok());
        let ready = || stream.set_read_timeout(None).and_then(|()| stream.write_all(&[0]));
        // One that says nothing, or has gone, is none. Who has it end waits for no answer.
        if let Some(call) = call
            && (call.container.is_none() || { ready }().is_ok())
        {
            return Some((call, stream));
        }
    }
}

/// What a monitor has to say belongs in its container's directory.
fn follow_log(container: &Path) {
    let log = super::client::monitor_log(container);
    if let Err(error) = log.and_then(|log| Ok(rustix::stdio::dup2_stderr(log)?)) {
        log::warn!("cannot write the monitor's log: {error}");
    }
}

impl Order {
    fn make(&self, place: &Path) -> Option<Ready> {
        let (vsock, control) = (sandbox::vsock(place), sandbox::control(place));
        let made = self.connect(place).and_then(|connected| {
            let nets = connected.iter().map(Attachment::config).collect();
            let devices = Devices { rootfs: self.rootfs.clone(), nets, vsock, control, ..Devices::default() };
            let vm = MicroVm::with_container(self.shape, &devices, &self.prepared)?;
            vm.map(|vm| {
                let clock_ns = clock_ns();
                let vm = vm.rouse()?;
                // For those who look: it is used all the same.
                let _ = fs::write(place.join(READY), "");
                Ok(Ready { vm, connected, clock_ns })
            })
            .transpose()
        });
        made.inspect_err(|failure| log::warn!("{failure}")).ok().flatten()
    }

    /// Its lease is in a name of its own: the next one at this place may have one before this one's container has ended.
    fn connect(&self, place: &Path) -> Result<Option<Attachment>, Failure> {
        let Some(network) = &self.network else { return Ok(None) };
        let place = place.file_name().unwrap_or_default().to_string_lossy();
        network::attach(&network::Request {
            network: network.clone(),
            container: format!("{place}-{:x}", monotonic_ns()),
            names: Vec::new(),
            address: None,
            mac: None,
            ports: Vec::new(),
            namespace: None,
            spare: true,
        })
        .map(Some)
        // It would have taken away what the container before has left.
        .inspect_err(|_| reconcile())
    }
}

fn reconcile() {
    network::reconcile().unwrap_or_else(|failure| log::warn!("{failure}"));
}

/// What the host's clock is set to, as against the time that has passed.
fn clock_ns() -> i64 {
    i64::try_from(realtime_ns()).unwrap_or(0).wrapping_sub(i64::try_from(monotonic_ns()).unwrap_or(0))
}

impl Spare {
    /// Makes its place the directory of a container's sockets.
    ///
    /// # Errors
    /// The file system's.
    pub fn move_to(&mut self, sockets: &Path) -> io::Result<()> {
        remove_sockets(sockets);
        fs::rename(&self.place, sockets)?;
        for name in [CALL, ORDER, READY] {
            match fs::remove_file(sockets.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if let Some(ready) = &mut self.vm {
            ready.vm.moved(&self.place, sockets);
        }
        Ok(())
    }

    /// What its VM is connected to.
    pub fn take_connection(&mut self) -> Option<Attachment> {
        self.vm.as_mut()?.connected.take()
    }

    /// Ends its VM, whose sockets are in the way of another's.
    pub fn give_up(self, vsock: &Path, control: &Path) {
        drop(self.vm);
        for socket in [vsock, control] {
            let _ = fs::remove_file(socket);
        }
    }

    /// Its VM, where it is what a new one would be: of the template that would be found now, and with a clock that is
    /// right.
    pub fn vm(mut self, shape: Shape, devices: &Devices, prepared: &Prepared) -> Option<MicroVm> {
        let Ready { vm, connected: _, clock_ns: then } = self.vm.take()?;
        let found = image_template::find(shape, devices, prepared).ok().flatten();
        let right = clock_ns().abs_diff(then) < CLOCK_SET_NS.unsigned_abs();
        if right && found.is_some() && found.as_deref() == vm.template() && vm.is_alive() {
            return Some(vm);
        }
        log::info!("the microVM that waited is not the right one");
        drop(vm);
        self.give_up(&devices.vsock, &devices.control);
        None
    }
}
