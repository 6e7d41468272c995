// SPDX-License-Identifier: Apache-2.0
//! DNS over TCP (RFC 7766): messages with their length before them, on a connection that does not block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// What is sent to a side that does not read, at most.
const MAX_OUTPUT: usize = 256 << 10;

/// A connection that carries messages.
pub(super) struct Messages {
    stream: TcpStream,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The longest message that is taken.
    limit: usize,
}

impl Messages {
    /// On a stream that does not block.
    pub fn new(stream: TcpStream, limit: usize) -> Self {
        Self { stream, input: Vec::new(), output: Vec::new(), limit }
    }

    /// The stream.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends a message as soon as the other side takes it.
    ///
    /// # Errors
    /// The connection broke, or the other side does not read.
    pub fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u16::try_from(message.len()).map_err(|_| io::Error::from(ErrorKind::InvalidInput))?;
        if self.output.len() + message.len() > MAX_OUTPUT {
            return Err(ErrorKind::OutOfMemory.into());
        }
        self.output.extend_from_slice(&length.to_be_bytes());
        self.output.extend_from_slice(message);
        self.flush()
    }

    /// Sends what is waiting, as far as the other side takes it.
    ///
    /// # Errors
    /// The connection broke.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => _ = self.output.drain(..count),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next whole message; `None` where it has not all come yet.
    ///
    /// # Errors
    /// The connection ended or broke, or the message is too long.
    pub fn receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.input.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if length > self.limit {
                    return Err(ErrorKind::InvalidData.into());
                }
                if let Some(message) = rest.get(..length) {
                    let message = message.to_vec();
                    self.input.drain(..2 + length);
                    return Ok(Some(message));
                }
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
