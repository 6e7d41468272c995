// SPDX-License-Identifier: Apache-2.0
//! Starting a process: its streams, its fork, and word of how that went.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Display;

use coracle_protocol::{Assembly, Container, ErrorCode, Frame, Start, Streams, Task};
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
use crate::streams::{Stream, To};
use crate::sys::{self, Fork};
use crate::{inserts, mounts, network, orders, rootfs, vsock};

const NO_PIPES: &str = "cannot make pipes";
const NO_NEWS: &str = "cannot make a pair of sockets";
const NO_PROCESS: &str = "cannot start a process";
const NO_FILES: &str = "cannot find the container's files again";
const NO_NETWORK: &str = "cannot set up the network";

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

/// A container that is made, and whose first process waits to be told what to run.
#[derive(Debug)]
pub struct Ahead {
    assembly: Assembly,
    child: Child,
    orders: OwnedFd,
    /// Those of the host's, empty.
    files: Vec<OwnedFd>,
    /// The container's.
    pub cgroup: Option<Cgroup>,
    /// Its namespaces of mounts and of IPC, which are there as long as this is. Else the kernel takes them down while it
    /// tells of the end of the last process in them, which is work for nothing in a guest that ends with it.
    pub namespaces: Vec<OwnedFd>,
}

impl Ahead {
    /// Makes it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn new(assembly: &Assembly) -> core::result::Result<Self, Refusal> {
        let cgroup = prepare(&assembly.container)?;
        network::make_ready().map_err(failed(NO_NETWORK))?;
        let (ours, its_pipes) = pipes().map_err(failed(NO_PIPES))?;
        let (news, its_news) = news::pair().map_err(failed(NO_NEWS))?;
        let (its_orders, orders) = pipe_with(PipeFlags::CLOEXEC).map_err(failed(NO_PIPES))?;
        // SAFETY: the agent has one thread, so that the child may allocate; it ends in `exec` or `exit`.
        match unsafe { sys::fork_into_namespaces(cgroup.as_ref().map(Cgroup::directory)) }
            .map_err(failed(NO_PROCESS))?
        {
            Fork::Child => {
                // An agent that is gone is to be seen.
                drop((orders, ours));
                let its = Its { running: None, ends: Some(its_pipes), news: &its_news };
                news::refuse(&its_news, child::run_ahead(assembly, its, &its_orders));
                sys::exit(127)
            }
            Fork::Parent(pid) => {
                drop((its_pipes, its_news, its_orders));
                let child = Child { pid, pipes: Some(ours), news };
                match news::read(&child.news, || {}) {
                    News::Waits => {
                        let namespace = |kind| {
                            let path = format!("/proc/{}/ns/{kind}", pid.as_raw_nonzero());
                            open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
                        };
                        let namespaces = ["mnt", "ipc"].into_iter().filter_map(namespace).collect();
                        let files = inserts::empty_files(&assembly.container).map_err(failed(NO_FILES))?;
                        Ok(Self { assembly: assembly.clone(), child, orders, files, cgroup, namespaces })
                    }
                    News::Refused(refusal) => Err(refusal),
                    News::Runs(_) | News::Silence => Err(child.given_up()),
                }
            }
        }
    }

    /// Its first process.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Has it become this one; `frame` is the start as it came.
    ///
    /// # Errors
    /// [`Refusal`]; the container has ended then.
    pub fn start(
        self,
        start: &Start,
        container: &Container,
        frame: &Frame,
        progress: &mut dyn FnMut(),
    ) -> core::result::Result<Workload, Refusal> {
        let given = match self.assembly.fits(container, &start.process) {
            true => inserts::fill_files(&self.files, container).and_then(|()| {
                if !container.network.is_empty() {
                    network::configure(&container.network, true).map_err(failed(NO_NETWORK))?;
                }
                orders::give(&self.orders, frame).map_err(failed("cannot tell the container what to run"))
            }),
            false => Err((ErrorCode::FAILED, "the container that was made ahead is another one".into())),
        };
        // It comes to its program while the host answers.
        match given.and_then(|()| Sockets::connect(&start.streams)) {
            Ok(sockets) => self.child.join(Some(sockets), progress),
            Err(refusal) => {
                sys::kill(self.child.pid, 9);
                Err(refusal)
            }
        }
    }
}

