// SPDX-License-Identifier: Apache-2.0
//! The messages, version 1.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Adopt, Assembly, Ended, Frame, FrameError, Processes, Renew, Resize, Signal, Start, Text, Usage, Versions,
};

/// Flags that a receiver must know to understand the message.
const CRITICAL_FLAGS: u16 = 0xff00;

/// Type byte of a message. A number is never reused. `0x20` and above are for containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is documented at its Message variant")]
pub enum MessageType {
    Hello = 0x01,
    Ready = 0x02,
    Ping = 0x03,
    Pong = 0x04,
    Ack = 0x05,
    Error = 0x06,
    Prepare = 0x10,
    Shutdown = 0x11,
    Renew = 0x12,
    Start = 0x20,
    Started = 0x21,
    Ended = 0x22,
    Signal = 0x23,
    Resize = 0x24,
    Pause = 0x25,
    Resume = 0x26,
    Stats = 0x27,
    Usage = 0x28,
    Top = 0x29,
    Processes = 0x2a,
    Assemble = 0x2b,
    Adopt = 0x2c,
    Reclaim = 0x2d,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message of either side.
    Hello(Hello),
    /// Agent's answer to the host's `Hello`: the session is open.
    Ready(Ready),
    /// Asks for a [`Message::Pong`] with the same content. Either side may ask.
    Ping(Ping),
    /// Answer to `Ping`.
    Pong(Ping),
    /// The request with this id is done.
    Ack,
    /// The request with this id failed; with id 0, the connection did.
    Error(Failure),
    /// Host: mount what containers need, so that a snapshot taken next has it. Answered by `Ack`; repeating is free.
    Prepare,
    /// Host: end the guest. Answered by `Ack` at once; the agent then waits up to 100 ms for the host to close the
    /// connection, so that the `Ack` is not lost with the machine.
    Shutdown(Shutdown),
    /// Host: the guest has been restored from a snapshot, and becomes one of its own. Answered by `Ack` when it is.
    Renew(Renew),
    /// Host: start a process. Answered by `Started` once the program runs, and by `Ended`, with the same id, at its end.
    Start(Box<Start>),
    /// The program of the `Start` or `Adopt` with this id runs.
    Started,
    /// The process of the `Start` or `Adopt` with this id has ended, and with a container's first one all of the container.
    Ended(Ended),
    /// Host: make a container up to where its first process waits for what to run, so that a snapshot taken next has it.
    /// Answered by `Ack` when it waits. The next `Start` of a container has to fit it.
    Assemble(Box<Assembly>),
    /// Host: send a signal. Answered by `Ack`.
    Signal(Signal),
    /// Host: change the size of a terminal. Answered by `Ack`.
    Resize(Resize),
    /// Host: stop all processes of the container where they are. Answered by `Ack` when they stand.
    Pause,
    /// Host: let them go on. Answered by `Ack`.
    Resume,
    /// Host: give up what is only kept in case it is read again. Answered by `Ack` once it is free; free page reporting
    /// gives it to the host.
    Reclaim,
    /// Host: what does the container use? Answered by `Usage`.
    Stats,
    /// Answer to `Stats`.
    Usage(Usage),
    /// Host: which processes does the container have? Answered by `Processes`.
    Top,
    /// Answer to `Top`.
    Processes(Processes),
    /// Host: the container that was in the snapshot goes on, for this connection. Answered as `Start` is.
    Adopt(Box<Adopt>),
}

/// Who speaks, and which versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions that the sender speaks.
    pub versions: Versions,
    /// Name and version of the sender, for people.
    pub software: Text,
}

/// The session is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The version both sides use from here on.
    pub version: u16,
    /// The guest as the agent finds it.
    pub facts: BootFacts,
}

/// The guest as the agent finds it. Claims of a guest: for people and tests, not for decisions about safety.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFacts {
    /// Kernel release (`uname -r`).
    pub kernel: Text,
    /// Milliseconds since the kernel started (`CLOCK_BOOTTIME`).
    pub uptime_ms: u64,
    /// CPUs that the agent may run on.
    pub cpus: u32,
    /// Usable memory in KiB.
    pub memory_kib: u64,
}

