// SPDX-License-Identifier: Apache-2.0
//! Frames over a Unix stream socket, as passt and QEMU's `-netdev stream` exchange them: each with its length before
//! it, as four bytes in network order, and without a virtio header.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::super::DeviceError;
use super::super::chain::Reader;
use super::tap::NetError;
use super::{HEADER, MAX_FRAME, MIN_FRAME};

/// Bytes of the length before each frame.
const LENGTH: usize = 4;
/// What is read at once, at least one of the longest frames.
const INPUT: usize = 128 << 10;
/// What is written at once; more is taken only when this has gone.
const OUTPUT: usize = 128 << 10;
/// Largest packet in bytes, without Ethernet header: the longest IP packet in whole words, as passt has it.
pub const FRAME_STREAM_MTU: u16 = 65520;

/// A connection that carries frames.
#[derive(Debug)]
pub struct FrameStream {
    stream: UnixStream,
    input: Box<[u8]>,
    /// What of `input` has been read and not given out.
    start: usize,
    end: usize,
    output: Vec<u8>,
    /// Bytes of `output` that have gone.
    sent: usize,
}

impl FrameStream {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`NetError::Stream`], where nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, NetError> {
        let stream = UnixStream::connect(path);
        let stream = stream.and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        stream.map(Self::new).map_err(|source| NetError::Stream { path: path.to_owned(), source })
    }

    /// On a connection that does not block.
    pub fn new(stream: UnixStream) -> Self {
        let input = vec![0; INPUT].into_boxed_slice();
        Self { stream, input, start: 0, end: 0, output: Vec::new(), sent: 0 }
    }

    /// Largest packet in bytes, without Ethernet header.
    pub fn mtu(&self) -> u16 {
        FRAME_STREAM_MTU
    }

    /// Puts the next frame into `frame`, an empty virtio header before it; gives the bytes of both.
    ///
    /// # Errors
    /// `WouldBlock` where none has come; all others mean that none will come any more.
    pub fn receive(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        loop {
            let waiting = self.input.get(self.start..self.end).unwrap_or_default();
            if let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() {
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > MAX_FRAME - HEADER {
                    return Err(io::Error::new(ErrorKind::InvalidData, "a frame longer than there are"));
                }
                if let (Some(data), Some((header, to))) = (rest.get(..length), frame.split_at_mut_checked(HEADER)) {
                    self.start += LENGTH + length;
                    let Some(to) = to.get_mut(..length) else { continue };
                    header.fill(0);
                    to.copy_from_slice(data);
                    if HEADER + length >= MIN_FRAME {
                        return Ok(HEADER + length);
                    }
                    continue;
                }
            }
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match self.stream.read(self.input.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes a frame of `length` bytes with its header, to be sent with [`FrameStream::flush`]; `false` where there is
    /// no room before the other side has read.
    ///
    /// # Errors
    /// The frame cannot be read from the guest's memory.
    pub fn send(&mut self, mut frame: Reader, length: usize) -> Result<bool, DeviceError> {
        if self.output.len() >= OUTPUT && self.flush() {
            return Ok(false);
        }
        frame.skip(HEADER)?;
        let length = length.saturating_sub(HEADER);
        self.output.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        let start = self.output.len();
        self.output.resize(start + length, 0);
        frame.read_exact(self.output.get_mut(start..).unwrap_or_default())?;
        Ok(true)
    }

    /// Sends what the other side takes; `true` where something is left, and goes when the socket is writable again.
    pub fn flush(&mut self) -> bool {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The other side has gone, which reading tells as well.
                Err(_) => break,
            }
        }
        self.output.clear();
        self.sent = 0;
        false
    }
}

impl AsRawFd for FrameStream {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
