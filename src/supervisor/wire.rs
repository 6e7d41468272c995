// SPDX-License-Identifier: Apache-2.0
//! What a container's monitor and its clients say to each other over a unix socket.
//!
//! A frame is a header of 8 bytes (kind, three zeroes, length as a big-endian `u32`) and its payload. Kinds 0 to 2 are
//! those of the Docker Engine API's multiplexed stream ("Attach to a container"); requests and replies are JSON.

use std::io::{self, ErrorKind, Read, Write};

use coracle_protocol::WindowSize;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::vmm::snapshot::Scope;

/// Longest payload; longer output takes several frames.
pub const MAX_PAYLOAD: usize = 64 << 10;

/// Where bytes of a container come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// For the program's standard input; an empty one is its end.
    Input(Vec<u8>),
    /// What the program wrote.
    Output(Stream, Vec<u8>),
    /// From a client.
    Request(Request),
    /// From the monitor.
    Reply(Reply),
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// To hear [`Reply::Started`] and [`Reply::Ended`], the program's output in between, and to give it input.
    Attach {
        /// Input will come.
        input: bool,
        /// Output is wanted.
        output: bool,
        /// What the program's terminal is to be like if it is started for this client.
        size: Option<WindowSize>,
    },
    /// To send the program a signal; answered by [`Reply::Done`].
    Signal(u8),
    /// To tell the program's terminal its size; answered by [`Reply::Done`].
    Resize(WindowSize),
    /// To end the program: by this signal, and if it still runs after so many milliseconds, by ending its VM. Without
    /// a limit it has all the time it takes. Answered by [`Reply::Ended`].
    Stop {
        /// Signal number.
        signal: u8,
        /// Milliseconds.
        grace_ms: Option<u64>,
    },
    /// To stop the VM's container where it is; answered by [`Reply::Done`].
    Pause,
    /// To let it go on; answered by [`Reply::Done`].
    Resume,
    /// To take a snapshot of it; answered by [`Reply::Done`] once that has its name, and the container goes on.
    Snapshot {
        /// What it is to be called.
        name: String,
        /// How much of the guest's memory is in it.
        #[serde(default)]
        memory: Scope,
    },
}

impl Request {
    /// To hear of the container's end and nothing else.
    pub const FOLLOW: Self = Self::Attach { input: false, output: false, size: None };
}

/// What the monitor answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// The program runs.
    Started,
    /// The program, or what was asked for, could not be started.
    Failed {
        /// Why.
        failure: Failure,
        /// Exit status that tells it.
        status: u8,
    },
    /// The program has ended.
    Ended(Exit),
    /// It is done.
    Done,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit status; 128 and the signal's number where one killed it.
    pub status: u8,
    /// It ran out of memory.
    pub out_of_memory: bool,
}

impl Frame {
    /// Writes the frame, in one piece.
    ///
    /// # Errors
    /// The other side's.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let json = |value: serde_json::Result<Vec<u8>>| value.map_err(io::Error::from);
        match self {
            Self::Input(bytes) => write(&mut to, 0, bytes),
            Self::Output(stream, bytes) => write_output(to, *stream, bytes),
            Self::Request(request) => write(&mut to, 16, &json(serde_json::to_vec(request))?),
            Self::Reply(reply) => write(&mut to, 17, &json(serde_json::to_vec(reply))?),
        }
    }

    /// Reads a frame; `None` at the end.
    ///
    /// # Errors
    /// The other side's; `InvalidData` for what is no frame.
    pub fn read(mut from: impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; 8];
        if from.read(&mut header[..1])? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut header[1..])?;
        let [kind, _, _, _, length @ ..] = header;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| invalid("its length"))?;
        if length > MAX_PAYLOAD {
            return Err(invalid("its length"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Some(match kind {
            0 => Self::Input(payload),
            1 => Self::Output(Stream::Stdout, payload),
            2 => Self::Output(Stream::Stderr, payload),
            16 => Self::Request(parse(&payload)?),
            17 => Self::Reply(parse(&payload)?),
            _ => return Err(invalid("its kind")),
        }))
    }
}

/// Writes output in as many frames as it takes.
///
/// # Errors
/// The other side's.
pub fn write_output(mut to: impl Write, stream: Stream, bytes: &[u8]) -> io::Result<()> {
    let kind = match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    };
    bytes.chunks(MAX_PAYLOAD).try_for_each(|part| write(&mut to, kind, part))
}

fn write(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).ok().filter(|_| payload.len() <= MAX_PAYLOAD);
    let length = length.ok_or_else(|| invalid("its length"))?.to_be_bytes();
    to.write_all(&[&[kind, 0, 0, 0], &length[..], payload].concat())
}

fn parse<T: DeserializeOwned>(payload: &[u8]) -> io::Result<T> {
    serde_json::from_slice(payload).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not a frame of this version: {what} is wrong"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn there_and_back(frame: &Frame) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        let mut rest = &bytes[..];
        assert_eq!(Frame::read(&mut rest).unwrap().as_ref(), Some(frame));
        assert!(rest.is_empty() && Frame::read(rest).unwrap().is_none());
    }

    #[test]
    fn frames_come_back_as_they_were() {
        let failure = Failure::new("what", "why", "try");
        for frame in [
            Frame::Input(Vec::new()),
            Frame::Output(Stream::Stderr, b"err".to_vec()),
            Frame::Request(Request::Stop { signal: 15, grace_ms: Some(10_000) }),
            Frame::Reply(Reply::Failed { failure, status: 127 }),
            Frame::Reply(Reply::Ended(Exit { status: 137, out_of_memory: true })),
        ] {
            there_and_back(&frame);
        }
    }

    #[test]
    fn long_output_takes_several_frames() {
        let mut bytes = Vec::new();
        write_output(&mut bytes, Stream::Stdout, &vec![7; MAX_PAYLOAD + 1]).unwrap();
        assert_eq!(bytes.len(), MAX_PAYLOAD + 1 + 2 * 8);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(Frame::read(&[9, 0, 0, 0, 0, 0, 0, 0][..]).is_err());
        assert!(Frame::read(&[1, 0, 0, 0, 0xff, 0, 0, 0][..]).is_err());
        assert!(Frame::read(&[16, 0, 0, 0, 0, 0, 0, 1, b'x'][..]).is_err());
        assert!(Frame::read(&[1, 0, 0][..]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Frame::read(&bytes[..]);
        }
    }
}
