// SPDX-License-Identifier: Apache-2.0
//! The process that looks after one running container: it owns the VM, or what stands for it, keeps the output, and tells
//! how it ended.

mod clients;
mod output;
mod pressure;
pub(super) mod shares;
mod snapshot;
pub(super) mod storage;
mod templates;

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_protocol::{Task, WindowSize};
use jiff::Timestamp;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::clients::Clients;
use self::output::Output;
use self::snapshot::Snapshotted;
use super::containers::{Container, Held, remove_sockets};
use super::record::{Config, LogDriver, NetworkUse, State, Status};
use super::spare::{Offer, Order, Spare};
use super::volumes::Volumes;
use super::wire::{Exit, Reply, Stream};
use super::{describe, warm};
use crate::failure::{EXIT_FAILURE, Failure};
use crate::milestones::reach;
use crate::network::{self, Attachment, NetworkNamespace};
use crate::sandbox::{
    self, Agent, Devices, Handle, Isolation, MicroVm, NamespaceContainer, NotRun, Prepared, ProcessStart, Remains,
    Running, Sandbox, Stopper,
};
use crate::vmm::virtiofsd::Virtiofsd;

const SIGKILL: u8 = 9;
/// Exit status of a program that was killed with its VM.
const KILLED: u8 = 128 + SIGKILL;
/// How long a guest has to kill its program, and to write what it has to its disk, before the VM is ended under it.
const KILLING: Duration = Duration::from_secs(10);
/// How long clients have to take what is left for them once the container has ended.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the threads of a monitor share.
struct Monitor {
    container: Container,
    phase: Mutex<Phase>,
    changed: Condvar,
    clients: Clients,
    /// Where its agent is reached.
    vsock: PathBuf,
    /// Where its VMM is asked.
    control: PathBuf,
    /// Where attached clients' input goes.
    input: Mutex<Option<UnixStream>>,
    /// Makes a template of the image for those that come later.
    maker: Mutex<Option<JoinHandle<()>>>,
    /// The VM that has waited for this container.
    spare: Mutex<Option<Spare>>,
    /// What another container like this one would want to be waiting for it.
    order: Mutex<Option<Order>>,
    /// Size of the terminal that the program starts with.
    size: Mutex<WindowSize>,
    /// Held by who has the container stand still, or go on.
    standing: Mutex<()>,
    /// Held by who has the guest give memory back.
    relieving: Mutex<()>,
}

/// What is there before a monitor has its container.
#[derive(Default)]
pub struct Beforehand {
    place: Option<PathBuf>,
    spare: Option<Spare>,
}

impl Beforehand {
    /// Nothing but the place where this process may be the spare once its container has ended.
    pub fn new(place: Option<PathBuf>) -> Self {
        Self { place, spare: None }
    }

    /// A VM that waits; the next one may be in its place.
    pub fn of(spare: Spare) -> Self {
        Self { place: Some(spare.place.clone()), spare: Some(spare) }
    }
}

/// How far the container has come.
enum Phase {
    /// Its VM may be there already.
    Starting(Option<Stopper>),
    /// The program runs.
    Running(Handle, Stopper),
    /// It has ended, or never started.
    Ended(Reply),
}

/// Looks after the container in `directory` until it has ended; `client` is the connection of who asked for it. Gives the
/// place where this process is expected to wait for another such container, if it is.
///
/// # Errors
/// None that `client` has not been told; for the log.
pub fn run(directory: &Path, client: OwnedFd, beforehand: Beforehand) -> Result<Option<Offer>, Failure> {
    reach("monitor runs");
    let client = UnixStream::from(client);
    allow_connections();
    let Beforehand { place, mut spare } = beforehand;
    let prepared = Container::open(directory).and_then(|container| {
        let held = container.claim()?;
        let sockets = make_socket_directory(&container, spare.as_mut())?;
        let listener = UnixListener::bind(sockets.join("monitor")).map_err(|error| no_sockets(&sockets, error))?;
        Ok((container, held, sockets, listener))
    });
    let (container, held, sockets, listener) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            clients::refuse(&client, &failure);
            return Err(failure);
        }
    };
    let monitor = Arc::new(Monitor {
        container,
        phase: Mutex::new(Phase::Starting(None)),
        changed: Condvar::new(),
        clients: Clients::default(),
        vsock: sandbox::vsock(&sockets),
        control: sandbox::control(&sockets),
        input: Mutex::default(),
        maker: Mutex::default(),
        spare: Mutex::new(spare),
        order: Mutex::default(),
        size: Mutex::default(),
        standing: Mutex::default(),
        relieving: Mutex::default(),
    });
    if let Err(error) = clients::serve_first(&monitor, client) {
        log::info!("who asked for the container has gone: {error}");
    }
    clients::accept(&monitor, listener);
    monitor.live(sockets, held, place)
}