/// Content of `Ping` and `Pong`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Any number.
    pub token: u64,
}

/// How to end the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// What comes after.
    pub mode: ShutdownMode,
    /// Milliseconds between SIGTERM and SIGKILL for processes that are still there.
    pub grace_ms: u32,
}

/// What comes after the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShutdownMode {
    /// The machine is switched off.
    PowerOff,
    /// The machine is reset.
    Reboot,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what, on what, why.
    pub message: Text,
}

/// What kind of failure. Codes unknown to a receiver are failures all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCode(pub u16);

impl ErrorCode {
    /// The receiver does not know this message type or a critical flag of it.
    pub const UNKNOWN_MESSAGE: Self = Self(1);
    /// The payload cannot be decoded.
    pub const MALFORMED: Self = Self(2);
    /// No common version; the connection is closed.
    pub const UNSUPPORTED_VERSION: Self = Self(3);
    /// The message makes no sense here: before `Hello`, or of the kind that only the other side sends.
    pub const OUT_OF_PLACE: Self = Self(4);
    /// The request was understood and could not be done.
    pub const FAILED: Self = Self(5);
    /// The agent has as many connections as it serves; this one is closed.
    pub const TOO_MANY_CONNECTIONS: Self = Self(6);
    /// There is no such program in the image.
    pub const NOT_FOUND: Self = Self(7);
    /// The program cannot be executed.
    pub const NOT_EXECUTABLE: Self = Self(8);
    /// The process, or the container, that the request is about is not there (any more).
    pub const NO_PROCESS: Self = Self(9);
}

/// Why a frame is not a message of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// Unknown type, or unknown critical flags.
    Unknown {
        /// Type byte.
        message_type: u8,
        /// Flags.
        flags: u16,
    },
    /// The payload is not one of this type.
    Malformed {
        /// Type byte.
        message_type: u8,
    },
}

impl MessageError {
    /// The code to answer with.
    #[must_use]
    pub fn code(self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::UNKNOWN_MESSAGE,
            Self::Malformed { .. } => ErrorCode::MALFORMED,
        }
    }
}

impl fmt::Display for MessageError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { message_type, flags } => {
                write!(
                    formatter,
                    "message type {message_type:#04x} with flags {flags:#06x} is not known to this version"
                )
            }
            Self::Malformed { message_type } => {
                write!(formatter, "the payload of a message of type {message_type:#04x} cannot be decoded")
            }
        }
    }
}

impl core::error::Error for MessageError {}

