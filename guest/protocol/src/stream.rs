// SPDX-License-Identifier: Apache-2.0
//! Blocking messages over `std::io`.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;

use crate::{Decoder, Failure, Frame, FrameError, Hello, Message, MessageError, Ready, Text, VERSIONS};

/// Bytes asked for in one read. A hostile length makes nobody allocate more than what has come.
const CHUNK: usize = 4096;
/// Messages that are passed over while waiting for an answer: enough for what an honest agent may have sent before it
/// read the request, and an end to the patience with one that never answers but never stops talking either.
const MAX_PASSED_OVER: u32 = 1024;

/// Why no frame could be read.
#[derive(Debug)]
pub enum ReadError {
    /// The stream failed.
    Io(io::Error),
    /// The stream ended in the middle of a frame.
    Truncated,
    /// The stream is not one of frames.
    Frame(FrameError),
}

impl fmt::Display for ReadError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(formatter, "reading from the peer failed: {error}"),
            Self::Truncated => formatter.write_str("the connection ended in the middle of a frame"),
            Self::Frame(error) => error.fmt(formatter),
        }
    }
}

impl std::error::Error for ReadError {}

/// Reads one frame, and not one byte beyond it; `None` if the stream ends before its first byte.
///
/// # Errors
/// [`ReadError`]. After an error the stream is of no further use.
pub fn read_frame(stream: &mut impl Read) -> Result<Option<Frame>, ReadError> {
    let mut decoder = Decoder::new();
    let mut chunk = [0; CHUNK];
    loop {
        let wanted = decoder.wanted().map_err(ReadError::Frame)?.min(CHUNK);
        let Some(space) = chunk.get_mut(..wanted) else {
            return Err(ReadError::Truncated);
        };
        let count = match stream.read(space) {
            Ok(0) if decoder.is_between_frames() => return Ok(None),
            Ok(0) => return Err(ReadError::Truncated),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ReadError::Io(error)),
        };
        let mut bytes = space.get(..count).unwrap_or_default();
        if let Some(frame) = decoder.feed(&mut bytes).map_err(ReadError::Frame)? {
            return Ok(Some(frame));
        }
    }
}

/// Writes one frame.
///
/// # Errors
/// Those of the stream; `InvalidInput` if the payload is too long.
pub fn write_frame(stream: &mut impl Write, frame: &Frame) -> io::Result<()> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Why a request got no good answer.
#[derive(Debug)]
pub enum CallError {
    /// Nothing more could be read.
    Read(ReadError),
    /// The request could not be written.
    Write(io::Error),
    /// The peer closed the connection before it answered.
    Closed,
    /// The peer sent much, but no answer.
    NoAnswer,
    /// The peer refused.
    Refused(Failure),
    /// The peer's answer cannot be understood.
    Answer(MessageError),
    /// The peer answered with a message that does not belong here.
    Unexpected(Box<Message>),
    /// No version in common.
    Version(Hello),
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(error) => error.fmt(formatter),
            Self::Write(error) => write!(formatter, "writing to the agent failed: {error}"),
            Self::Closed => formatter.write_str("the agent closed the connection without an answer"),
            Self::NoAnswer => {
                write!(formatter, "the agent sent {MAX_PASSED_OVER} other messages and no answer: it cannot be trusted")
            }
            Self::Refused(failure) => {
                write!(formatter, "the agent refused: {} (code {})", failure.message, failure.code.0)
            }
            Self::Answer(error) => {
                write!(formatter, "the agent's answer is not understood: {error}")
            }
            Self::Unexpected(message) => {
                write!(formatter, "the agent answered with {:?}, which does not belong here", message.message_type())
            }
            Self::Version(hello) => write!(
                formatter,
                "the agent ({}) speaks protocol versions {} to {}, this host {} to {}: use an agent and a host of the same release",
                hello.software, hello.versions.oldest, hello.versions.newest, VERSIONS.oldest, VERSIONS.newest
            ),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// The stream's own error, if it was that.
    #[must_use]
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::Read(ReadError::Io(error)) | Self::Write(error) => Some(error),
            _ => None,
        }
    }
}

/// The host's end of a connection to an agent, one request at a time.
///
/// A time limit on the stream bounds each read, not the whole answer. Where a guest that sends a byte now and then must
/// not keep its caller waiting, feed a [`Decoder`] under a deadline instead.
#[derive(Debug)]
pub struct Channel<S> {
    stream: S,
    next_id: u32,
    /// Ids of requests that were sent with the first words, and whose answers have not been read.
    awaited: Range<u32>,
    ready: Ready,
}