impl Monitor {
    fn live(self: &Arc<Self>, sockets: PathBuf, held: Held, place: Option<PathBuf>) -> Result<Option<Offer>, Failure> {
        // Others find the monitor from here on, to stop what hangs.
        let found = self.container.state().and_then(|before| {
            self.container.set_state(&State { sockets: sockets.clone(), ..before.clone() })?;
            Ok(before)
        });
        let before = match found {
            Ok(before) => before,
            Err(failure) => {
                remove_sockets(&sockets);
                drop(held);
                self.end(Reply::Failed { failure: failure.clone(), status: EXIT_FAILURE });
                return Err(failure);
            }
        };
        let mut state = State {
            sockets: sockets.clone(),
            started: Some(Timestamp::now()),
            finished: None,
            error: String::new(),
            ..before.clone()
        };
        let mut remains = None;
        let (reply, outcome) = match self.start(&mut state, before.started.is_none()) {
            Ok(started) => {
                let outcome = self.follow(started, &mut remains);
                let exit = outcome.as_ref().copied().unwrap_or(Exit { status: KILLED, out_of_memory: false });
                let error = outcome.as_ref().err().map(|failure| failure.why.clone()).unwrap_or_default();
                state = State { exit, error, ..state.ended() };
                (Reply::Ended(exit), outcome.map(drop))
            }
            Err(NotRun { failure, status }) => {
                let exit = Exit { status, out_of_memory: false };
                state = State { exit, error: failure.why.clone(), ..before };
                (Reply::Failed { failure: failure.clone(), status }, Err(failure))
            }
        };
        shares::end(&self.container);
        remove_sockets(&sockets);
        let kept = match self.container.config.remove {
            true => self.container.remove().and_then(|()| remove_anonymous(&self.container)),
            false => self.container.set_state(&state),
        };
        // Who hears of the end may start it again at once, or another like it: where that is to call is there by then.
        drop(held);
        let order = self.order.lock().expect("no thread panics while it holds this").take();
        let fine = outcome.is_ok() && kept.is_ok();
        let offer = order.filter(|_| fine).zip(place).and_then(|(order, place)| order.offer(&place));
        // A spare takes away what is left at the host when it comes into the network, after the caller has gone.
        if offer.is_none() && self.container.config.remove && self.container.config.network.is_some() {
            network::reconcile().unwrap_or_else(|failure| log::warn!("{failure}"));
        }
        self.end(reply);
        drop(remains);
        let maker = self.maker.lock().expect("no thread panics while it holds this").take();
        if maker.is_some_and(|maker| maker.join().is_err()) {
            log::warn!("the making of a template has failed");
        }
        outcome.and(kept).map(|()| offer)
    }

    /// Tells all who wait.
    fn end(&self, reply: Reply) {
        self.enter(Phase::Ended(reply.clone()));
        self.clients.tell(&reply, Some(FAREWELL));
        self.clients.settle(FAREWELL);
    }

