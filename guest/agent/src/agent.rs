// SPDX-License-Identifier: Apache-2.0
//! The agent: one thread around one `poll(2)`.

use alloc::vec::Vec;

use coracle_protocol::{Shutdown, ShutdownMode};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Result;
use rustix::net::{SocketFlags, accept_with};
use rustix::process::Pid;

use crate::children::{Children, wait_until};
use crate::connection::{Connection, Outcome};
use crate::settings::{Console, Settings};
use crate::{console, mounts, sys};

/// Connections served at once.
const MAX_CONNECTIONS: usize = 8;
/// How long the host has to close its connection after the answer to `Shutdown`.
const FAREWELL_MS: u64 = 100;
/// How long processes have to end by themselves once the console's shell has ended.
const CONSOLE_GRACE_MS: u32 = 1000;

/// Everything the agent looks after.
#[derive(Debug)]
pub struct Agent {
    listener: Option<OwnedFd>,
    connections: Vec<Connection>,
    children: Option<Children>,
    shell: Option<Pid>,
}

/// What `poll(2)` found.
struct Ready {
    children: bool,
    listener: PollFlags,
    /// One for each connection, in order.
    connections: Vec<bool>,
}

impl Agent {
    /// An agent that serves connections to `listener`, which does not block.
    #[must_use]
    pub fn new(listener: Option<OwnedFd>) -> Self {
        Self { listener, connections: Vec::new(), children: None, shell: None }
    }

    /// Starts to reap, which is to be done before the first fork. Repeating it is free.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn watch_children(&mut self) -> Result<()> {
        if self.children.is_none() {
            self.children = Some(Children::watch()?);
        }
        Ok(())
    }

    /// Starts a shell on the console if there is to be one. If that fails the console says so; the host can still
    /// connect.
    pub(crate) fn start_console(&mut self, settings: Settings) {
        match settings.console {
            Console::IfPresent if !console::has_shell() => return,
            Console::None => return,
            Console::IfPresent | Console::Shell => {}
        }
        if mounts::prepare().is_err() {
            sys::say(b"coracle-agent: not every file system could be mounted: see `mount` and `dmesg`\n");
        }
        match self.watch_children().and_then(|()| console::start_shell()) {
            Ok(pid) => self.shell = Some(pid),
            Err(_) => {
                sys::say(b"coracle-agent: cannot start a shell: the kernel has no signalfd, or no memory is left\n")
            }
        }
    }

    /// Serves until the machine is to end.
    pub fn run(&mut self) -> Shutdown {
        loop {
            let Ok(ready) = self.wait() else { continue };
            if ready.children && self.reap() {
                return Shutdown { mode: ShutdownMode::PowerOff, grace_ms: CONSOLE_GRACE_MS };
            }
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
        let mut fds = Vec::with_capacity(2 + self.connections.len());
        fds.extend(self.children.iter().map(|children| PollFd::new(children.readiness(), PollFlags::IN)));
        fds.extend(self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN)));
        fds.extend(self.connections.iter().map(|one| PollFd::new(one.socket(), one.interest())));
        poll(&mut fds, None)?;
        let mut found = fds.iter().map(PollFd::revents);
        let mut next = |present: bool| present.then(|| found.next()).flatten().unwrap_or(PollFlags::empty());
        Ok(Ready {
            children: !next(self.children.is_some()).is_empty(),
            listener: next(self.listener.is_some()),
            connections: found.map(|flags| !flags.is_empty()).collect(),
        })
    }

    /// Reaps what has ended; true if the console's shell has.
    fn reap(&mut self) -> bool {
        let Some(children) = &self.children else {
            return false;
        };
        children.reap().iter().any(|&(pid, _)| Some(pid) == self.shell)
    }

    fn serve(&mut self, ready: &[bool]) -> Option<Shutdown> {
        let mut end = None;
        let mut ready = ready.iter();
        self.connections.retain_mut(|connection| {
            if end.is_some() || !ready.next().is_some_and(|&ready| ready) {
                return true;
            }
            match connection.advance() {
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
            let mut connection = Connection::new(socket);
            if connection.flush().is_ok() {
                self.connections.push(connection);
            }
        } else {
            Connection::refuse(socket);
        }
    }
}
