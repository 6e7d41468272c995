// SPDX-License-Identifier: Apache-2.0
//! What runs in the guest for the host: the container, its processes, and their streams.

use alloc::vec::Vec;

use coracle_protocol::{Adopt, Assembly, Ended, EndedBy, ErrorCode, Frame, Message, Start, Sysctl, Upper};
use rustix::fd::OwnedFd;
use rustix::io::{Result, fcntl_dupfd_cloexec};
use rustix::process::{Pid, WaitStatus};

use crate::cgroup::Cgroup;
use crate::signals::Signals;
use crate::streams::Stream;
use crate::workload::{Ahead, Refusal, Workload, failed};
use crate::{adoption, masks, statistics, sys, workload};

/// What runs in the guest for the host.
#[derive(Debug, Default)]
pub struct Guest {
    /// Whatever has been forked is heard of here.
    pub signals: Option<Signals>,
    /// What is to be moved.
    pub streams: Vec<Stream>,
    container: Option<Running>,
    /// One that is made, and is nobody's yet.
    ahead: Option<Ahead>,
    /// The namespaces of one that was, which are left as they are.
    namespaces: Vec<OwnedFd>,
    /// How often memory had run out by the time the last container ended.
    ooms: u64,
}

/// A container that runs.
#[derive(Debug)]
pub struct Running {
    /// Its PID 1, as the agent sees it.
    pub pid: Pid,
    /// `None` on a kernel that has none.
    pub cgroup: Option<Cgroup>,
    paused: bool,
    /// The agent's end of its first process's terminal, for the next to adopt it.
    terminal: Option<OwnedFd>,
    /// Whether what it has written is to outlast the guest.
    lasting: bool,
}

