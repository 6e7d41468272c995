// SPDX-License-Identifier: Apache-2.0
//! A container without a VM: the same image and the same description of it, in namespaces and a control group of the
//! host's kernel, made by an OCI runtime.
//!
//! Who looks after a container speaks to it as to one in a microVM: [`server`] answers in the agent's place, within the
//! monitor's own process, in a thread with a mount namespace of its own. What it has made on the host goes with that
//! namespace, with the network namespace, and with the directory of sockets, in which the runtime keeps its state; only
//! the control group has to be removed. A monitor that is killed leaves a child behind for a moment, which ends the
//! container's processes.

pub mod cgroup;
mod host;
pub mod oci;
mod orphans;
pub mod rootfs;
pub mod runtime;
mod server;
mod streams;
mod tasks;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};

use rustix::thread::{CapabilitySet, capabilities};

use self::cgroup::Cgroup;
use self::host::Host;
use super::agent::Agent;
use crate::failure::Failure;

const WHAT: &str = "cannot start a container without a VM";
const LOOK: &str = "monitor.log beside the container; the same without --isolation container, in a VM";

/// What a container is made from, on this host.
#[derive(Clone, Debug)]
pub struct Ground {
    /// Its id, by which its control group is named.
    pub id: String,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// The image's EROFS disk.
    pub rootfs: PathBuf,
    /// An ext4 disk for what is written, if it is to be kept.
    pub written: Option<PathBuf>,
    /// Directories and files of the host's, by their tags.
    pub shares: Vec<(String, PathBuf)>,
    /// The network namespace to be in; `None` for one with nothing but a loopback.
    pub network: Option<PathBuf>,
    /// The directory of its sockets, in which all else is kept too while it runs.
    pub directory: PathBuf,
    /// CPUs that it may use up.
    pub cpus: u32,
    /// Most memory, in MiB.
    pub memory_mib: u64,
}

impl Ground {
    /// Where its agent is reached.
    pub fn vsock(&self) -> PathBuf {
        super::vsock(&self.directory)
    }
}

/// A namespace container that runs, or is about to.
#[derive(Debug)]
pub struct NamespaceContainer {
    host: Arc<Host>,
    vsock: PathBuf,
    listener: OwnedFd,
    /// Who answers, and unmounts at the end.
    thread: Option<JoinHandle<()>>,
    cgroup: Cgroup,
    watcher: Child,
    /// Its end is what the watcher waits for.
    _alive: UnixStream,
}

impl NamespaceContainer {
    /// Mounts the image, and has somebody answer for the container. Its processes become children of this process.
    ///
    /// # Errors
    /// No rights, no control groups, or the image cannot be mounted.
    pub fn start(ground: Ground) -> Result<Self, Failure> {
        may_run(WHAT)?;
        let failed = |error: io::Error| Failure::new(WHAT, error, LOOK);
        let none = || Failure::new(WHAT, "this host has no control groups of version 2", "a kernel with cgroup v2");
        let cgroup = Cgroup::of(&ground.id).ok_or_else(none)?;
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| failed(error.into()))?;
        let (watcher, alive) = watch(&cgroup).map_err(failed)?;
        let (sender, receiver) = channel();
        let vsock = ground.vsock();
        // Its own mount namespace is this thread's, and that of all threads that it starts.
        let thread = thread::spawn(move || {
            let made = rootfs::enter_mount_namespace().and_then(|()| {
                let inside = Cgroup::of(&ground.id).ok_or(io::ErrorKind::NotFound)?;
                let listener = UnixListener::bind(ground.vsock())?;
                let host = Arc::new(Host::new(ground, inside)?);
                Ok((host, listener.try_clone()?, listener))
            });
            match made {
                Ok((host, copy, listener)) => {
                    if sender.send(Ok((Arc::clone(&host), OwnedFd::from(copy)))).is_ok() {
                        server::accept(&host, &listener);
                        host.unmount();
                    }
                }
                Err(error) => _ = sender.send(Err(error)),
            }
        });
        let made = receiver.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has ended")));
        let (host, listener) = made.map_err(|error| {
            let next = "`modprobe -a loop erofs overlay`, or the same without --isolation container, in a VM";
            Failure::new(WHAT, format!("cannot mount the image: {error}"), next)
        })?;
        Ok(Self { host, vsock, listener, thread: Some(thread), cgroup, watcher, _alive: alive })
    }

    /// Connects to who answers for it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn agent(&self) -> Result<Agent, Failure> {
        Agent::connect(&self.vsock)
    }

    /// Its control group, by which it can be ended at once.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its first process, as the host sees it; 0 where none runs.
    pub fn pid(&self) -> u32 {
        self.host.first().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Ends it, and waits for that.
    pub fn stop(self) {
        if let Err(error) = self.cgroup.remove() {
            log::warn!("cannot remove {}: {error}", self.cgroup.path().display());
        }
    }
}

impl Drop for NamespaceContainer {
    fn drop(&mut self) {
        // All fail only where there is nothing left to do.
        self.cgroup.kill();
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

/// Whether this process may run containers without VMs.
///
/// # Errors
/// It may not; `what` is what cannot be done then.
pub fn may_run(what: &str) -> Result<(), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let why = "containers without VMs mount file systems and make control groups, for which one has to be root";
    Err(Failure::new(what, why, "as root; or without --isolation container: microVMs need no root"))
}

/// Whether a runtime may load the program that decides on devices: some raise the limit of locked memory for it.
pub fn may_guard_devices() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// Ends what a killed monitor has left running of the container with this id.
///
/// # Errors
/// It does not end.
pub fn reap(id: &str) -> io::Result<()> {
    Cgroup::of(id).map_or(Ok(()), |cgroup| cgroup.remove())
}

/// Starts a child that kills all in the group when this process has gone, which the other end of its socket tells it.
fn watch(cgroup: &Cgroup) -> io::Result<(Child, UnixStream)> {
    let (ours, its) = UnixStream::pair()?;
    let path = CString::new(cgroup.path().join("cgroup.kill").as_os_str().as_bytes())?;
    // Nothing is executed: the child is done before that, and then has nothing more to do.
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let fd = its.as_raw_fd();
    // SAFETY: between fork and the child's end only system calls are made, which are async-signal-safe, on a string that is
    // there already; descriptors are closed in the child alone, and `its` is open until after the spawn.
    unsafe {
        command.pre_exec(move || {
            libc::dup2(fd, 3);
            // The one by which `spawn` would hear of an `exec` too: it takes its end for success.
            if libc::syscall(libc::SYS_close_range, 4, libc::c_uint::MAX, 0) != 0 {
                // Before Linux 5.9: the next command has to do it.
                libc::_exit(1);
            }
            let mut byte = [0u8];
            while libc::read(3, byte.as_mut_ptr().cast(), 1) < 0 && *libc::__errno_location() == libc::EINTR {}
            let kill = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            libc::write(kill, c"1".as_ptr().cast(), 1);
            libc::_exit(0)
        });
    }
    let child = command.spawn()?;
    drop(its);
    Ok((child, ours))
}
