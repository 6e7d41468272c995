// SPDX-License-Identifier: Apache-2.0
//! A container's process: its root, its streams, who it is, and what it runs.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::c_char;
use core::ptr::null;

use coracle_protocol::{ErrorCode, MAX_TEXT, Start};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::streams::Stream;
use crate::sys::{self, Fork};
use crate::users::{self, Unknown};
use crate::{mounts, rootfs, vsock};

/// What Docker leaves a container (moby `oci/caps/defaults.go`).
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Why a process was not started: for programs, and for people.
pub type Refusal = (ErrorCode, String);

/// A process that runs.
#[derive(Debug)]
pub struct Workload {
    /// PID 1 of the container, as the agent sees it.
    pub pid: Pid,
    /// What is to be moved for it.
    pub streams: Vec<Stream>,
}

/// Starts what `start` describes, and waits until it runs.
///
/// # Errors
/// [`Refusal`].
pub fn start(start: &Start) -> core::result::Result<Workload, Refusal> {
    let failed = |what: &str| {
        let what = String::from(what);
        move |error: Errno| (ErrorCode::FAILED, format!("{what}: {error}"))
    };
    mounts::prepare().map_err(|error| failed("mounting what the agent needs")(error.error))?;
    rootfs::assemble(start.root.as_str()).map_err(failed("mounting the image"))?;
    // A kernel without a network has no loopback either, and then nobody expects one.
    let _ = raise_loopback();
    let mut streams = Vec::with_capacity(3);
    let (input, its_input) =
        pipe_with(PipeFlags::CLOEXEC).map(|(read, write)| (write, read)).map_err(failed("pipe"))?;
    if let Some(port) = start.streams.stdin {
        streams.push(stream(port, input, true).map_err(failed("connecting stdin"))?);
    }
    let (output, its_output) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
    streams.push(stream(start.streams.stdout, output, false).map_err(failed("connecting stdout"))?);
    let (errors, its_errors) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
    streams.push(stream(start.streams.stderr, errors, false).map_err(failed("connecting stderr"))?);
    let (news, its_news) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;

    // SAFETY: the agent has one thread, so that the child may allocate; it ends in `exec` or `exit`.
    match unsafe { sys::fork_into_namespaces() }.map_err(failed("starting a process"))? {
        Fork::Child => {
            let (ErrorCode(code), text) = become_workload(start, [its_input, its_output, its_errors]);
            // Shorter than what a pipe takes in one piece. Without a reader nobody is left to hear it.
            let text = text.as_bytes().get(..MAX_TEXT).unwrap_or(text.as_bytes());
            let _ = rustix::io::write(&its_news, &[&code.to_le_bytes(), text].concat());
            sys::exit(127)
        }
        Fork::Parent(pid) => {
            drop((its_input, its_output, its_errors, its_news));
            match read_report(&news) {
                None => Ok(Workload { pid, streams }),
                Some(refusal) => Err(refusal),
            }
        }
    }
}

/// Programs reach their own servers at 127.0.0.1 and ::1.
fn raise_loopback() -> Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    sys::raise_interface(&socket, b"lo")
}

