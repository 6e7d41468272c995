// SPDX-License-Identifier: Apache-2.0
//! The processes of one namespace container: started by an OCI runtime, watched by us.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use coracle_agent::users::{self, Identity};
use coracle_protocol::{
    Container, Ended, EndedBy, ErrorCode, Process, Processes, Source, Start, Task, Upper, Usage, WindowSize,
};
use rustix::fs::OFlags;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};

use super::cgroup::{self, Cgroup};
use super::oci::{self, Place};
use super::orphans;
use super::rootfs::{self, Layers};
use super::runtime::{self, Runtime};
use super::streams::{Console, Moving, Sockets, pipes};
use super::tasks::{self, Files};
use super::{Ground, may_guard_devices};

/// Why something was not done: for programs, and for people.
pub type Refusal = (ErrorCode, String);

/// A container, whether its program runs yet or not.
#[derive(Debug)]
pub struct Host {
    ground: Ground,
    runtime: Runtime,
    cgroup: Cgroup,
    layers: Layers,
    bundle: PathBuf,
    /// What the container is given, once it is described.
    place: OnceLock<Place>,
    /// Its first process.
    first: Mutex<Option<Pid>>,
    /// Those that are waited for. Nothing else is started while this is held.
    followed: Mutex<HashSet<Pid>>,
    /// Numbers files of processes.
    count: AtomicU32,
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    process: OwnedFd,
    terminal: Option<OwnedFd>,
}

/// What is to be done until it has ended.
#[derive(Debug)]
pub struct Following {
    pid: Pid,
    process: OwnedFd,
    moving: Moving,
    is_first: bool,
}

fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Refusal {
    move |error| (ErrorCode::FAILED, format!("{what}: {error}"))
}

impl Host {
    /// Mounts the image. To be called in a mount namespace of the container's own.
    ///
    /// # Errors
    /// What the kernel, or `mount`, says.
    pub fn new(ground: Ground, cgroup: Cgroup) -> io::Result<Self> {
        let bundle = ground.directory.join("bundle");
        let at = |name: &str| bundle.join(name);
        for name in ["", "lower", "written", "rootfs", "files"] {
            fs::create_dir_all(at(name))?;
        }
        rootfs::mount_image(&ground.rootfs, &at("lower"))?;
        let runtime = Runtime {
            program: ground.runtime.clone(),
            state: ground.directory.join("runtime"),
            log: at("runtime.log"),
            id: ground.id.clone(),
        };
        let layers = Layers { lower: at("lower"), upper: at("written"), merged: at("rootfs") };
        let (place, first, count) = (OnceLock::new(), Mutex::new(None), AtomicU32::new(0));
        Ok(Self { ground, runtime, cgroup, layers, bundle, place, first, followed: Mutex::default(), count })
    }

    /// Its first process, as the host sees it; `None` before it runs.
    pub fn first(&self) -> Option<Pid> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts what is described, and gives it once it runs.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn start(&self, start: &Start) -> Result<(Running, Following), Refusal> {
        let sockets =
            Sockets::connect(&self.ground.vsock(), &start.streams).map_err(failed("cannot connect streams"))?;
        if let Some(container) = &start.container {
            self.prepare(container)?;
        }
        let place = self.place.get().ok_or_else(nobody)?;
        let who = self.identify(&start.process)?;
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let at = |name: &str| self.bundle.join(format!("{name}.{number}"));
        let process_file = at("process");
        let text = match &start.container {
            Some(container) if container.init => {
                let why = "--init is for containers in VMs: have an init in the image, such as tini";
                return Err((ErrorCode::FAILED, why.to_owned()));
            }
            Some(container) => oci::config(container, &start.process, &who, place),
            None => oci::process(&start.process, &who, place),
        };
        let (file, what) = match start.container {
            Some(_) => (self.bundle.join("config.json"), runtime::Start::Bundle(&self.bundle)),
            None => (process_file.clone(), runtime::Start::Process(&process_file)),
        };
        fs::write(&file, text.to_string()).map_err(failed("cannot describe the process"))?;
        let mut console = None;
        let (ours, its) = match start.process.terminal {
            None => {
                let (ours, its) = pipes(who.user).map_err(failed("cannot make pipes"))?;
                (Some(ours), its)
            }
            Some(_) => {
                console = Some(Console::bind(at("console")).map_err(failed("cannot make a socket"))?);
                (None, nothing().map_err(failed("cannot open /dev/null"))?)
            }
        };
        let console_path = console.as_ref().map(|console| console.path.clone());
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let started = self.runtime.start(&what, &at("pid"), console_path.as_deref(), its);
        followed.extend(&started);
        orphans::reap(&followed, &self.runtime.name());
        drop(followed);
        // It has been read, or will not be.
        let _ = fs::remove_file(&process_file);
        let pid = started?;
        let open = || pidfd_open(pid, PidfdFlags::empty());
        let (process, same) = open().and_then(|one| Ok((one, open()?))).map_err(failed("cannot find the process"))?;
        let terminal = console.map(|console| console.receive(start.process.terminal.unwrap_or_default()));
        let terminal = terminal.transpose().map_err(failed("there is no terminal"))?;
        let moving = match (&terminal, ours) {
            (Some(terminal), _) => Moving::terminal(terminal, sockets),
            (None, Some(ours)) => Moving::pipes(ours, sockets),
            (None, None) => Err(io::ErrorKind::InvalidInput.into()),
        };
        let moving = moving.map_err(failed("cannot connect the process"))?;
        let is_first = start.container.is_some();
        if is_first {
            *self.lock() = Some(pid);
        }
        Ok((Running { process, terminal }, Following { pid, process: same, moving, is_first }))
    }

