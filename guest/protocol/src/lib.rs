// SPDX-License-Identifier: Apache-2.0
//! What a Coracle agent and its host say to each other.
//!
//! # Connection
//! The agent, PID 1 of the guest, listens on vsock port [`AGENT_PORT`]; the host connects. Never the other way round:
//! a listening socket has no state, so it works the same after a snapshot is restored in another process, and no
//! guest can make its host accept connections it did not ask for. The host knows *when* to connect from the byte
//! [`BOOT_STAGE_READY`] at port [`BOOT_TIMER_PORT`], written once the agent listens; on a VMM without that port it
//! retries. `hybrid_vsock` connects through the VMM's unix socket.
//!
//! # Frame
//! | bytes | field |
//! |---|---|
//! | 0 | [`MAGIC`]: magic in the high nibble, layout of this header in the low one |
//! | 1 | message type ([`MessageType`]) |
//! | 2–3 | flags, little-endian; unknown bits 0–7 are ignored, unknown bits 8–15 make the message unsupported |
//! | 4–7 | request id, little-endian; a reply carries the id of its request |
//! | 8–11 | payload length in bytes, little-endian, at most [`MAX_PAYLOAD`] |
//! | 12– | payload: the message as [postcard](https://postcard.jamesmunns.com/wire-format) |
//!
//! A wrong first byte or a length above the limit cannot be recovered from: the reader closes the connection. Anything
//! else that is wrong (unknown type, malformed payload) is answered by [`Message::Error`] and the connection goes on.
//! There is no checksum: vsock is a memory copy, not a wire.
//!
//! # Versions
//! Each side's first message is [`Hello`] with the range of versions it speaks; both then use the highest version
//! common to both ([`Versions::common`]). The agent answers the host's `Hello` with [`Ready`], or with
//! [`ErrorCode::UNSUPPORTED_VERSION`] and closes. A later version may add message types and append fields to payloads
//! (trailing bytes are ignored); it must not change the header, [`Hello`], or [`Failure`].
//!
//! Both sides treat the other as hostile: nothing here panics on any input or holds more than one frame.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing)]

extern crate alloc;

mod adopt;
mod container;
mod frame;
#[cfg(feature = "std")]
mod hybrid_vsock;
mod message;
mod ports;
mod process;
mod renew;
mod statistics;
#[cfg(feature = "std")]
mod stream;
mod text;
mod version;

pub use adopt::{Adopt, Reconnected};
pub use container::{Address, Assembly, Container, File, Interface, Mount, Source, Sysctl, Upper};
pub use frame::{Decoder, Frame, FrameError, HEADER_LEN, MAGIC, MAX_PAYLOAD};
#[cfg(feature = "std")]
pub use hybrid_vsock::connect as connect_hybrid_vsock;
pub use message::{
    BootFacts, ErrorCode, Failure, Hello, Message, MessageError, MessageType, Ping, Ready, Shutdown, ShutdownMode,
};
pub use ports::*;
pub use process::{
    Ended, EndedBy, Pack, Process, Resize, ResourceLimit, Signal, Start, Streams, Task, Unpack, WindowSize,
};
pub use renew::Renew;
pub use statistics::{ProcessFacts, Processes, Usage};
#[cfg(feature = "std")]
pub use stream::{CallError, Channel, ReadError, read_frame, write_frame};
pub use text::{MAX_TEXT, Text};
pub use version::{VERSIONS, Versions};
