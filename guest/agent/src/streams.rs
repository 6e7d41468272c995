// SPDX-License-Identifier: Apache-2.0
//! Bytes of a process's standard streams, between its pipes or its terminal and the host's sockets.
//!
//! A process gets pipes and not the sockets themselves, so that `/dev/stdout` can be opened, as images expect.

use alloc::vec::Vec;

use rustix::event::PollFlags;
use rustix::fd::OwnedFd;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::vsock;

/// Bytes moved at once, and all that waits here: the reader's pace is the writer's.
const CHUNK: usize = 32 << 10;
/// What a pipe can hold at most (pipe(7), `pipe-max-size`), and so what a process can leave behind.
const MAX_LEFT: usize = 1 << 20;

/// One direction of one stream. Neither end blocks.
#[derive(Debug)]
pub struct Stream {
    from: OwnedFd,
    to: To,
    waiting: Vec<u8>,
    process: Pid,
    /// Which of the standard streams it is.
    kind: Kind,
    /// Once the process has ended: how many bytes it may still be that it has written.
    left: Option<usize>,
    /// The guest has become a clone, which has none of the connections that it had: nothing is moved until there is
    /// another.
    cut_off: bool,
}

/// Where a stream goes.
#[derive(Debug)]
pub enum To {
    /// There. It does not block.
    Open(OwnedFd),
    /// To this port of the host, once there is something to say: most programs have no errors, and a connection is tens of
    /// thousands of the kernel's instructions.
    Port(u32),
}

impl To {
    /// The open end.
    ///
    /// # Errors
    /// Those of the connection that is made for it.
    fn open(&mut self) -> rustix::io::Result<&OwnedFd> {
        if let Self::Port(port) = self {
            let socket = vsock::connect(*port)?;
            fcntl_setfl(&socket, OFlags::NONBLOCK)?;
            *self = Self::Open(socket);
        }
        match self {
            Self::Open(end) => Ok(end),
            Self::Port(_) => Err(Errno::NOTCONN),
        }
    }
}

/// The standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What the process reads.
    Input,
    /// What it writes.
    Output,
    /// What it writes of errors.
    Errors,
}

impl Stream {
    /// Moves what comes from `from` to `to`, for this process to read.
    pub fn input(process: Pid, from: OwnedFd, to: OwnedFd) -> Self {
        Self { from, to: To::Open(to), waiting: Vec::new(), process, kind: Kind::Input, left: None, cut_off: false }
    }

    /// The same, of what the process writes.
    pub fn output(process: Pid, from: OwnedFd, to: OwnedFd) -> Self {
        Self { kind: Kind::Output, ..Self::input(process, from, to) }
    }

    /// The same, of what it writes of errors.
    pub fn errors(process: Pid, from: OwnedFd, to: To) -> Self {
        let (waiting, kind) = (Vec::new(), Kind::Errors);
        Self { from, to, waiting, process, kind, left: None, cut_off: false }
    }

    /// What the stream waits for, if for anything.
    pub fn interest(&self) -> Option<(&OwnedFd, PollFlags)> {
        if self.cut_off {
            return None;
        }
        match &self.to {
            To::Open(to) if !self.waiting.is_empty() => Some((to, PollFlags::OUT)),
            _ => Some((&self.from, PollFlags::IN)),
        }
    }

    /// Whether it is this process that reads or writes at one end, through a standard stream.
    pub fn is_of(&self, process: Pid) -> bool {
        self.process == process
    }

    /// Which of the standard streams it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Goes on with another socket of the host's, which does not block.
    pub fn reconnect(&mut self, socket: OwnedFd) {
        match self.kind {
            Kind::Input => self.from = socket,
            Kind::Output | Kind::Errors => self.to = To::Open(socket),
        }
        self.cut_off = false;
    }

    /// Goes on after that is there. `false` once all has been moved, or nobody takes it any more: dropping the stream
    /// then tells both ends.
    pub fn advance(&mut self) -> bool {
        while self.left.is_some() {
            match self.step() {
                // Whatever others still write there, what the process has written has been moved.
                Some(0) if self.waiting.is_empty() => return false,
                // The socket is full.
                Some(0) => return true,
                Some(_) => {}
                None => return false,
            }
        }
        self.step().is_some()
    }

    /// After the end of a process: `false` if the stream was that process's and nothing of it is left to be moved. What
    /// a process leaves running may hold on to its streams, and nobody waits for that.
    pub fn outlives(&mut self, process: Pid) -> bool {
        if self.process != process {
            return true;
        }
        self.left = Some(MAX_LEFT);
        self.kind != Kind::Input && self.advance()
    }

