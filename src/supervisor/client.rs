// SPDX-License-Identifier: Apache-2.0
//! Starting a container's monitor, and talking to it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::containers::Container;
use super::record::State;
use super::spare;
use super::wire::{Exit, Frame, Reply, Request};
use crate::failure::Failure;

/// The hidden verb that a monitor runs under.
pub const MONITOR_VERB: &str = "monitor";

/// A connection to a container's monitor.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Starts a monitor, which starts the container, and asks it this first. It lives on when this process ends. With
    /// `spares` one that waits for such a container is called instead, and ours is one that waits later.
    ///
    /// # Errors
    /// There is no way to start a process; what becomes of the container is told by the first reply.
    pub fn start(container: &Container, first: &Request, spares: bool) -> Result<Self, Failure> {
        let what = format!("cannot start container {}", container.config.name);
        let failed = |error: io::Error| Failure::new(&what, error, "free memory and descriptors; `coracle doctor`");
        let place = spare::place(&container.config).filter(|_| spares);
        if let Some(stream) = place.as_deref().and_then(|place| spare::call(place, container)) {
            let connection = Self { stream };
            connection.send(&Frame::Request(first.clone())).map_err(failed)?;
            return Ok(connection);
        }
        let (stream, its_stream) = UnixStream::pair().map_err(failed)?;
        let connection = Self { stream };
        connection.send(&Frame::Request(first.clone())).map_err(failed)?;
        let log = monitor_log(container.directory()).map_err(failed)?;
        let its_fd = its_stream.as_raw_fd();
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(MONITOR_VERB).arg(container.directory()).arg(its_fd.to_string()).args(place);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(OwnedFd::from(log)).current_dir("/");
        // SAFETY: between fork and exec only setsid and fcntl are called, which are async-signal-safe; `its_stream` is
        // open until after the spawn.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                match libc::fcntl(its_fd, libc::F_SETFD, 0) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                }
            });
        }
        // Nobody waits for it: it is left to PID 1, as a monitor is meant to be.
        command.spawn().map_err(failed)?;
        Ok(connection)
    }

    /// Connects to the monitor of a container that runs, or starts; `what` is what cannot be done otherwise.
    ///
    /// # Errors
    /// It does not run.
    pub fn open(container: &Container, state: &State, what: &str) -> Result<Self, Failure> {
        let not_running = |why: String| {
            Failure::new(what, why, format!("`coracle start {}`; `coracle ps -a` shows all", container.config.name))
        };
        if !state.is_looked_after() {
            return Err(not_running(format!("it is {}, not running", state.status.word())));
        }
        let stream = UnixStream::connect(Container::monitor_socket(state));
        let stream = stream.map_err(|error| not_running(format!("its monitor does not answer: {error}")))?;
        Ok(Self { stream })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The monitor has gone.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        frame.write(&self.stream)
    }

    /// Asks for something, without waiting for what comes of it.
    ///
    /// # Errors
    /// The monitor has gone.
    pub fn ask(&self, request: Request, what: &str) -> Result<(), Failure> {
        self.send(&Frame::Request(request)).map_err(|error| gone(what, error))
    }

    /// The next frame; `None` if the monitor has closed the connection.
    ///
    /// # Errors
    /// The monitor has gone.
    pub fn next_frame(&self) -> io::Result<Option<Frame>> {
        Frame::read(&self.stream)
    }

    /// Asks for something, and waits until it is done; `what` is what failed otherwise.
    ///
    /// # Errors
    /// It cannot be done, or the monitor has gone.
    pub fn request(&self, request: Request, what: &str) -> Result<(), Failure> {
        self.ask(request, what)?;
        match self.reply(what)? {
            Reply::Failed { failure, .. } => Err(failure),
            Reply::Started | Reply::Ended(_) | Reply::Done => Ok(()),
        }
    }

    /// The next reply; what comes in between is passed over.
    ///
    /// # Errors
    /// The monitor has gone.
    pub fn reply(&self, what: &str) -> Result<Reply, Failure> {
        loop {
            match self.next_frame() {
                Ok(Some(Frame::Reply(reply))) => return Ok(reply),
                Ok(Some(_)) => {}
                Ok(None) => return Err(gone(what, "it closed the connection")),
                Err(error) => return Err(gone(what, error)),
            }
        }
    }

    /// Waits for the container's end.
    ///
    /// # Errors
    /// The monitor has gone, or has failed to start it.
    pub fn end(&self, what: &str) -> Result<Exit, Failure> {
        loop {
            match self.reply(what)? {
                Reply::Ended(exit) => return Ok(exit),
                Reply::Failed { failure, .. } => return Err(failure),
                Reply::Started | Reply::Done => {}
            }
        }
    }

    /// From here on a frame is awaited for so long at most.
    ///
    /// # Errors
    /// The time is zero.
    pub fn limit_wait(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))
    }

    /// Ends the connection, for all who have it.
    pub fn close(&self) {
        // One that the monitor has closed needs no closing.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// The same connection, for another thread.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }
}

/// What the monitor of the container in this directory has to say.
pub(super) fn monitor_log(container: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(container.join("monitor.log"))
}

/// The monitor ended without a word.
pub fn gone(what: &str, why: impl std::fmt::Display) -> Failure {
    Failure::new(what, format!("the container's monitor has gone: {why}"), "`coracle ps -a`, and monitor.log beside it")
}