    /// Up to where the program runs, for the first time or again.
    fn start(&self, state: &mut State, first: bool) -> Result<Started, NotRun> {
        let config = &self.container.config;
        let what = format!("cannot start container {}", config.name);
        // Nobody removes the image between here and where the VMM has its disk open.
        let (content, rootfs) = snapshot::rootfs(config)?;
        let origin = config.from.as_ref().filter(|_| first);
        let origin = origin.map(|origin| Snapshotted::find(&self.container, origin, &rootfs, &what)).transpose()?;
        let connected = config.network.as_ref().map(|network| self.connect(network)).transpose()?;
        state.ports = connected.iter().flat_map(|connected| connected.ports.clone()).collect();
        state.addresses = connected.iter().flat_map(|connected| connected.addresses.clone()).collect();
        let shared = shares::Shares::find(&self.container, first)?;
        let written = config.storage_size.map(|size| self.written(size, origin.as_ref())).transpose()?;
        let container = describe::container(config, connected.as_ref(), &shared.describe());
        reach("network and disks ready");
        let (mut serving, mut to_make) = (Vec::new(), None);
        let sandbox = match &config.isolation {
            Isolation::MicroVm => {
                serving = shared.serve(&state.sockets)?;
                let devices = Devices {
                    rootfs,
                    written,
                    nets: connected.iter().map(Attachment::config).collect(),
                    shares: serving.iter().map(Virtiofsd::config).collect(),
                    vsock: self.vsock.clone(),
                    control: self.control.clone(),
                    privileged: config.surroundings.privileged,
                };
                Sandbox::MicroVm(match &origin {
                    Some(origin) => MicroVm::restore(&origin.place, origin.base.clone(), &devices)?,
                    None => {
                        let prepared = warm::prepared(config, &container);
                        let vm = match self.spare_vm(&devices, prepared.as_ref()) {
                            Some(vm) => vm,
                            None => MicroVm::start(config.shape, &devices, config.templates(), prepared.as_ref())?,
                        };
                        if let Some(prepared) = prepared {
                            let network = connected.as_ref().map(Attachment::network);
                            match Order::like(&vm, config.shape, &devices.rootfs, prepared.clone(), network) {
                                None => to_make = Some((devices, prepared)),
                                order => *self.order.lock().expect("no thread panics while it holds this") = order,
                            }
                        }
                        vm
                    }
                })
            }
            Isolation::Container { runtime } => {
                let network = connected.as_ref().and_then(Attachment::namespace);
                let ground = shared.ground(config, runtime, rootfs, written, &state.sockets, network);
                Sandbox::Container(NamespaceContainer::start(ground)?)
            }
        };
        self.enter(Phase::Starting(Some(sandbox.stopper()?)));
        sandbox.wait_ready()?;
        drop(content);
        let size = *self.size.lock().expect("no thread panics while it holds this");
        let terminal = config.terminal.then_some(size);
        let mut process = match &origin {
            Some(origin) => {
                let adopt = describe::adoption(config, connected.as_ref(), &origin.snapshot.addresses);
                sandbox.agent()?.adopt(adopt, config.interactive, config.terminal)?
            }
            None => sandbox.start_process(ProcessStart {
                container: Some(container),
                process: describe::process(&config.process, &config.surroundings, terminal),
                task: Task::Program,
                stdin: config.interactive,
                output: true,
            })?,
        };
        reach("program started");
        *self.input.lock().expect("no thread panics while it holds this") = process.stdin.take();
        state.status = Status::Running;
        state.pid = sandbox.pid();
        self.container.set_state(state)?;
        if let Some((devices, prepared)) = to_make {
            let maker = templates::make_if_wanted(config.shape, devices, prepared);
            *self.maker.lock().expect("no thread panics while it holds this") = maker;
        }
        Ok(Started { sandbox, process, connected, serving })
    }

    /// What the VM that has waited is connected to, or a connection of its own.
    fn connect(&self, network: &NetworkUse) -> Result<Attachment, Failure> {
        let config = &self.container.config;
        let mut spare = self.spare.lock().expect("no thread panics while it holds this");
        if let Some(waiting) = spare.as_mut().and_then(Spare::take_connection) {
            match waiting.hand_over(&request(config, network, None)) {
                Ok(connected) => return Ok(connected),
                Err(failure) => log::info!("the microVM that waited is not used: {failure}"),
            }
        }
        // It is connected to nothing any more; the sockets make way for those of another.
        if let Some(unfit) = spare.take() {
            unfit.give_up(&self.vsock, &self.control);
        }
        drop(spare);
        attach(config, network)
    }

    /// The VM that has waited, where it is the right one.
    fn spare_vm(&self, devices: &Devices, prepared: Option<&Prepared>) -> Option<MicroVm> {
        let spare = self.spare.lock().expect("no thread panics while it holds this").take()?;
        spare.vm(self.container.config.shape, devices, prepared?)
    }

