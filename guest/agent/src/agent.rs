// SPDX-License-Identifier: Apache-2.0
//! The agent: one thread around one `poll(2)`.

use alloc::vec::Vec;

use coracle_protocol::{Shutdown, ShutdownMode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Result;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Pid, Signal, kill_process};

use crate::connection::{Connection, Outcome};
use crate::guest::Guest;
use crate::settings::{Console, Settings};
use crate::signals::wait_until;
use crate::{console, mounts, signals, sys};

/// Connections served at once.
const MAX_CONNECTIONS: usize = 64;
/// How long the host has to close its connection after the answer to `Shutdown`.
const FAREWELL_MS: u64 = 100;
/// How long processes have to end by themselves once the console's shell has ended.
const CONSOLE_GRACE_MS: u32 = 1000;

/// Everything the agent looks after.
#[derive(Debug)]
pub struct Agent {
    listener: Option<OwnedFd>,
    connections: Vec<Connection>,
    shell: Option<Pid>,
    guest: Guest,
}

/// What `poll(2)` found.
struct Ready {
    signals: bool,
    listener: PollFlags,
    /// One for each connection, in order.
    connections: Vec<bool>,
    /// One for each stream, in order.
    streams: Vec<bool>,
}

impl Agent {
    /// An agent that serves connections to `listener`, which does not block.
    #[must_use]
    pub fn new(listener: Option<OwnedFd>) -> Self {
        Self { listener, connections: Vec::new(), shell: None, guest: Guest::default() }
    }

    /// Starts to reap and to obey signals, which is to be done before the first fork. Repeating it is free.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn watch_signals(&mut self) -> Result<()> {
        self.guest.watch_signals()
    }

    /// Starts a shell on the console if there is to be one. If that fails the console says so; the host can still
    /// connect.
    pub(crate) fn start_console(&mut self, settings: Settings) {
        match settings.console {
            Console::IfPresent if !console::has_shell() => return,
            Console::None => return,
            Console::IfPresent | Console::Shell => {}
        }
        if mounts::prepare_console().is_err() {
            sys::say(b"coracle-agent: not every file system could be mounted: see `mount` and `dmesg`\n");
        }
        match self.watch_signals().and_then(|()| console::start_shell()) {
            Ok(pid) => self.shell = Some(pid),
            Err(_) => {
                sys::say(b"coracle-agent: cannot start a shell: the kernel has no signalfd, or no memory is left\n")
            }
        }
    }

    /// Serves until the machine is to end.
    pub fn run(&mut self) -> Shutdown {
        let shutdown = self.serve_until_end();
        if let Some(shell) = self.shell {
            // An interactive shell ignores SIGTERM. It is no error that it has ended meanwhile.
            let _ = kill_process(shell, Signal::HUP);
        }
        shutdown
    }

    fn serve_until_end(&mut self) -> Shutdown {
        loop {
            let Ok(ready) = self.wait() else { continue };
            if ready.signals
                && let Some(mode) = self.obey_signals()
            {
                return Shutdown { mode, grace_ms: CONSOLE_GRACE_MS };
            }
            let mut moved = ready.streams.iter();
            self.guest.streams.retain_mut(|stream| !moved.next().is_some_and(|&ready| ready) || stream.advance());
            if let Some(shutdown) = self.serve(&ready.connections) {
                return shutdown;
            }
            if ready.listener.contains(PollFlags::IN) {
                self.accept();
            } else if !ready.listener.is_empty() {
                sys::say(b"coracle-agent: the vsock listener has failed: the host cannot connect any more\n");
                self.listener = None;
            }
        }
    }

    fn wait(&self) -> Result<Ready> {
        let mut fds = Vec::with_capacity(2 + self.connections.len() + self.guest.streams.len());
        fds.extend(self.guest.signals.iter().map(|signals| PollFd::new(signals.readiness(), PollFlags::IN)));
        fds.extend(self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        fds.extend(self.connections.iter().map(|one| PollFd::new(one.socket(), one.interest())));
        let interests = self.guest.streams.iter().map(|stream| stream.interest());
        fds.extend(interests.clone().flatten().map(|(fd, events)| PollFd::new(fd, events)));
        poll(&mut fds, None)?;
        let mut found = fds.iter().map(PollFd::revents);
        let mut next = |present: bool| present.then(|| found.next()).flatten().unwrap_or(PollFlags::empty());
        Ok(Ready {
            signals: !next(self.guest.signals.is_some()).is_empty(),
            listener: next(self.listener.is_some()),
            connections: found.by_ref().take(self.connections.len()).map(|flags| !flags.is_empty()).collect(),
            streams: interests
                .map(|interest| interest.and_then(|_| found.next()).is_some_and(|flags| !flags.is_empty()))
                .collect(),
        })
    }

    /// Reaps what has ended. The machine is to end if a signal says so, or if the console's shell is gone.
    fn obey_signals(&mut self) -> Option<ShutdownMode> {
        let signals = self.guest.signals.as_ref()?;
        let asked = signals.take();
        let ended = signals::reap();
        for &(pid, status) in &ended {
            let ended = self.guest.ended(pid, status);
            self.connections.iter_mut().for_each(|connection| connection.ended(pid, ended));
        }
        let shell_ended = self.shell.is_some_and(|shell| ended.iter().any(|&(pid, _)| pid == shell));
        if shell_ended {
            self.shell = None;
        }
        asked.or(shell_ended.then_some(ShutdownMode::PowerOff))
    }

    fn serve(&mut self, ready: &[bool]) -> Option<Shutdown> {
        let mut end = None;
        let mut ready = ready.iter();
        self.connections.retain_mut(|connection| {
            if end.is_some() || !ready.next().is_some_and(|&ready| ready) {
                return true;
            }
            match connection.advance(&mut self.guest) {
                Outcome::Continue => true,
                Outcome::Close => false,
                Outcome::End(shutdown) => {
                    end = Some(shutdown);
                    // The answer is on its way through a kernel that is about to stop. A host that has read it closes.
                    wait_until(connection.socket(), PollFlags::IN, FAREWELL_MS);
                    false
                }
            }
        });
        end
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let Ok(socket) = accept_with(listener.as_fd(), SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else {
            // The host is gone again.
            return;
        };
        if self.connections.len() < MAX_CONNECTIONS {
            self.connections.push(Connection::new(socket));
        } else {
            Connection::refuse(socket);
        }
    }
}
