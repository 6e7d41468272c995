// SPDX-License-Identifier: Apache-2.0
//! Frames: a fixed header and a payload of bounded length.

use alloc::vec::Vec;
use core::fmt;

/// First byte of each frame: `0xC_` for Coracle, `_1` for this layout of the header.
pub const MAGIC: u8 = 0xc1;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 12;
/// Longest payload in bytes: all the arguments and environment that Linux gives a program (2 MiB with the usual limit on
/// its stack, see `execve(2)`), and as much again for everything else.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// One frame as it travels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Message type.
    pub message_type: u8,
    /// Flags; none are defined yet.
    pub flags: u16,
    /// Request id.
    pub id: u32,
    /// The message, encoded.
    pub payload: Vec<u8>,
}

/// Why a stream of bytes is not a stream of frames. The stream cannot be used any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A frame began with another byte than [`MAGIC`].
    Magic(u8),
    /// The payload is longer than [`MAX_PAYLOAD`].
    TooLong(u64),
}

impl fmt::Display for FrameError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(byte) => {
                write!(
                    formatter,
                    "a frame starts with byte {byte:#04x}, not {MAGIC:#04x}: the peer speaks another protocol"
                )
            }
            Self::TooLong(length) => {
                write!(formatter, "a payload of {length} bytes is above the limit of {MAX_PAYLOAD}")
            }
        }
    }
}

impl core::error::Error for FrameError {}

impl Frame {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], with `out` unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let length = self.payload.len();
        let encoded_length = match u32::try_from(length) {
            Ok(encoded) if length <= MAX_PAYLOAD => encoded,
            _ => return Err(FrameError::TooLong(length as u64)),
        };
        out.reserve(HEADER_LEN + length);
        out.extend_from_slice(&[MAGIC, self.message_type]);
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.id.to_le_bytes());
        out.extend_from_slice(&encoded_length.to_le_bytes());
        out.extend_from_slice(&self.payload);
        Ok(())
    }
}

/// Turns bytes, in whatever pieces they come, into frames. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Vec<u8>,
    payload: Vec<u8>,
    failed: Option<FrameError>,
}

impl Decoder {
    /// An empty decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes from the front of `input` until one frame is complete or `input` is empty (`Ok(None)`).
    ///
    /// # Errors
    /// [`FrameError`], also at each later call: there is no way to find the next frame.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.take(input);
        self.failed = result.as_ref().err().copied();
        result
    }

    /// Bytes that are certain to belong to the current frame: 1 to [`MAX_PAYLOAD`].
    ///
    /// # Errors
    /// [`FrameError`] if the header received so far is wrong.
    pub fn wanted(&self) -> Result<usize, FrameError> {
        match self.head()? {
            None => Ok(HEADER_LEN - self.header.len()),
            Some(head) => Ok(head.length - self.payload.len()),
        }
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_between_frames(&self) -> bool {
        self.header.is_empty()
    }

    fn take(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        move_bytes(input, &mut self.header, HEADER_LEN);
        let Some(head) = self.head()? else {
            return Ok(None);
        };
        move_bytes(input, &mut self.payload, head.length);
        if self.payload.len() < head.length {
            return Ok(None);
        }
        self.header.clear();
        let payload = core::mem::take(&mut self.payload);
        Ok(Some(Frame { message_type: head.message_type, flags: head.flags, id: head.id, payload }))
    }

    /// The header once it is complete; a wrong first byte is seen at once.
    fn head(&self) -> Result<Option<Head>, FrameError> {
        match self.header.first() {
            Some(&byte) if byte != MAGIC => return Err(FrameError::Magic(byte)),
            _ => {}
        }
        let &[_, message_type, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = self.header.as_slice() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        match usize::try_from(length) {
            Ok(length) if length <= MAX_PAYLOAD => Ok(Some(Head {
                message_type,
                flags: u16::from_le_bytes([f0, f1]),
                id: u32::from_le_bytes([i0, i1, i2, i3]),
                length,
            })),
            _ => Err(FrameError::TooLong(length.into())),
        }
    }
}

struct Head {
    message_type: u8,
    flags: u16,
    id: u32,
    length: usize,
}

/// Moves bytes from the front of `from` to the end of `to` until `to` has `length` bytes.
fn move_bytes(from: &mut &[u8], to: &mut Vec<u8>, length: usize) {
    let count = length.saturating_sub(to.len()).min(from.len());
    if let Some((taken, rest)) = from.split_at_checked(count) {
        to.extend_from_slice(taken);
        *from = rest;
    }
}