    fn written(&self, size: u64, origin: Option<&Snapshotted>) -> Result<PathBuf, Failure> {
        match origin {
            Some(origin) => storage::copy_of(&origin.place, self.container.directory()),
            None => storage::disk(self.container.directory(), size),
        }
    }

    /// From there to its end.
    fn follow(self: &Arc<Self>, started: Started, remains: &mut Option<Remains>) -> Result<Exit, Failure> {
        let Started { sandbox, mut process, connected, serving } = started;
        let path = self.container.log();
        let kept = (self.container.config.log == LogDriver::JsonFile).then_some(&*path);
        let output = Output::open(Arc::clone(self), kept)?;
        self.enter(Phase::Running(process.handle.clone(), sandbox.stopper()?));
        self.clients.tell(&Reply::Started, None);
        process.stdout.take().into_iter().for_each(|from| output.copy(from, Stream::Stdout));
        process.stderr.take().into_iter().for_each(|from| output.copy(from, Stream::Stderr));
        let ended = process.wait().map_err(|failure| sandbox.gone(failure));
        output.finish(FAREWELL);
        // Nobody waits for a VMM where no container is left that could start again, and no directory that it shared.
        *remains = sandbox.stop().filter(|_| self.container.config.remove && serving.is_empty());
        drop(serving);
        // Ports and addresses are free again before anybody hears of the end.
        if let Some(connected) = connected {
            let left = if self.container.config.remove { connected.forget() } else { connected.detach() };
            left.unwrap_or_else(|failure| log::warn!("{failure}"));
        }
        ended.map(|ended| Exit { status: ended.status(), out_of_memory: ended.oom })
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().expect("no thread panics while it holds this")
    }

    fn enter(&self, phase: Phase) {
        *self.phase() = phase;
        self.changed.notify_all();
    }

    fn set_first_size(&self, size: Option<WindowSize>) {
        if let Some(size) = size {
            *self.size.lock().expect("no thread panics while it holds this") = size;
        }
    }

    /// Adds a client with `add`; what has happened already is its first reply.
    fn attach(&self, add: impl FnOnce()) -> Option<Reply> {
        let phase = self.phase();
        match &*phase {
            Phase::Starting(_) => {
                add();
                None
            }
            Phase::Running(..) => {
                add();
                Some(Reply::Started)
            }
            Phase::Ended(reply) => Some(reply.clone()),
        }
    }

    /// The running program, once it runs; the reply to give instead where it has ended.
    fn running(&self) -> Result<Handle, Reply> {
        let mut phase = self.phase();
        loop {
            match &*phase {
                Phase::Starting(_) => phase = self.changed.wait(phase).expect("no panic"),
                Phase::Running(handle, _) => return Ok(handle.clone()),
                Phase::Ended(reply) => return Err(reply.clone()),
            }
        }
    }

    fn with_process(&self, ask: impl FnOnce(&Handle) -> Result<(), Failure>) -> Reply {
        match self.running().map(|process| ask(&process)) {
            Ok(Ok(())) => Reply::Done,
            Ok(Err(failure)) => Reply::Failed { failure, status: EXIT_FAILURE },
            Err(reply) => reply,
        }
    }

    /// Sends the program a signal. One that cannot be caught ends a VM that does not answer.
    fn signal(&self, number: u8) -> Reply {
        if number == SIGKILL {
            return self.stop(number, Some(Duration::ZERO));
        }
        self.with_process(|process| process.signal(number))
    }

    fn pause(&self, still: bool) -> Reply {
        let _alone = self.standing.lock().expect("no thread panics while it holds this");
        let done = self.with_process(|_| Agent::connect(&self.vsock)?.pause(still));
        if done == Reply::Done {
            let status = if still { Status::Paused } else { Status::Running };
            // Its end, if that came meanwhile, has the last word.
            let _phase = self.phase();
            if let Ok(state) = self.container.state()
                && state.status.is_up()
                && let Err(failure) = self.container.set_state(&State { status, ..state })
            {
                return Reply::Failed { failure, status: EXIT_FAILURE };
            }
        }
        done
    }