    /// Moves a piece, or part of one; gives how many bytes came out or went in, and nothing at the stream's end.
    fn step(&mut self) -> Option<usize> {
        if self.waiting.is_empty() {
            let length = self.left.unwrap_or(CHUNK).min(CHUNK);
            self.waiting.resize(length, 0);
            let outcome = rustix::io::read(&self.from, &mut self.waiting[..]);
            self.waiting.truncate(outcome.unwrap_or(0));
            match outcome {
                Ok(0) => return None,
                Ok(count) => self.left = self.left.map(|left| left - count),
                Err(error) => return self.goes_on(error, self.kind == Kind::Input),
            }
        }
        match self.to.open().and_then(|to| rustix::io::write(to, &self.waiting)) {
            Ok(count) => {
                drop(self.waiting.drain(..count));
                Some(count)
            }
            Err(error) => self.goes_on(error, self.kind != Kind::Input),
        }
    }

    /// After a failure, of the socket or of the process's end. A socket that the host has closed reads as ended; that it
    /// is not connected any more is what a transport's reset makes of it (virtio 1.3 §5.10.6.7).
    fn goes_on(&mut self, error: Errno, of_socket: bool) -> Option<usize> {
        match error {
            Errno::AGAIN | Errno::INTR => Some(0),
            Errno::NOTCONN | Errno::CONNRESET if of_socket && self.left.is_none() => {
                self.cut_off = true;
                Some(0)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use rustix::pipe::pipe;
    use rustix::process::getpid;

    use super::*;

    /// A socket that is not connected any more, which is what a transport's reset leaves.
    fn cut_off() -> OwnedFd {
        use rustix::net::{AddressFamily, SocketType, socket};
        socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap()
    }

    fn pair() -> (UnixStream, OwnedFd) {
        let (ours, its) = UnixStream::pair().unwrap();
        its.set_nonblocking(true).unwrap();
        (ours, its.into())
    }

    #[test]
    fn output_waits_for_another_socket_when_its_own_is_cut_off() {
        let (from, program) = pipe().unwrap();
        let mut stream = Stream::output(getpid(), from, cut_off());
        rustix::io::write(&program, b"before").unwrap();
        assert!(stream.advance() && stream.interest().is_none());
        rustix::io::write(&program, b" and after").unwrap();
        let (mut host, socket) = pair();
        stream.reconnect(socket);
        assert!(stream.advance() && stream.advance());
        drop(program);
        assert!(!stream.advance(), "the program has closed its end");
        drop(stream);
        let mut text = std::string::String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and after");
    }

    /// Nobody listens there: a clone before it is adopted is so, and so is one whose host has gone.
    #[test]
    fn errors_wait_for_a_socket_where_none_can_be_had() {
        let (from, program) = pipe().unwrap();
        let mut stream = Stream::errors(getpid(), from, To::Port(1));
        assert!(stream.interest().is_some_and(|(_, flags)| flags == PollFlags::IN));
        rustix::io::write(&program, b"failed").unwrap();
        match stream.advance() {
            true => assert!(stream.interest().is_none()),
            // A kernel without vsock says something else.
            false => return assert!(crate::vsock::listen(1).is_err()),
        }
        let (mut host, socket) = pair();
        stream.reconnect(socket);
        assert!(stream.advance());
        drop((program, stream));
        let mut text = std::string::String::new();
        host.read_to_string(&mut text).unwrap();
        assert_eq!(text, "failed");
    }

    #[test]
    fn input_waits_likewise_and_ends_when_the_host_ends_it() {
        let (program, to) = pipe().unwrap();
        // Unlike vsock's, a unix socket that is not connected does not say so to who reads.
        let (never, _) = pipe().unwrap();
        let mut stream = Stream::input(getpid(), never, to);
        stream.cut_off = true;
        assert!(stream.interest().is_none() && stream.kind() == Kind::Input && stream.is_of(getpid()));
        let (mut host, socket) = pair();
        stream.reconnect(socket);
        host.write_all(b"input").unwrap();
        host.shutdown(Shutdown::Write).unwrap();
        assert!(stream.advance());
        assert!(!stream.advance());
        drop(stream);
        let mut bytes = [0; 16];
        assert_eq!(rustix::io::read(&program, &mut bytes[..]), Ok(5));
        assert_eq!(rustix::io::read(&program, &mut bytes[..]), Ok(0));
    }

    #[test]
    fn the_program_s_own_end_is_an_end() {
        let (from, program) = pipe().unwrap();
        drop(from);
        let (mut host, socket) = pair();
        let mut stream = Stream::input(getpid(), socket, program);
        host.write_all(b"nobody reads this").unwrap();
        assert!(!stream.advance());
    }
}
