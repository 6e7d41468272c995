// SPDX-License-Identifier: Apache-2.0
//! Connecting to a guest's vsock port through the VMM's unix socket, as with Firecracker and Cloud Hypervisor: the
//! host says `CONNECT <port>\n`, the VMM answers `OK <local port>\n` when the guest has accepted, and closes otherwise.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest answer of the VMM: `OK 4294967295\n`.
const MAX_ANSWER: usize = 14;

/// Connects to `port` of the guest whose VMM listens at `socket`, waiting at most `patience` for each step. The time
/// limit on reads and writes stays in place; change it with [`UnixStream::set_read_timeout`].
///
/// # Errors
/// Those of the socket; `ConnectionRefused` if nothing in the guest listens on `port`; `InvalidData` if something else
/// than a VMM answers.
pub fn connect(socket: &Path, port: u32, patience: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    read_answer(&mut stream, port)?;
    Ok(stream)
}

/// Reads byte by byte: what follows the line belongs to the guest.
fn read_answer(stream: &mut impl Read, port: u32) -> io::Result<()> {
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => {
                let why = format!("the guest refused vsock port {port}: nothing listens there (yet)");
                return Err(io::Error::new(io::ErrorKind::ConnectionRefused, why));
            }
            Ok(_) if byte == *b"\n" => break,
            Ok(_) if answer.len() < MAX_ANSWER => answer.extend_from_slice(&byte),
            Ok(_) => return Err(not_a_vmm(&answer)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    match answer.strip_prefix(b"OK ") {
        Some(local) if !local.is_empty() && local.iter().all(u8::is_ascii_digit) => Ok(()),
        _ => Err(not_a_vmm(&answer)),
    }
}

fn not_a_vmm(answer: &[u8]) -> io::Error {
    let why = format!("expected `OK <port>` from the VMM, got `{}`", answer.escape_ascii());
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(answer: &[u8]) -> Result<usize, io::ErrorKind> {
        let mut rest = answer;
        read_answer(&mut rest, 7).map(|()| rest.len()).map_err(|error| error.kind())
    }

    #[test]
    fn what_follows_the_answer_is_left_alone() {
        assert_eq!(outcome(b"OK 1073741824\nhello"), Ok(5));
    }

    #[test]
    fn a_closed_connection_is_a_refusal() {
        assert_eq!(outcome(b""), Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(outcome(b"OK 1"), Err(io::ErrorKind::ConnectionRefused));
    }

    #[test]
    fn other_answers_are_not_of_a_vmm() {
        for answer in [&b"OK \n"[..], b"OK x\n", b"220 smtp\n", b"\n", &[b'x'; 4096]] {
            assert_eq!(outcome(answer), Err(io::ErrorKind::InvalidData));
        }
    }
}