impl Message {
    /// The type byte of this message.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        match self {
            Self::Hello(_) => MessageType::Hello,
            Self::Ready(_) => MessageType::Ready,
            Self::Ping(_) => MessageType::Ping,
            Self::Pong(_) => MessageType::Pong,
            Self::Ack => MessageType::Ack,
            Self::Error(_) => MessageType::Error,
            Self::Prepare => MessageType::Prepare,
            Self::Shutdown(_) => MessageType::Shutdown,
            Self::Renew(_) => MessageType::Renew,
            Self::Start(_) => MessageType::Start,
            Self::Started => MessageType::Started,
            Self::Ended(_) => MessageType::Ended,
            Self::Signal(_) => MessageType::Signal,
            Self::Resize(_) => MessageType::Resize,
            Self::Pause => MessageType::Pause,
            Self::Resume => MessageType::Resume,
            Self::Stats => MessageType::Stats,
            Self::Usage(_) => MessageType::Usage,
            Self::Top => MessageType::Top,
            Self::Processes(_) => MessageType::Processes,
            Self::Assemble(_) => MessageType::Assemble,
            Self::Adopt(_) => MessageType::Adopt,
            Self::Reclaim => MessageType::Reclaim,
        }
    }

    /// The message as a frame.
    ///
    /// # Errors
    /// [`FrameError::TooLong`].
    pub fn to_frame(&self, id: u32) -> Result<Frame, FrameError> {
        let payload = match self {
            Self::Hello(body) => encode(body),
            Self::Ready(body) => encode(body),
            Self::Ping(body) | Self::Pong(body) => encode(body),
            Self::Error(body) => encode(body),
            Self::Shutdown(body) => encode(body),
            Self::Renew(body) => encode(body),
            Self::Start(body) => encode(body),
            Self::Ended(body) => encode(body),
            Self::Signal(body) => encode(body),
            Self::Resize(body) => encode(body),
            Self::Usage(body) => encode(body),
            Self::Processes(body) => encode(body),
            Self::Assemble(body) => encode(body),
            Self::Adopt(body) => encode(body),
            Self::Ack
            | Self::Prepare
            | Self::Started
            | Self::Pause
            | Self::Resume
            | Self::Reclaim
            | Self::Stats
            | Self::Top => Ok(Vec::new()),
        }?;
        Ok(Frame { message_type: self.message_type() as u8, flags: 0, id, payload })
    }

    /// Appends the message as an encoded frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], with `out` unchanged.
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), FrameError> {
        self.to_frame(id)?.encode(out)
    }

    /// The message in `frame`.
    ///
    /// # Errors
    /// [`MessageError`]; answer it with an `Error` that carries the frame's id.
    pub fn from_frame(frame: &Frame) -> Result<Self, MessageError> {
        let unknown = MessageError::Unknown { message_type: frame.message_type, flags: frame.flags };
        if frame.flags & CRITICAL_FLAGS != 0 {
            return Err(unknown);
        }
        let message = match frame.message_type {
            t if t == MessageType::Hello as u8 => Self::Hello(decode(frame)?),
            t if t == MessageType::Ready as u8 => Self::Ready(decode(frame)?),
            t if t == MessageType::Ping as u8 => Self::Ping(decode(frame)?),
            t if t == MessageType::Pong as u8 => Self::Pong(decode(frame)?),
            t if t == MessageType::Ack as u8 => Self::Ack,
            t if t == MessageType::Error as u8 => Self::Error(decode(frame)?),
            t if t == MessageType::Prepare as u8 => Self::Prepare,
            t if t == MessageType::Shutdown as u8 => Self::Shutdown(decode(frame)?),
            t if t == MessageType::Renew as u8 => Self::Renew(decode(frame)?),
            t if t == MessageType::Start as u8 => Self::Start(decode(frame)?),
            t if t == MessageType::Started as u8 => Self::Started,
            t if t == MessageType::Ended as u8 => Self::Ended(decode(frame)?),
            t if t == MessageType::Signal as u8 => Self::Signal(decode(frame)?),
            t if t == MessageType::Resize as u8 => Self::Resize(decode(frame)?),
            t if t == MessageType::Pause as u8 => Self::Pause,
            t if t == MessageType::Resume as u8 => Self::Resume,
            t if t == MessageType::Stats as u8 => Self::Stats,
            t if t == MessageType::Usage as u8 => Self::Usage(decode(frame)?),
            t if t == MessageType::Top as u8 => Self::Top,
            t if t == MessageType::Processes as u8 => Self::Processes(decode(frame)?),
            t if t == MessageType::Assemble as u8 => Self::Assemble(decode(frame)?),
            t if t == MessageType::Adopt as u8 => Self::Adopt(decode(frame)?),
            t if t == MessageType::Reclaim as u8 => Self::Reclaim,
            _ => return Err(unknown),
        };
        Ok(message)
    }
}

fn encode<T: Serialize>(body: &T) -> Result<Vec<u8>, FrameError> {
    // The only way for postcard to fail here is a sequence of unknown length, which no message has; a message that
    // cannot be encoded could not be sent whatever its length, so the same error serves.
    postcard::to_allocvec(body).map_err(|_| FrameError::TooLong(u64::MAX))
}

/// Ignores bytes after the known fields: a later version may append some.
fn decode<'a, T: Deserialize<'a>>(frame: &'a Frame) -> Result<T, MessageError> {
    match postcard::take_from_bytes(&frame.payload) {
        Ok((body, _)) => Ok(body),
        Err(_) => Err(MessageError::Malformed { message_type: frame.message_type }),
    }
}