impl Guest {
    /// Starts to reap and to obey signals, which is to be done before the first fork. Repeating it is free.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn watch_signals(&mut self) -> Result<()> {
        if self.signals.is_none() {
            self.signals = Some(Signals::watch()?);
        }
        Ok(())
    }

    /// Starts a process; `frame` is what asked for it, and `progress` is called now and then where that takes long.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn start(
        &mut self,
        start: &Start,
        frame: &Frame,
        progress: &mut dyn FnMut(),
    ) -> core::result::Result<Workload, Refusal> {
        // Without signals there would be nobody to tell of the end.
        self.watch_signals().map_err(failed("cannot watch processes"))?;
        let (mut workload, started) = match (&start.container, &self.container) {
            (Some(container), None) if self.ahead.is_some() => {
                let mut ahead = self.ahead.take().ok_or((ErrorCode::FAILED, "it has just ended".into()))?;
                let cgroup = ahead.cgroup.take();
                self.namespaces = core::mem::take(&mut ahead.namespaces);
                let workload = ahead.start(start, container, frame, progress)?;
                let terminal = copy(workload.terminal.as_ref());
                let running = Running { pid: workload.pid, cgroup, paused: false, terminal, lasting: false };
                (workload, Some(running))
            }
            (Some(container), None) => {
                // Those of the container before this one have done their time.
                self.namespaces.clear();
                let cgroup = workload::prepare(container)?;
                let workload = workload::start(start, workload::Place::New(cgroup.as_ref()), progress)?;
                let lasting = matches!(container.upper, Upper::Disk(_));
                let terminal = copy(workload.terminal.as_ref());
                let running = Running { pid: workload.pid, cgroup, paused: false, terminal, lasting };
                (workload, Some(running))
            }
            (None, Some(running)) if running.paused => {
                return Err((ErrorCode::FAILED, "the container is paused".into()));
            }
            (None, Some(running)) => (workload::start(start, workload::Place::Running(running), progress)?, None),
            (Some(_), Some(_)) => return Err((ErrorCode::FAILED, "this guest has its container already".into())),
            (None, None) => return Err((ErrorCode::NO_PROCESS, "no container runs".into())),
        };
        self.container = started.or(self.container.take());
        self.streams.append(&mut workload.streams);
        Ok(workload)
    }

    /// Makes a container ahead.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn assemble(&mut self, assembly: &Assembly) -> core::result::Result<(), Refusal> {
        self.watch_signals().map_err(failed("cannot watch processes"))?;
        if self.container.is_some() || self.ahead.is_some() {
            return Err((ErrorCode::FAILED, "this guest has its container already".into()));
        }
        self.ahead = Some(Ahead::new(assembly)?);
        Ok(())
    }

    /// Has the container that was in a snapshot go on as another: gives its first process, and its terminal.
    ///
    /// # Errors
    /// [`Refusal`]; its processes stand still then.
    pub fn adopt(&mut self, adopt: &Adopt) -> core::result::Result<(Pid, Option<OwnedFd>), Refusal> {
        let Some(container) = &mut self.container else {
            return Err((ErrorCode::NO_PROCESS, "no container was in the snapshot".into()));
        };
        let pid = container.pid;
        let streams = self.streams.iter_mut().filter(|stream| stream.is_of(pid));
        adoption::adopt(adopt, pid, streams)?;
        if let Some(cgroup) = &container.cgroup {
            cgroup.thaw().map_err(failed("cannot let the container's processes go on"))?;
        }
        container.paused = false;
        Ok((pid, copy(container.terminal.as_ref())))
    }

    /// After the end of a process: how the host is to hear of it.
    pub fn ended(&mut self, pid: Pid, status: WaitStatus) -> Ended {
        let number = |value: i32| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
        let by = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => EndedBy::Exit(number(code)),
            (None, signal) => EndedBy::Signal(number(signal.unwrap_or(9))),
        };
        self.streams.retain_mut(|stream| stream.outlives(pid));
        self.ahead.take_if(|ahead| ahead.pid() == pid);
        // Who has ended well has not wanted for memory, and is not kept waiting.
        let ooms = if by == EndedBy::Exit(0) { self.ooms } else { statistics::out_of_memory_kills() };
        let ended = Ended { by, oom: ooms > self.ooms };
        if self.container.as_ref().is_some_and(|container| container.pid == pid) {
            if self.container.take().is_some_and(|container| container.lasting) {
                rustix::fs::sync();
            }
            self.ooms = ooms;
        }
        ended
    }

    /// Does what a message asks of the container as a whole.
    ///
    /// # Errors
    /// [`Refusal`]
    pub fn answer(&mut self, question: Question) -> core::result::Result<Message, Refusal> {
        let Some(container) = &mut self.container else {
            return Err((ErrorCode::NO_PROCESS, "no container runs".into()));
        };
        if question == Question::Stats {
            return Ok(Message::Usage(statistics::usage(container.cgroup.as_ref())));
        }
        if question == Question::Reclaim {
            // What has been read of files, and names and inodes of those that nobody has open.
            let everything = Sysctl { name: b"vm.drop_caches".to_vec(), value: b"3".to_vec() };
            masks::set_parameter(&everything).map_err(failed("cannot give up what is cached"))?;
            return Ok(Message::Ack);
        }
        let none = || (ErrorCode::FAILED, "this kernel has no control groups".into());
        let cgroup = container.cgroup.as_ref().ok_or_else(none)?;
        match question {
            Question::Top => {
                return Ok(Message::Processes(statistics::processes(
                    &cgroup.processes(),
                    &statistics::users_of(container.pid),
                )));
            }
            Question::Freeze(frozen) => {
                let outcome = if frozen { cgroup.freeze() } else { cgroup.thaw() };
                outcome.map_err(failed("cannot stop or continue the container's processes"))?;
                container.paused = frozen;
            }
            Question::SignalAll(signal) => cgroup.processes().into_iter().for_each(|pid| sys::kill(pid, signal)),
            Question::Stats | Question::Reclaim => {}
        }
        Ok(Message::Ack)
    }
}

/// What a message asks of the container as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// To stop, or to go on.
    Freeze(bool),
    /// To give up what is only cached.
    Reclaim,
    /// What it uses.
    Stats,
    /// Who runs in it.
    Top,
    /// To pass this signal to all its processes.
    SignalAll(u8),
}

/// Another descriptor of a terminal; `None` where there is none, or no descriptor is left.
fn copy(terminal: Option<&OwnedFd>) -> Option<OwnedFd> {
    terminal.and_then(|fd| fcntl_dupfd_cloexec(fd, 3).ok())
}