impl<S: Read + Write> Channel<S> {
    /// Exchanges `Hello`, and waits for the agent to be ready. Set time limits on `stream` beforehand: a guest may say
    /// nothing for ever.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn open(stream: S, software: &str) -> Result<Self, CallError> {
        Self::open_asking(stream, software, &[])
    }

    /// The same, for a guest whose every turn costs time: says at once all that is known to be said. The answers to
    /// `requests`, in order, come with [`Channel::next_answer`]. An agent of another version obeys none of them, and one
    /// that has refused to be renewed obeys none that come after that.
    ///
    /// # Errors
    /// [`CallError`].
    pub fn open_asking(mut stream: S, software: &str, requests: &[Message]) -> Result<Self, CallError> {
        let ours = Message::Hello(Hello { versions: VERSIONS, software: Text::new(software) });
        let mut bytes = Vec::new();
        for (message, id) in std::iter::once(&ours).chain(requests).zip(1..) {
            message.encode(id, &mut bytes).map_err(too_long)?;
        }
        // What the agent has said before it closed counts more than that it has.
        let written = stream.write_all(&bytes).and_then(|()| stream.flush()).map_err(CallError::Write);
        let hello = match read_message(&mut stream)? {
            (_, Message::Hello(hello)) => hello,
            (_, Message::Error(failure)) => return Err(CallError::Refused(failure)),
            (_, other) => return Err(CallError::Unexpected(Box::new(other))),
        };
        let Some(version) = VERSIONS.common(hello.versions) else {
            return Err(CallError::Version(hello));
        };
        written?;
        match answer(&mut stream, 1)? {
            Message::Ready(ready) if ready.version == version => {
                let next_id = u32::try_from(requests.len()).unwrap_or(u32::MAX).saturating_add(2);
                Ok(Self { stream, next_id, awaited: 2..next_id, ready })
            }
            other => Err(CallError::Unexpected(Box::new(other))),
        }
    }

    /// What the agent said when it was ready.
    #[must_use]
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The stream, to set time limits or to close it.
    #[must_use]
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Waits for the answer to the first of the requests of [`Channel::open_asking`] that has not been read yet.
    ///
    /// # Errors
    /// [`CallError`]; an `Error` answer is [`CallError::Refused`]. [`CallError::NoAnswer`] where there is none to come.
    pub fn next_answer(&mut self) -> Result<Message, CallError> {
        let id = self.awaited.next().ok_or(CallError::NoAnswer)?;
        answer(&mut self.stream, id)
    }

    /// Sends a request and waits for its answer; answers to earlier requests are passed over.
    ///
    /// # Errors
    /// [`CallError`]; an `Error` answer is [`CallError::Refused`].
    pub fn call(&mut self, request: &Message) -> Result<Message, CallError> {
        let id = self.next_id;
        // Id 0 means "no request".
        self.next_id = id.checked_add(1).unwrap_or(1);
        write_message(&mut self.stream, request, id)?;
        answer(&mut self.stream, id)
    }

    /// The stream, and the id of the last request, for what is still to come of it, such as the end of a process.
    #[must_use]
    pub fn into_parts(self) -> (S, u32) {
        // Ids wrap from the highest to 1.
        (self.stream, self.next_id.checked_sub(1).filter(|id| *id != 0).unwrap_or(u32::MAX))
    }
}

/// The answer to request `id`.
fn answer(stream: &mut (impl Read + Write), id: u32) -> Result<Message, CallError> {
    for _ in 0..MAX_PASSED_OVER {
        match read_message(stream)? {
            (from, Message::Error(failure)) if from == id || from == 0 => {
                return Err(CallError::Refused(failure));
            }
            (from, message) if from == id => return Ok(message),
            (from, Message::Ping(ping)) => write_message(stream, &Message::Pong(ping), from)?,
            _ => {}
        }
    }
    Err(CallError::NoAnswer)
}

fn read_message(stream: &mut impl Read) -> Result<(u32, Message), CallError> {
    let frame = read_frame(stream).map_err(CallError::Read)?.ok_or(CallError::Closed)?;
    let message = Message::from_frame(&frame).map_err(CallError::Answer)?;
    Ok((frame.id, message))
}

fn write_message(stream: &mut impl Write, message: &Message, id: u32) -> Result<(), CallError> {
    write_frame(stream, &message.to_frame(id).map_err(too_long)?).map_err(CallError::Write)
}

fn too_long(error: FrameError) -> CallError {
    CallError::Write(io::Error::new(io::ErrorKind::InvalidInput, error))
}