    /// Waits for the end of a process.
    pub fn follow(&self, following: Following) -> Ended {
        let Following { pid, process, moving, is_first } = following;
        let by = loop {
            match waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED) {
                Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                    (Some(status), _) => break EndedBy::Exit(u8::try_from(status & 0xff).unwrap_or(u8::MAX)),
                    (None, Some(signal)) => break EndedBy::Signal(u8::try_from(signal).unwrap_or(9)),
                    (None, None) => {}
                },
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                // It is nobody's child: it ended before it could become ours.
                Err(_) => break EndedBy::Signal(9),
            }
        };
        self.followed.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
        if is_first {
            *self.lock() = None;
        }
        drop(moving);
        Ended { by, oom: self.cgroup.was_out_of_memory() }
    }

    /// Does a task in place of a program. To be called by a thread that does nothing else afterwards.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn prepare_task(&self, start: &Start) -> Result<(Task, Files, Sockets), Refusal> {
        let sockets =
            Sockets::connect(&self.ground.vsock(), &start.streams).map_err(failed("cannot connect streams"))?;
        let files = match (&start.container, self.first()) {
            (_, Some(pid)) => Files::Of(pidfd_open(pid, PidfdFlags::empty()).map_err(failed("cannot find it"))?),
            (Some(container), None) => {
                self.prepare(container)?;
                let share = |tag: &str| self.ground.shares.iter().find(|(name, _)| name == tag);
                let shared = container.mounts.iter().filter_map(|mount| match &mount.source {
                    Source::Shared(tag) | Source::SharedFile(tag, _) | Source::Filled(tag) => {
                        Some((mount.target.clone(), share(tag.as_str())?.1.clone()))
                    }
                    Source::Memory(_) => None,
                });
                Files::In(self.layers.merged.clone(), shared.collect())
            }
            (None, None) => return Err(nobody()),
        };
        Ok((start.task.clone(), files, sockets))
    }

    /// As [`tasks::run`].
    pub fn run_task((task, files, sockets): (Task, Files, Sockets)) -> Ended {
        tasks::run(&task, files, &sockets)
    }

    /// What the container uses.
    ///
    /// # Errors
    /// It does not run.
    pub fn usage(&self) -> Result<Usage, Refusal> {
        self.first().map(|_| self.cgroup.usage()).ok_or_else(nobody)
    }

    /// Its processes.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(&self) -> Result<Processes, Refusal> {
        self.first().ok_or_else(nobody)?;
        let passwd = rootfs::read_inside(&self.layers.merged, "etc/passwd");
        Ok(coracle_agent::statistics::processes(&self.cgroup.processes(), &passwd))
    }

    /// Stops all its processes where they are, or lets them go on.
    ///
    /// # Errors
    /// It does not run, or the kernel refuses.
    pub fn freeze(&self, still: bool) -> Result<(), Refusal> {
        self.first().ok_or_else(nobody)?;
        self.cgroup.freeze(still).map_err(failed("cannot stop or continue the container's processes"))
    }

    /// Sends a signal to all its processes.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal_all(&self, number: u8) -> Result<(), Refusal> {
        self.first().ok_or_else(nobody)?;
        self.cgroup.signal(signal(number)?);
        Ok(())
    }

    /// Ends all of it.
    pub fn kill(&self) {
        self.cgroup.kill();
    }

    /// Makes what the container needs before its first process starts.
    fn prepare(&self, container: &Container) -> Result<(), Refusal> {
        if self.place.get().is_some() {
            return Err((ErrorCode::FAILED, "there is a container already".to_owned()));
        }
        if container.pids_limit.is_some() && !Cgroup::offers("pids") {
            let why =
                "this host's control groups cannot limit processes: without --pids-limit, or with cgroup v2 alone";
            return Err((ErrorCode::FAILED, why.to_owned()));
        }
        let guards_devices = may_guard_devices();
        if !guards_devices {
            log::warn!("no filter for devices without CAP_SYS_RESOURCE: the container can make no device nodes");
        }
        let bytes = self.ground.memory_mib.saturating_mul(1 << 20);
        let written = match (&container.upper, &self.ground.written) {
            (Upper::Disk(_), Some(disk)) => rootfs::mount_written(disk, &self.layers.upper),
            // Half of the memory, as a kernel has it for its own.
            (_, _) => rootfs::mount_memory(&self.layers.upper, &format!("mode=755,size={}", bytes / 2)),
        };
        written.map_err(failed("cannot mount what holds the written layer"))?;
        self.layers.mount(guards_devices).map_err(failed("cannot put the written layer over the image"))?;
        self.fill(container)?;
        let mut files = Vec::new();
        for (number, file) in container.files.iter().enumerate() {
            let path = self.bundle.join("files").join(number.to_string());
            fs::write(&path, &file.content).map_err(failed("cannot write a file for the container"))?;
            files.push(path);
        }
        let controls = |name: &str| Cgroup::offers(name);
        let place = Place {
            shares: self.ground.shares.clone(),
            files,
            network: self.ground.network.clone(),
            cgroup: Some(Cgroup::oci_path(&self.ground.id)),
            show_cgroup: cgroup::is_in_place(),
            guards_devices,
            memory: controls("memory").then_some(bytes),
            cpus: controls("cpu").then_some(self.ground.cpus),
        };
        // Nobody else describes the container that is being started.
        let _ = self.place.set(place);
        Ok(())
    }

    /// Unmounts all, once nobody uses it any more.
    pub fn unmount(&self) {
        for place in [&self.layers.merged, &self.layers.upper, &self.layers.lower] {
            // What is not there, or is busy, goes with the namespace.
            let _ = unmount(place, UnmountFlags::empty());
        }
    }

    /// Gives new volumes what the image has in their place.
    fn fill(&self, container: &Container) -> Result<(), Refusal> {
        let filled = container.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Filled(tag) => {
                let (_, source) = self.ground.shares.iter().find(|(name, _)| name == tag.as_str())?;
                Some((String::from_utf8_lossy(&mount.target).into_owned(), source))
            }
            _ => None,
        });
        for (target, source) in filled {
            let Ok(from) = rootfs::open_inside(&self.layers.merged, &target, OFlags::RDONLY | OFlags::DIRECTORY) else {
                // The image has nothing there.
                continue;
            };
            let to = fs::File::open(source).map_err(failed("cannot open a volume"))?;
            coracle_agent::fill::fill(&from.into(), &to.into(), &mut || {}).map_err(failed("cannot fill a volume"))?;
        }
        Ok(())
    }

    fn identify(&self, process: &Process) -> Result<Identity, Refusal> {
        let file = |name: &str| rootfs::read_inside(&self.layers.merged, name);
        users::find(&process.user, &process.groups, &file("etc/passwd"), &file("etc/group"))
            .map_err(|unknown| (ErrorCode::FAILED, unknown.explain(&process.user)))
    }
}

