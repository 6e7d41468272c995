// SPDX-License-Identifier: Apache-2.0
//! Listening and connecting on AF_VSOCK (`vsock(7)`).

use rustix::fd::OwnedFd;
use rustix::io::Result;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, connect as start_connection, listen as start_listening, socket_with,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Any context id: that of this guest, also after a snapshot is restored under another one.
const VMADDR_CID_ANY: u32 = u32::MAX;

/// The host.
const VMADDR_CID_HOST: u32 = 2;

/// `struct sockaddr_vm` of `linux/vm_sockets.h`.
#[repr(C)]
struct SocketAddrVsock {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

// SAFETY: the struct has the layout of sockaddr_vm, and the pointer is to `self` in full for the duration of the call.
unsafe impl SocketAddrArg for SocketAddrVsock {
    unsafe fn with_sockaddr<R>(&self, call: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        const LENGTH: SocketAddrLen = 16;
        const { assert!(size_of::<SocketAddrVsock>() == 16) };
        call(core::ptr::from_ref(self).cast(), LENGTH)
    }
}

impl SocketAddrVsock {
    fn new(cid: u32, port: u32) -> Self {
        Self { family: AddressFamily::VSOCK.as_raw(), reserved: 0, port, cid, flags: 0, zero: [0; 3] }
    }
}

/// A connection to `port` of the host. It blocks; the kernel gives up after two seconds.
///
/// # Errors
/// `CONNRESET` if nobody listens there.
pub fn connect(port: u32) -> Result<OwnedFd> {
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    start_connection(&socket, &SocketAddrVsock::new(VMADDR_CID_HOST, port))?;
    Ok(socket)
}

/// A socket that accepts connections to `port`, without blocking.
///
/// # Errors
/// `AFNOSUPPORT` if the kernel has no vsock. A missing *device* is no error: nobody will ever connect.
pub fn listen(port: u32) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    let address = SocketAddrVsock::new(VMADDR_CID_ANY, port);
    bind(&socket, &address)?;
    start_listening(&socket, BACKLOG)?;
    Ok(socket)
}
