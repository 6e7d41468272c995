// SPDX-License-Identifier: Apache-2.0
//! What a child of the agent does on its way to its program.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use coracle_protocol::{Assembly, Container, ErrorCode, Process, Start, Task};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::fchown;
use rustix::io::Errno;
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{ThreadNameSpaceType, Uid, move_into_thread_name_spaces};

use crate::users::{self, Identity};
use crate::workload::{Refusal, failed};
use crate::{archive, credentials, init, news, orders, program, rootfs, sys, terminal, warm};

const NO_CREDENTIALS: &str = "cannot take on the user's credentials";
const NO_ORDERS: &str = "cannot wait for what to run";
const NO_SESSION: &str = "cannot start a session";

/// What the agent has made for its child.
pub struct Its<'a> {
    /// PID 1 of the container to enter; `None` for one that this child is to make.
    pub running: Option<OwnedFd>,
    /// Its standard streams; `None` for a terminal.
    pub ends: Option<[OwnedFd; 3]>,
    /// Where to say what becomes of it.
    pub news: &'a OwnedFd,
}

/// Everything up to `exec`; returns only what went wrong.
pub fn run(start: &Start, its: Its<'_>) -> Refusal {
    let come = come(start, its.running.as_ref(), its.news).and_then(|()| {
        credentials::bound(start.process.capabilities).map_err(failed(NO_CREDENTIALS))?;
        Ok(Users::read())
    });
    match come {
        Ok(users) => become_it(start, its, &users),
        Err(refusal) => refusal,
    }
}

/// The same for a container that is made ahead: what to run comes through `orders`. A child that is never told ends.
pub fn run_ahead(assembly: &Assembly, its: Its<'_>, orders: &OwnedFd) -> Refusal {
    let come = make_ahead(assembly, its.news).and_then(|users| {
        news::wait_for_orders(its.news).map_err(failed(NO_ORDERS))?;
        orders::take(orders).map(|start| (start, users))
    });
    match come {
        Ok((start, users)) => match start.container.as_ref().map_or(Ok(()), finish) {
            Ok(()) => {
                // Who has a terminal has no use for pipes.
                let ends = its.ends.filter(|_| start.process.terminal.is_none());
                become_it(&start, Its { ends, ..its }, &users)
            }
            Err(refusal) => refusal,
        },
        Err(refusal) => refusal,
    }
}

/// All of a container that does not depend on whose it is.
fn make_ahead(assembly: &Assembly, news: &OwnedFd) -> Result<Users, Refusal> {
    sys::block_signals(0);
    make(&assembly.container, news)?;
    rustix::process::setsid().map_err(failed(NO_SESSION))?;
    credentials::bound(assembly.capabilities).map_err(failed(NO_CREDENTIALS))?;
    warm::up(&assembly.program, &assembly.path);
    Ok(Users::read())
}

/// What a container that was made ahead does not have yet.
fn finish(container: &Container) -> Result<(), Refusal> {
    name(container)?;
    if container.read_only { rootfs::protect() } else { Ok(()) }
}

/// Into the container, which is made where it is this process's own.
fn come(start: &Start, running: Option<&OwnedFd>, news: &OwnedFd) -> Result<(), Refusal> {
    sys::block_signals(0);
    match (&start.container, running) {
        (Some(container), _) => make(container, news)?,
        (None, Some(running)) => enter(running).map_err(failed("cannot enter the container"))?,
        (None, None) => {}
    }
    rustix::process::setsid().map_err(failed(NO_SESSION)).map(drop)
}

fn become_it(start: &Start, its: Its<'_>, users: &Users) -> Refusal {
    match prepare(start, its, users) {
        Ok(environment) if start.task == Task::Program => program::execute(&start.process, &environment),
        Ok(_) => archive::run(&start.task),
        Err(refusal) => refusal,
    }
}

fn prepare(start: &Start, its: Its<'_>, users: &Users) -> Result<Vec<Vec<u8>>, Refusal> {
    let process = &start.process;
    let ends = match its.ends {
        Some(ends) => Vec::from(ends),
        None => Vec::from([open_terminal(start, its.news).map_err(failed("cannot open a terminal"))?]),
    };
    take_streams(&ends).map_err(failed("cannot set up its streams"))?;
    let who = users.identify(process)?;
    if who.user != 0 {
        // Its owner may open /dev/stdout. A stream that cannot be given away stays root's.
        let _ = ends.iter().try_for_each(|end| fchown(end, Some(Uid::from_raw(who.user)), None));
    }
    credentials::limit(&process.limits).map_err(failed("cannot set resource limits"))?;
    // As with Docker, a missing one is made with the container, and not for who comes later.
    let entered = match start.container {
        Some(_) => rootfs::change_directory(&process.directory),
        None => rustix::process::chdir(process.directory.as_slice()),
    };
    entered.map_err(|error| {
        let directory = String::from_utf8_lossy(&process.directory);
        let code = if error == Errno::NOENT { ErrorCode::NOT_FOUND } else { ErrorCode::FAILED };
        (code, format!("cannot enter directory `{directory}`: {error}"))
    })?;
    credentials::take(&who, process.capabilities, process.no_new_privileges).map_err(failed(NO_CREDENTIALS))?;
    let mut environment = process.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with(b"HOME=")) {
        environment.push([b"HOME=", who.home.as_slice()].concat());
    }
    Ok(environment)
}

/// Makes the container that this process is the first of.
fn make(container: &Container, news: &OwnedFd) -> Result<(), Refusal> {
    // Not when the process was forked: the group that is its own was then still that of the agent.
    sys::unshare_cgroup().map_err(failed("cannot make a namespace of control groups"))?;
    rootfs::enter(container, &mut || news::progress(news))?;
    name(container)?;
    if container.init {
        // SAFETY: this is the only thread of a process that was forked from one with a single thread.
        unsafe { init::fork() }.map_err(failed("cannot start the program beside init"))?;
    }
    Ok(())
}

fn name(container: &Container) -> Result<(), Refusal> {
    rustix::system::sethostname(container.hostname.as_str().as_bytes()).map_err(failed("cannot set the host name"))
}

/// Into the root and the namespaces that `running` lives in. This process was forked into its PID namespace.
fn enter(running: &OwnedFd) -> Result<(), Errno> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::CONTROL_GROUP;
    move_into_thread_name_spaces(running.as_fd(), all)
}

fn open_terminal(start: &Start, news: &OwnedFd) -> Result<OwnedFd, Errno> {
    let (ours, its) = terminal::open(start.process.terminal.unwrap_or_default())?;
    if start.container.is_some() {
        terminal::make_console(&its)?;
    }
    news::hand_over(news, &ours)?;
    Ok(its)
}

/// Standard input, output and errors, or one for all.
fn take_streams(ends: &[OwnedFd]) -> Result<(), Errno> {
    let (Some(first), Some(last)) = (ends.first(), ends.last()) else { return Err(Errno::BADF) };
    dup2_stdin(first).and_then(|()| dup2_stdout(ends.get(1).unwrap_or(first))).and_then(|()| dup2_stderr(last))
}

/// Who there is, as the image says.
struct Users {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

impl Users {
    fn read() -> Self {
        Self { passwd: rootfs::read(c"/etc/passwd"), group: rootfs::read(c"/etc/group") }
    }

    fn identify(&self, process: &Process) -> Result<Identity, Refusal> {
        users::find(&process.user, &process.groups, &self.passwd, &self.group)
            .map_err(|unknown| (ErrorCode::FAILED, unknown.explain(&process.user)))
    }
}