    /// Gives the program input, or the end of it.
    fn take_input(&self, bytes: &[u8]) {
        if self.running().is_err() {
            return;
        }
        let mut input = self.input.lock().expect("no thread panics while it holds this");
        let taken = input.as_mut().is_some_and(|to| !bytes.is_empty() && to.write_all(bytes).is_ok());
        if !taken && let Some(gone) = input.take() {
            // The program may have closed its end before.
            let _ = gone.shutdown(Shutdown::Write);
        }
    }

    /// Asks the program to end, kills it if it does not, and cuts the VM's power if that does not help: then what the
    /// guest had not written to its disk yet is lost.
    fn stop(&self, signal: u8, grace: Option<Duration>) -> Reply {
        let mut deadline = grace.map(|grace| Instant::now() + grace);
        let mut killed = false;
        let mut phase = self.phase();
        match &*phase {
            // What has not started has nothing to lose.
            Phase::Starting(Some(stopper)) => stopper.stop(),
            Phase::Starting(None) => {}
            Phase::Running(handle, stopper) => match handle.signal(signal) {
                Ok(()) => {}
                Err(_) => stopper.stop(),
            },
            Phase::Ended(_) => {}
        }
        loop {
            if let Phase::Ended(reply) = &*phase {
                return reply.clone();
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            phase = match left {
                None => self.changed.wait(phase).expect("no panic"),
                Some(Duration::ZERO) => {
                    match &*phase {
                        Phase::Running(handle, _) if !killed && handle.signal(SIGKILL).is_ok() => {
                            killed = true;
                            deadline = Some(Instant::now() + KILLING);
                        }
                        Phase::Running(_, stopper) | Phase::Starting(Some(stopper)) => stopper.stop(),
                        Phase::Starting(None) | Phase::Ended(_) => {}
                    }
                    self.changed.wait_timeout(phase, Duration::from_millis(100)).expect("no panic").0
                }
                Some(left) => self.changed.wait_timeout(phase, left).expect("no panic").0,
            };
        }
    }
}

/// Removes the volumes that were made for a container that is no more.
fn remove_anonymous(container: &Container) -> Result<(), Failure> {
    let containers = container.siblings()?;
    Volumes::beside(&containers)?.remove_anonymous(&container.config, &containers)
}

/// Each connection to a published port takes two descriptors: the usual soft limit is soon used up.
fn allow_connections() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// A container whose program runs. It ends before its network does.
struct Started {
    sandbox: Sandbox,
    process: Running,
    connected: Option<Attachment>,
    serving: Vec<Virtiofsd>,
}

pub(super) fn attach(config: &Config, network: &NetworkUse) -> Result<Attachment, Failure> {
    let namespace = config.isolation.is_container().then(NetworkNamespace::new).transpose()?;
    network::attach(&request(config, network, namespace))
}

fn request(config: &Config, network: &NetworkUse, namespace: Option<NetworkNamespace>) -> network::Request {
    let short = config.id.chars().take(12).collect();
    network::Request {
        network: network.name.clone(),
        container: config.id.clone(),
        names: std::iter::once(&config.name).chain(&network.aliases).cloned().chain([short]).collect(),
        address: network.address,
        mac: network.mac,
        ports: network.ports.clone(),
        namespace,
        spare: false,
    }
}

/// A directory for sockets: where a VM has waited, that of its own.
pub(super) fn make_socket_directory(container: &Container, spare: Option<&mut Spare>) -> Result<PathBuf, Failure> {
    let directory = container.socket_directory();
    let base = directory.parent().unwrap_or(&directory);
    if let Some(spare) = spare {
        return spare.move_to(&directory).map(|()| directory.clone()).map_err(|error| no_sockets(&directory, error));
    }
    // What a killed monitor left is nobody's: we hold the container's lock.
    remove_sockets(&directory);
    let mut all = sandbox::vsock(&directory);
    all.pop();
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&all);
    made.and_then(|()| check_owner(base)).map_err(|error| no_sockets(&directory, error))?;
    Ok(directory)
}

/// In a directory that anybody can write, somebody else may have been there first.
pub(super) fn check_owner(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(directory)?;
    match metadata.is_dir() && metadata.uid() == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to somebody else")),
    }
}

fn no_sockets(directory: &Path, error: io::Error) -> Failure {
    Failure::new(
        format!("cannot make sockets in {}", directory.display()),
        error,
        "set CORACLE_RUN to a directory with a short name that is yours",
    )
}
