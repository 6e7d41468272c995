// SPDX-License-Identifier: Apache-2.0
//! A `coracle-vmm` process, as its owner sees it: started, listened to, and never left behind.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::clock::monotonic_ns;
use super::snapshot::Launch;
use crate::failure::Failure;

/// Name of the VMM's program; it lies beside ours unless `CORACLE_VMM` says otherwise.
const PROGRAM: &str = "coracle-vmm";
/// The control socket's descriptor in the VMM.
const CONTROL_FD: i32 = 3;

/// A running VMM.
pub struct Vmm {
    child: Child,
    /// Requests go here, events come from here.
    pub control: UnixStream,
    /// The guest's console, both ways.
    pub console: UnixStream,
    /// Sockets that the VMM makes. It cannot remove them once it is locked up.
    sockets: Vec<PathBuf>,
}

impl Vmm {
    /// Starts a VMM for a `MachineConfig` or a `RestoreConfig`; it stops when this is dropped.
    ///
    /// # Errors
    /// The program is missing or cannot be started.
    pub fn start(launch: impl Into<Launch>) -> Result<Self, Failure> {
        let mut launch = launch.into();
        let program = program();
        let what = || format!("cannot start {}", program.display());
        let failed =
            |error: io::Error| Failure::new(what(), error, "install coracle-vmm beside coracle, or set CORACLE_VMM");
        let (control, its_control) = UnixStream::pair().map_err(failed)?;
        let (console, its_console) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&program);
        command.arg("--control-fd").arg(CONTROL_FD.to_string());
        command.stdout(Stdio::from(OwnedFd::from(its_console.try_clone().map_err(failed)?)));
        command.stdin(Stdio::from(OwnedFd::from(its_console)));
        // A Ctrl-C on our terminal is ours to handle, not the VMM's.
        command.process_group(0);
        let its_fd = its_control.as_raw_fd();
        // SAFETY: between fork and exec only dup2 and fcntl are called, which are async-signal-safe; `its_control` is
        // open until after the spawn.
        unsafe {
            command.pre_exec(move || hand_over(its_fd));
        }
        *launch.launched_ns() = Some(monotonic_ns());
        let child = command.spawn().map_err(failed)?;
        drop(its_control);
        let sockets =
            launch.vsock().map(|vsock| vsock.path.clone()).into_iter().chain(launch.control().cloned()).collect();
        let mut vmm = Self { child, control, console, sockets };
        let line = launch.line().map_err(|error| failed(error.into()))?;
        // One that has died at once is told by its exit status, not by the broken pipe.
        let _ = vmm.control.write_all(&line);
        Ok(vmm)
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its sockets have been moved, with the directory that they are in.
    pub fn moved(&mut self, from: &Path, to: &Path) {
        for socket in &mut self.sockets {
            if let Ok(rest) = socket.strip_prefix(from) {
                *socket = to.join(rest);
            }
        }
    }

    /// Waits for its end; gives its exit status, 128 and the signal's number where it was killed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&mut self) -> io::Result<u8> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait()?;
        self.sockets.drain(..).for_each(|path| remove_stale(&path));
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(125);
        Ok(u8::try_from(code).unwrap_or(125))
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // Both fail only where it has ended already, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.wait();
    }
}

/// Removes a socket on which nobody listens; one that another VM has, for which this one could not be started, stays.
fn remove_stale(path: &Path) {
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        // It may have gone by now.
        let _ = std::fs::remove_file(path);
    }
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("CORACLE_VMM") {
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.join(PROGRAM)));
    beside.filter(|path| path.exists()).unwrap_or_else(|| PROGRAM.into())
}

fn hand_over(fd: i32) -> io::Result<()> {
    // dup2 onto itself would keep close-on-exec set.
    let done = if fd == CONTROL_FD {
        // SAFETY: F_SETFD takes an integer; `fd` is open.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }
    } else {
        // SAFETY: both are descriptor numbers of this process, which is about to exec.
        unsafe { libc::dup2(fd, CONTROL_FD) }
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