impl Running {
    /// Sends it a signal. One to a process that has just ended is no error.
    ///
    /// # Errors
    /// There is no such signal.
    pub fn signal(&self, number: u8) -> Result<(), Refusal> {
        let signal = signal(number)?;
        let _ = pidfd_send_signal(&self.process, signal);
        Ok(())
    }

    /// Says how large its terminal is.
    ///
    /// # Errors
    /// It has none.
    pub fn resize(&self, size: WindowSize) -> Result<(), Refusal> {
        let terminal = self.terminal.as_ref().ok_or_else(|| (ErrorCode::FAILED, "it has no terminal".to_owned()))?;
        super::streams::resize(terminal, size).map_err(failed("cannot resize the terminal"))
    }
}

fn nobody() -> Refusal {
    (ErrorCode::NO_PROCESS, "no container runs".to_owned())
}

fn signal(number: u8) -> Result<Signal, Refusal> {
    match number {
        // SAFETY: the kernel's signals are these, and those that the C library keeps for itself are not used here, where
        // threads have no use for them.
        1..=64 => Ok(unsafe { Signal::from_raw_unchecked(number.into()) }),
        _ => Err((ErrorCode::FAILED, format!("there is no signal {number}"))),
    }
}

/// Three times nothing.
fn nothing() -> io::Result<runtime::Standard> {
    let open = || fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    Ok([open()?, open()?, open()?])
}