/// A process of the agent's on its way to its program.
#[derive(Debug)]
struct Child {
    pid: Pid,
    /// `None` where it gets a terminal.
    pipes: Option<Pipes>,
    news: OwnedFd,
}

impl Child {
    /// Waits until its program runs, and connects it, where that has not been done.
    fn join(self, sockets: Option<Sockets>, progress: &mut dyn FnMut()) -> core::result::Result<Workload, Refusal> {
        let terminal = match news::read(&self.news, progress) {
            News::Runs(terminal) => terminal,
            News::Refused(refusal) => return Err(refusal),
            News::Waits | News::Silence => return Err(self.given_up()),
        };
        let pipes = self.pipes.filter(|_| terminal.is_none());
        let join = |sockets: Sockets| sockets.join(self.pid, pipes, terminal.as_ref());
        let streams = sockets.map_or(Ok(Vec::new()), join).map_err(failed("cannot connect the terminal"));
        if streams.is_err() {
            sys::kill(self.pid, 9);
        }
        Ok(Workload { pid: self.pid, streams: streams?, terminal })
    }

    fn given_up(&self) -> Refusal {
        sys::kill(self.pid, 9);
        (ErrorCode::FAILED, "the process does not come to its program".into())
    }
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
    network::configure(&container.network, false).map_err(failed(NO_NETWORK))?;
    match Cgroup::make(container.pids_limit) {
        // Without groups there is nothing to limit with; who asks for no limit does not miss them.
        Err(Errno::NOENT | Errno::ROFS | Errno::PERM) if container.pids_limit.is_none() => Ok(None),
        other => other.map(Some).map_err(failed("cannot make the container's control group")),
    }
}

/// Starts what `start` describes, and waits until it runs; `progress` is called now and then where that takes long.
///
/// # Errors
/// [`Refusal`].
pub fn start(start: &Start, place: Place<'_>, progress: &mut dyn FnMut()) -> core::result::Result<Workload, Refusal> {
    let sockets = Sockets::connect(&start.streams)?;
    let (sockets, pipes, its_ends) = match (&start.task, start.process.terminal) {
        (Task::Program, Some(_)) => (Some(sockets), None, None),
        (Task::Program, None) => {
            let (ours, its) = pipes().map_err(failed(NO_PIPES))?;
            (Some(sockets), Some(ours), Some(its))
        }
        // A task of ours opens no /dev/stdout: without pipes each byte is copied half as often.
        (Task::Pack(_) | Task::Unpack(_), _) => {
            (None, None, Some(sockets.hand_over().map_err(failed("cannot hand over streams"))?))
        }
    };
    let (news, its_news) = news::pair().map_err(failed(NO_NEWS))?;
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
    match fork.map_err(failed(NO_PROCESS))? {
        Fork::Child => {
            let refusal = child::run(start, Its { running, ends: its_ends, news: &its_news });
            news::refuse(&its_news, refusal);
            sys::exit(127)
        }
        Fork::Parent(pid) => {
            drop((its_ends, its_news));
            Child { pid, pipes, news }.join(sockets, progress)
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
#[derive(Debug)]
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

/// Connections to the host that do not block, and the port for that of errors, which is made when there are any.
struct Sockets {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<u32>,
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
            stderr: ports.stderr,
        })
    }

    /// The sockets themselves as a process's streams.
    fn hand_over(self) -> Result<[OwnedFd; 3]> {
        let stdin =
            self.stdin.map_or_else(|| open(c"/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()), Ok)?;
        let stderr = self.stderr.map_or_else(|| fcntl_dupfd_cloexec(&self.stdout, 3), vsock::connect)?;
        let ends = [stdin, self.stdout, stderr];
        ends.iter().try_for_each(|end| fcntl_setfl(end, OFlags::empty()))?;
        Ok(ends)
    }

    /// What moves bytes between these and the process's pipes or terminal.
    fn join(self, pid: Pid, pipes: Option<Pipes>, terminal: Option<&OwnedFd>) -> Result<Vec<Stream>> {
        let mut streams = Vec::with_capacity(3);
        let copy = |fd: &OwnedFd| fcntl_dupfd_cloexec(fd, 3);
        match (pipes, terminal) {
            (Some(pipes), _) => {
                // Without a socket for it, errors go where the output goes.
                let stderr = self.stderr.map_or_else(|| copy(&self.stdout).map(To::Open), |port| Ok(To::Port(port)))?;
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