/// Between the pipe's end that stays here and a connection to the host; neither blocks.
fn stream(port: u32, pipe: OwnedFd, to_pipe: bool) -> Result<Stream> {
    let socket = vsock::connect(port)?;
    for fd in [&pipe, &socket] {
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    Ok(if to_pipe { Stream::new(socket, pipe) } else { Stream::new(pipe, socket) })
}

/// `None` once the program runs: its `exec` has closed the other end.
fn read_report(news: impl AsFd) -> Option<Refusal> {
    let mut report = [0; 2 + MAX_TEXT];
    loop {
        match rustix::io::read(&news, &mut report) {
            Err(Errno::INTR) => {}
            Ok(count @ 2..) => {
                let [low, high, ..] = report;
                let text = String::from_utf8_lossy(report.get(2..count)?).into_owned();
                return Some((ErrorCode(u16::from_le_bytes([low, high])), text));
            }
            _ => return None,
        }
    }
}

/// In the child: everything up to `exec`; returns only what went wrong.
fn become_workload(start: &Start, streams: [OwnedFd; 3]) -> Refusal {
    match prepare(start, &streams) {
        Ok(environment) => execute(&start.arguments, &environment),
        Err(refusal) => refusal,
    }
}

fn prepare(start: &Start, [input, output, errors]: &[OwnedFd; 3]) -> core::result::Result<Vec<Vec<u8>>, Refusal> {
    let failed = |what: &'static str| move |error: Errno| (ErrorCode::FAILED, format!("cannot {what}: {error}"));
    let user = || String::from_utf8_lossy(&start.user);
    dup2_stdin(input).and_then(|()| dup2_stdout(output)).and_then(|()| dup2_stderr(errors)).map_err(failed("dup2"))?;
    sys::block_signals(0);
    rustix::process::setsid().map_err(failed("start a session"))?;
    rootfs::enter().map_err(|(what, error)| {
        (ErrorCode::FAILED, format!("cannot set up the root at {}: {error}", what.to_string_lossy()))
    })?;
    rustix::system::sethostname(start.hostname.as_str().as_bytes()).map_err(failed("set the host name"))?;
    let who = users::find(&start.user, &rootfs::read(c"/etc/passwd"), &rootfs::read(c"/etc/group"));
    let who = who.map_err(|unknown| match unknown {
        Unknown::User => (ErrorCode::FAILED, format!("user `{}` is not in the image's /etc/passwd", user())),
        Unknown::Group => (ErrorCode::FAILED, format!("the group of `{}` is not in the image's /etc/group", user())),
    })?;
    rootfs::change_directory(&start.directory).map_err(|error| {
        let directory = String::from_utf8_lossy(&start.directory);
        (ErrorCode::FAILED, format!("cannot enter directory `{directory}`: {error}"))
    })?;
    take_identity(&who).map_err(failed("take on the user's credentials"))?;
    let mut environment = start.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with(b"HOME=")) {
        environment.push([b"HOME=", who.home.as_slice()].concat());
    }
    Ok(environment)
}

fn take_identity(who: &users::Identity) -> Result<()> {
    for capability in CapabilitySet::all().iter().filter(|one| !CAPABILITIES.contains(*one)) {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not have.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    let groups: Vec<Gid> = who.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_gid(Gid::from_raw(who.group))?;
    // From root to another user the kernel clears the permitted and effective sets by itself.
    rustix::thread::set_thread_uid(Uid::from_raw(who.user))?;
    if who.user == 0 {
        let sets =
            CapabilitySets { effective: CAPABILITIES, permitted: CAPABILITIES, inheritable: CapabilitySet::empty() };
        rustix::thread::set_capabilities(None, sets)?;
    }
    Ok(())
}

/// Looks the program up in `PATH` as `execvp(3)` does; returns why there is none.
fn execute(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Refusal {
    let program = String::from_utf8_lossy(arguments.first().map(Vec::as_slice).unwrap_or_default());
    match try_execute(arguments, environment) {
        Errno::NOENT => (ErrorCode::NOT_FOUND, format!("`{program}` is not in the image, or not in its PATH")),
        error => {
            let why = match error {
                Errno::ACCESS => "permission denied: it is no file, or has no execute bit",
                Errno::NOEXEC => "it is neither a script with `#!` nor a program for this machine",
                Errno::TOOBIG => "its arguments and environment are too long",
                _ => "",
            };
            (ErrorCode::NOT_EXECUTABLE, format!("`{program}` cannot be executed: {why} ({error})"))
        }
    }
}

fn try_execute(arguments: &[Vec<u8>], environment: &[Vec<u8>]) -> Errno {
    let terminated = |words: &[Vec<u8>]| words.iter().map(|word| CString::new(word.as_slice()).ok()).collect();
    let (Some(words), Some(variables)): (Option<Vec<CString>>, Option<Vec<CString>>) =
        (terminated(arguments), terminated(environment))
    else {
        return Errno::INVAL;
    };
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([null()]).collect()
    };
    let Some(program) = arguments.first() else { return Errno::NOENT };
    let path = environment.iter().find_map(|entry| entry.strip_prefix(b"PATH=")).unwrap_or(b"/usr/bin:/bin");
    let directories: Vec<&[u8]> =
        if program.contains(&b'/') { [&b""[..]].into() } else { path.split(|byte| *byte == b':').collect() };
    let mut outcome = Errno::NOENT;
    for directory in directories {
        let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        let Ok(file) = CString::new([directory, separator, program.as_slice()].concat()) else { continue };
        match sys::exec(&file, &pointers(&words), &pointers(&variables)) {
            Errno::NOENT | Errno::NOTDIR => {}
            error => outcome = error,
        }
    }
    outcome
}
