// SPDX-License-Identifier: Apache-2.0
//! System calls on a connected unix socket: none waits, none raises `SIGPIPE`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Pieces that one call takes at most (`IOV_MAX`).
pub const MAX_VECTORS: usize = 1024;

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid `msghdr`: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

fn count(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sends as much of `vectors` as the socket takes; gives the bytes.
///
/// # Errors
/// `WouldBlock` where it takes nothing now, `BrokenPipe` where the peer reads no more.
///
/// # Safety
/// Each vector must be good for reads during the call. What it points to may change meanwhile.
pub unsafe fn send(socket: &OwnedFd, vectors: &mut [libc::iovec]) -> io::Result<usize> {
    let message = message(vectors);
    // SAFETY: `message` points to live vectors, and what they point to is the caller's promise.
    count(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// Fills `vectors` with what is there; gives the bytes, 0 at the end of the stream.
///
/// # Errors
/// `WouldBlock` where nothing is there, `ConnectionReset` where the peer closed without having read everything.
///
/// # Safety
/// Each vector must be good for writes during the call, and no Rust reference may point into it.
pub unsafe fn receive(socket: &OwnedFd, vectors: &mut [libc::iovec]) -> io::Result<usize> {
    let mut message = message(vectors);
    // SAFETY: `message` points to live vectors, and what they point to is the caller's promise.
    count(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
}

/// Sends bytes of our own.
///
/// # Errors
/// See [`send`].
pub fn send_bytes(socket: &OwnedFd, pieces: [&[u8]; 2]) -> io::Result<usize> {
    let vector = |piece: &[u8]| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
    // SAFETY: the vectors are made of live slices, and sending only reads them.
    unsafe { send(socket, &mut pieces.map(vector)) }
}

/// Fills `buffer` with what is there, without taking it off the socket where `peek` is set.
///
/// # Errors
/// See [`receive`].
pub fn receive_bytes(socket: &OwnedFd, buffer: &mut [u8], peek: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | if peek { libc::MSG_PEEK } else { 0 };
    // SAFETY: `buffer` is live and good for writes of its length.
    count(unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) })
}

/// Shuts one direction down; a peer that is gone already is no error.
pub fn shut(socket: &OwnedFd, how: i32) {
    // SAFETY: the descriptor is open; the call touches no memory. It fails only where there is nothing left to shut.
    unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}
