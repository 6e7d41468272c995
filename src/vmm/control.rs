// SPDX-License-Identifier: Apache-2.0
//! The control protocol: lines of JSON over a unix stream socket.
//!
//! The process that starts a VMM hands it a connected socket, writes a [`MachineConfig`](super::config::MachineConfig)
//! as the first line, and gets [`Event`]s. When it closes the socket, the VM stops: nothing outlives its owner. Others
//! connect to the listening socket, where one was asked for, and get replies only.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::devices::exit::GuestEnd;
use super::snapshot::Scope;
use super::stages::Mark;
use super::vcpu::Sample;
use crate::failure::Failure;

/// Longest line taken from a client, in bytes.
const MAX_LINE: usize = 1 << 20;
/// Bytes kept for a client that does not read; a client further behind is cut off.
const MAX_BACKLOG: usize = 4 << 20;

/// Descriptors that come with a request: those of a snapshot's two files.
const MAX_DESCRIPTORS: usize = 2;

/// What a VMM tells its owner unasked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A boot stage was reached.
    Stage(Mark),
    /// Where the vCPUs were, for the profile.
    Samples {
        /// One for each vCPU that was kicked.
        samples: Vec<Sample>,
    },
    /// The guest has ended; the last event.
    End {
        /// How.
        how: GuestEnd,
    },
    /// The VM could not start, or could not go on; the last event.
    Failed(Failure),
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request", deny_unknown_fields)]
pub enum Request {
    /// Shape and state of the VM.
    Info,
    /// Counters of the vCPUs and of each device.
    Metrics,
    /// Stops the guest between two instructions.
    Pause,
    /// Lets a paused guest go on.
    Resume,
    /// Takes a snapshot, with the guest paused meanwhile. Two descriptors come with it: empty files for the state and for
    /// the memory, open for reading and writing.
    Snapshot {
        /// How much of the memory.
        #[serde(default)]
        memory: Scope,
    },
    /// Ends the VM at once.
    Stop,
    /// Sets the balloon: memory that the guest is to give back.
    Balloon {
        /// MiB.
        target_mib: u32,
    },
    /// The terminal behind a virtio console has another size.
    Resize {
        /// Characters a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
}

impl Request {
    /// Sends it to a VMM, which answers on the same socket.
    ///
    /// # Errors
    /// The socket's: the VMM has gone.
    pub fn send(&self, mut vmm: &UnixStream) -> io::Result<()> {
        vmm.write_all(&self.line()?)
    }

    /// Sends it with descriptors.
    ///
    /// # Errors
    /// As [`Request::send`].
    pub fn send_with(&self, vmm: &UnixStream, files: [&File; MAX_DESCRIPTORS]) -> io::Result<()> {
        let line = self.line()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = files.map(|file| file.as_fd());
        control.push(SendAncillaryMessage::ScmRights(&files));
        let sent = sendmsg(vmm, &[IoSlice::new(&line)], &mut control, SendFlags::NOSIGNAL)?;
        let mut vmm = vmm;
        vmm.write_all(line.get(sent..).unwrap_or_default())
    }

    fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// The answer to a [`Request`], in the order of the requests.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; what was asked for.
    Ok(Value),
    /// Not done.
    Error(String),
}

/// A connection to a VMM's control socket, for one request after the other.
#[derive(Debug)]
pub struct Client {
    vmm: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self { vmm: BufReader::new(UnixStream::connect(socket)?) })
    }

    /// Asks for something, and waits until it is done; gives what was asked for.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn ask(&mut self, request: &Request) -> Result<Value, String> {
        self.answer(request.send(self.vmm.get_ref()))
    }

    /// As [`Client::ask`], with descriptors.
    ///
    /// # Errors
    /// Why it cannot be done.
    pub fn ask_with(&mut self, request: &Request, files: [&File; MAX_DESCRIPTORS]) -> Result<Value, String> {
        self.answer(request.send_with(self.vmm.get_ref(), files))
    }

    fn answer(&mut self, sent: io::Result<()>) -> Result<Value, String> {
        let mut line = String::new();
        let read = sent.and_then(|()| self.vmm.read_line(&mut line));
        match read.map(|_| serde_json::from_str(&line)) {
            Ok(Ok(Reply::Ok(value))) => Ok(value),
            Ok(Ok(Reply::Error(why))) => Err(why),
            Ok(Err(_)) => Err("the VMM gave no answer".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// One client, non-blocking in both directions.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// Descriptors that have come and have not been taken.
    descriptors: Vec<OwnedFd>,
    outgoing: Vec<u8>,
}

impl Connection {
    /// Takes a connected stream.
    ///
    /// # Errors
    /// Where it cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, incoming: Vec::new(), descriptors: Vec::new(), outgoing: Vec::new() })
    }

    /// Reads what there is; gives complete lines.
    ///
    /// # Errors
    /// `UnexpectedEof` where the client has gone, `InvalidData` on a line beyond all measure, and the system's.
    pub fn receive(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut buffer = [0; 4096];
        let mut gone = false;
        loop {
            match self.read(&mut buffer) {
                Ok(0) => gone = true,
                Ok(count) => self.incoming.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.incoming.len() > MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            // One read a call: a client that keeps writing does not keep the event loop.
            break;
        }
        let mut lines = Vec::new();
        while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.incoming.drain(..=end).collect();
            line.pop();
            lines.push(line);
        }
        if gone && lines.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(lines) }
    }

    /// Reads bytes, and keeps the descriptors that come with them; those beyond [`MAX_DESCRIPTORS`] are closed.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = recvmsg(&self.stream, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.descriptors.truncate(MAX_DESCRIPTORS);
        Ok(read.bytes)
    }

    /// The files that came with a request, where there were two.
    pub fn take_files(&mut self) -> Option<[File; MAX_DESCRIPTORS]> {
        let files: Vec<_> = self.descriptors.drain(..).map(File::from).collect();
        files.try_into().ok()
    }

    /// Sends `message` as one line, as far as the client reads; the rest waits for [`Connection::flush`].
    ///
    /// # Errors
    /// A client that has gone, or is too far behind.
    pub fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.outgoing, message)?;
        self.outgoing.push(b'\n');
        self.flush()
    }

    /// Sends what is waiting.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.outgoing.len() > MAX_BACKLOG { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Whether something waits to be sent.
    pub fn is_behind(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_whole_whatever_the_pieces() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server).unwrap();
        client.write_all(b"{\"request\":\"in").unwrap();
        assert!(connection.receive().unwrap().is_empty());
        client.write_all(b"fo\"}\n\nrest").unwrap();
        let lines = connection.receive().unwrap();
        assert_eq!(serde_json::from_slice::<Request>(&lines[0]).unwrap(), Request::Info);
        assert_eq!(lines[1], b"");
        drop(client);
        assert_eq!(connection.receive().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_client_that_never_ends_its_line_is_cut_off() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server).unwrap();
        let error = (0..1000).find_map(|_| {
            client.write_all(&[b'x'; 4096]).unwrap();
            connection.receive().err()
        });
        assert_eq!(error.unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_client_that_never_reads_is_cut_off() {
        let (_client, server) = UnixStream::pair().unwrap();
        let mut connection = Connection::new(server).unwrap();
        let message = "x".repeat(1 << 20);
        let error = (0..100).find_map(|_| connection.send(&message).err());
        assert_eq!(error.unwrap().kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn unknown_requests_are_refused() {
        for line in ["{}", "{\"request\":\"fly\"}", "{\"request\":\"balloon\",\"target_mib\":-1}", "[]"] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }
}
