// SPDX-License-Identifier: Apache-2.0
//! Starting a process: its streams, its fork, and word of how that went.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use coracle_protocol::{Container, ErrorCode, Start, Streams};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::io::{Errno, Result, fcntl_dupfd_cloexec};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::cgroup::Cgroup;
use crate::child::{self, Its};
use crate::guest::Running;
use crate::news::{self, News};
use crate::streams::Stream;
use crate::sys::{self, Fork};
use crate::{mounts, network, rootfs, vsock};

/// Why a process was not started: for programs, and for people.
pub type Refusal = (ErrorCode, String);

/// A process that runs.
#[derive(Debug)]
pub struct Workload {
    /// Its id, as the agent sees it.
    pub pid: Pid,
    /// What is to be moved for it.
    pub streams: Vec<Stream>,
    /// The agent's end of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// Where a process is to run.
#[derive(Clone, Copy)]
pub enum Place<'a> {
    /// In a container that it makes and is the first process of, in this control group.
    New(Option<&'a Cgroup>),
    /// In the one that runs.
    Running(&'a Running),
}

/// Makes what a container needs before its first process starts.
///
/// # Errors
/// [`Refusal`].
pub fn prepare(container: &Container) -> core::result::Result<Option<Cgroup>, Refusal> {
    mounts::prepare().map_err(|error| failed("cannot mount what the agent needs")(error.error))?;
    rootfs::assemble(container)?;
    network::configure(&container.network).map_err(failed("cannot set up the network"))?;
    match Cgroup::make(container.pids_limit) {
        // Without groups there is nothing to limit with; who asks for no limit does not miss them.
        Err(Errno::NOENT | Errno::ROFS | Errno::PERM) if container.pids_limit.is_none() => Ok(None),
        other => other.map(Some).map_err(failed("cannot make the container's control group")),
    }
}

/// Starts what `start` describes, and waits until it runs.
///
/// # Errors
/// [`Refusal`].
pub fn start(start: &Start, place: Place<'_>) -> core::result::Result<Workload, Refusal> {
    let sockets = Sockets::connect(&start.streams)?;
    let (pipes, its_pipes) = match start.process.terminal {
        None => {
            let (ours, its) = pipes().map_err(failed("cannot make pipes"))?;
            (Some(ours), Some(its))
        }
        Some(_) => (None, None),
    };
    let (ours, its_news) = news::pair().map_err(failed("cannot make a pair of sockets"))?;
    let (running, cgroup) = match place {
        Place::New(cgroup) => (None, cgroup),
        Place::Running(container) => {
            let running =
                pidfd_open(container.pid, PidfdFlags::empty()).map_err(failed("cannot find the container"))?;
            (Some(running), container.cgroup.as_ref())
        }
    };
    let cgroup = cgroup.map(Cgroup::directory);
    let fork = match &running {
        // SAFETY: the agent has one thread, so that the child may allocate; it ends in `exec` or `exit`.
        None => unsafe { sys::fork_into_namespaces(cgroup) },
        // SAFETY: as above.
        Some(running) => unsafe { fork_into(running, cgroup) },
    };
    match fork.map_err(failed("cannot start a process"))? {
        Fork::Child => {
            let refusal = child::run(start, Its { running, pipes: its_pipes, news: &its_news });
            news::refuse(&its_news, refusal);
            sys::exit(127)
        }
        Fork::Parent(pid) => {
            drop((its_pipes, its_news));
            let terminal = match news::read(&ours) {
                News::Runs(terminal) => terminal,
                News::Refused(refusal) => return Err(refusal),
                News::Silence => {
                    sys::kill(pid, 9);
                    return Err((ErrorCode::FAILED, "the process does not come to its program".into()));
                }
            };
            let streams = sockets.join(pid, pipes, terminal.as_ref()).map_err(failed("cannot connect the terminal"));
            if streams.is_err() {
                sys::kill(pid, 9);
            }
            Ok(Workload { pid, streams: streams?, terminal })
        }
    }
}

/// A refusal that says what was refused and the kernel's reason.
pub fn failed(what: impl Display) -> impl Fn(Errno) -> Refusal {
    move |error| (ErrorCode::FAILED, format!("{what}: {error}"))
}

/// Forks into the PID namespace of another process, which children alone can be in.
///
/// # Safety
/// As for [`sys::fork`]; allocating is allowed too where this process has but one thread.
unsafe fn fork_into(process: &OwnedFd, cgroup: Option<BorrowedFd<'_>>) -> Result<Fork> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    // SAFETY: the promise is the caller's.
    let fork = unsafe { sys::fork_into_group(cgroup) };
    if !matches!(fork, Ok(Fork::Child)) {
        // What is forked later belongs here again.
        move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID)?;
    }
    fork
}

/// The agent's ends of a process's pipes.
struct Pipes {
    input: OwnedFd,
    output: OwnedFd,
    errors: OwnedFd,
}

/// Ours, which do not block, and the process's.
fn pipes() -> Result<(Pipes, [OwnedFd; 3])> {
    let (its_input, input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (output, its_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, its_errors) = pipe_with(PipeFlags::CLOEXEC)?;
    [&input, &output, &errors].into_iter().try_for_each(|pipe| fcntl_setfl(pipe, OFlags::NONBLOCK))?;
    Ok((Pipes { input, output, errors }, [its_input, its_output, its_errors]))
}

/// Connections to the host that do not block.
struct Sockets {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Sockets {
    fn connect(ports: &Streams) -> core::result::Result<Self, Refusal> {
        let connect = |port: u32, what: &'static str| {
            let socket = vsock::connect(port).map_err(failed(what))?;
            fcntl_setfl(&socket, OFlags::NONBLOCK).map_err(failed(what))?;
            Ok(socket)
        };
        Ok(Self {
            stdin: ports.stdin.map(|port| connect(port, "cannot connect stdin")).transpose()?,
            stdout: match ports.stdout {
                Some(port) => connect(port, "cannot connect stdout")?,
                None => open(c"/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(failed("cannot open /dev/null"))?,
            },
            stderr: ports.stderr.map(|port| connect(port, "cannot connect stderr")).transpose()?,
        })
    }

    /// What moves bytes between these and the process's pipes or terminal.
    fn join(self, pid: Pid, pipes: Option<Pipes>, terminal: Option<&OwnedFd>) -> Result<Vec<Stream>> {
        let mut streams = Vec::with_capacity(3);
        let copy = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, 3);
        match (pipes, terminal) {
            (Some(pipes), _) => {
                // Without a socket for it, errors go where the output goes.
                let stderr = self.stderr.map_or_else(|| copy(&self.stdout), Ok)?;
                streams.extend(self.stdin.map(|socket| Stream::input(pid, socket, pipes.input)));
                streams.push(Stream::output(pid, pipes.output, self.stdout));
                streams.push(Stream::errors(pid, pipes.errors, stderr));
            }
            (None, Some(terminal)) => {
                fcntl_setfl(terminal, OFlags::NONBLOCK)?;
                if let Some(socket) = self.stdin {
                    streams.push(Stream::input(pid, socket, copy(terminal)?));
                }
                streams.push(Stream::output(pid, copy(terminal)?, self.stdout));
            }
            (None, None) => {}
        }
        Ok(streams)
    }
}
