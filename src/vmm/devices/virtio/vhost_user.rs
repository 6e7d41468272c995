// SPDX-License-Identifier: Apache-2.0
//! vhost-user, the front end's side (QEMU `docs/interop/vhost-user.rst`): the few requests that hand a device's queues
//! to another process, the back end, which then works on guest memory by itself.
//!
//! The back end is trusted with guest memory, and with nothing else: what it answers is read up to the expected length,
//! for a limited time, and any other answer ends the relation.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::queue::Rings;
use crate::vmm::memory::Ram;

/// A back end may have been started just now, on a busy host.
const FIRST_PATIENCE: Duration = Duration::from_secs(30);
/// How long an answer may take: to stop a queue, the back end finishes what it is at.
const PATIENCE: Duration = Duration::from_secs(10);
/// Flags of a message: version of the protocol, "is a reply", "wants a reply".
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// `VHOST_USER_F_PROTOCOL_FEATURES`, a feature bit that virtio leaves free.
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`.
const REPLY_ACK: u64 = 1 << 3;
/// Feature bits that every device here offers to its driver.
const REQUIRED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Regions that `SET_MEM_TABLE` can carry.
const MAX_REGIONS: usize = 8;

/// Why a back end is of no use (any more).
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// It is not there.
    #[error("nobody answers there: {0}")]
    Connect(io::Error),
    /// It has gone.
    #[error("it has ended")]
    Gone,
    /// It does not answer in time, or the socket fails.
    #[error("{request:?}: {source}")]
    Socket {
        /// What it was asked.
        request: Request,
        /// The system's reason.
        source: io::Error,
    },
    /// It answered something else than what was asked.
    #[error("{request:?}: its answer makes no sense")]
    Answer {
        /// What it was asked.
        request: Request,
    },
    /// It could not do what it was asked.
    #[error("{request:?}: it refused, with code {code}")]
    Refused {
        /// What it was asked.
        request: Request,
        /// Its code.
        code: u64,
    },
    /// It is not for virtio 1, or for memory like ours.
    #[error("it cannot do what is needed: {0}")]
    Lacks(&'static str),
}

/// Requests by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "the specification's names")]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    SetVringEnable = 18,
}

/// A queue that the back end is to serve.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Where its rings are.
    pub rings: Rings,
    /// What the back end waits on.
    pub kick: RawFd,
    /// What it writes to when it has used buffers.
    pub call: RawFd,
}

/// A connection to a back end.
#[derive(Debug)]
pub struct Backend {
    socket: UnixStream,
    patience: Duration,
    features: u64,
    acknowledges: bool,
}

impl Backend {
    /// Connects to the back end that listens at `path`, and agrees with it on the protocol.
    ///
    /// # Errors
    /// Nobody listens, or the back end is not for us.
    pub fn connect(path: &Path) -> Result<Self, VhostUserError> {
        Self::greet(UnixStream::connect(path).map_err(VhostUserError::Connect)?)
    }

    /// The same on a connection that is there.
    ///
    /// # Errors
    /// The back end is not for us.
    pub fn greet(socket: UnixStream) -> Result<Self, VhostUserError> {
        let mut backend = Self { socket, patience: FIRST_PATIENCE, features: 0, acknowledges: false };
        backend.send(Request::SetOwner, &[], &[])?;
        backend.features = backend.ask_number(Request::GetFeatures)?;
        if backend.features & REQUIRED != REQUIRED {
            return Err(VhostUserError::Lacks("VIRTIO_F_VERSION_1 and VIRTIO_F_INDIRECT_DESC"));
        }
        if backend.features & PROTOCOL_FEATURES != 0 {
            let offered = backend.ask_number(Request::GetProtocolFeatures)?;
            backend.send(Request::SetProtocolFeatures, &(offered & REPLY_ACK).to_ne_bytes(), &[])?;
            backend.acknowledges = offered & REPLY_ACK != 0;
        }
        backend.patience = PATIENCE;
        Ok(backend)
    }

    /// Readable once the back end has gone, or says what it was not asked.
    pub fn socket(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Hands guest memory and `queues` over, numbered in order, none of which has been used yet; `features` are what the
    /// driver has agreed to.
    ///
    /// # Errors
    /// The back end has gone, or refuses.
    pub fn start(&mut self, memory: &Ram, features: u64, queues: &[Served]) -> Result<(), VhostUserError> {
        self.set(Request::SetFeatures, &(features | self.features & PROTOCOL_FEATURES).to_ne_bytes(), &[])?;
        let (table, files) = memory_table(memory)?;
        self.set(Request::SetMemTable, &table, &files)?;
        for (number, queue) in (0u32..).zip(queues) {
            let with = |value: u32| pair(number, value);
            self.set(Request::SetVringNum, &with(queue.rings.size.get().into()), &[])?;
            self.set(Request::SetVringBase, &with(0), &[])?;
            self.set(Request::SetVringAddr, &addresses(number, &queue.rings), &[])?;
            // Interrupts first: once it has the kick, it is at work.
            self.set(Request::SetVringCall, &u64::from(number).to_ne_bytes(), &[queue.call])?;
            self.set(Request::SetVringKick, &u64::from(number).to_ne_bytes(), &[queue.kick])?;
        }
        if self.features & PROTOCOL_FEATURES != 0 {
            for (number, _) in (0u32..).zip(queues) {
                self.set(Request::SetVringEnable, &pair(number, 1), &[])?;
            }
        }
        Ok(())
    }

    /// Has the back end let go of a queue; on return it touches its buffers no more.
    ///
    /// # Errors
    /// The back end has gone, or does not answer.
    pub fn stop(&mut self, number: u32) -> Result<(), VhostUserError> {
        let request = Request::GetVringBase;
        self.send(request, &pair(number, 0), &[])?;
        let [a, b, c, d, ..] = self.answer::<8>(request)?;
        if u32::from_ne_bytes([a, b, c, d]) == number { Ok(()) } else { Err(VhostUserError::Answer { request }) }
    }

    /// Sends a request, and waits for word that it is done where the back end gives such.
    fn set(&mut self, request: Request, payload: &[u8], files: &[RawFd]) -> Result<(), VhostUserError> {
        self.send(request, payload, files)?;
        if !self.acknowledges {
            return Ok(());
        }
        match u64::from_ne_bytes(self.answer(request)?) {
            0 => Ok(()),
            code => Err(VhostUserError::Refused { request, code }),
        }
    }

    fn ask_number(&mut self, request: Request) -> Result<u64, VhostUserError> {
        self.send(request, &[], &[])?;
        Ok(u64::from_ne_bytes(self.answer(request)?))
    }

    fn send(&self, request: Request, payload: &[u8], files: &[RawFd]) -> Result<(), VhostUserError> {
        let failed = |source| failed(request, source);
        self.socket.set_write_timeout(Some(self.patience)).map_err(failed)?;
        let flags = if self.acknowledges { VERSION | NEED_REPLY } else { VERSION };
        let length = u32::try_from(payload.len()).map_err(|_| VhostUserError::Answer { request })?;
        let mut message = Vec::with_capacity(12 + payload.len());
        [request as u32, flags, length].iter().for_each(|word| message.extend(word.to_ne_bytes()));
        message.extend(payload);
        let sent = self.socket.send_with_fds(&[message.as_slice()], files);
        match sent.map_err(|error| failed(io::Error::from_raw_os_error(error.errno())))? {
            count if count == message.len() => Ok(()),
            _ => Err(failed(ErrorKind::WriteZero.into())),
        }
    }

    /// Reads the answer to `request`, whose payload has `N` bytes.
    fn answer<const N: usize>(&mut self, request: Request) -> Result<[u8; N], VhostUserError> {
        let deadline = Instant::now() + self.patience;
        let mut words = [[0; 4]; 3];
        self.read_exact(words.as_flattened_mut(), deadline).map_err(|source| failed(request, source))?;
        let [number, flags, length] = words.map(u32::from_ne_bytes);
        let sound = number == request as u32 && flags & (3 | REPLY) == VERSION | REPLY;
        if !sound || usize::try_from(length) != Ok(N) {
            return Err(VhostUserError::Answer { request });
        }
        let mut payload = [0; N];
        self.read_exact(&mut payload, deadline).map_err(|source| failed(request, source))?;
        Ok(payload)
    }

    /// Descriptors that come along are not taken.
    fn read_exact(&mut self, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buffer.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn failed(request: Request, source: io::Error) -> VhostUserError {
    match source.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => VhostUserError::Gone,
        _ => VhostUserError::Socket { request, source },
    }
}

fn pair(number: u32, value: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (number.to_ne_bytes(), value.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

/// `struct vhost_vring_addr`. "User addresses" need only agree with those of the memory table: guest addresses do, and
/// tell nobody where this process has its memory.
fn addresses(number: u32, rings: &Rings) -> Vec<u8> {
    let words = [rings.descriptors, rings.used, rings.available, 0];
    pair(number, 0).into_iter().chain(words.iter().flat_map(|word| word.to_ne_bytes())).collect()
}

/// The payload of `SET_MEM_TABLE`, and the files that belong to it.
fn memory_table(memory: &Ram) -> Result<(Vec<u8>, Vec<RawFd>), VhostUserError> {
    let count = memory.iter().count();
    if count > MAX_REGIONS {
        return Err(VhostUserError::Lacks("room for so many regions of guest memory"));
    }
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let (mut table, mut files) = (pair(count, 0).to_vec(), Vec::new());
    for region in memory.iter() {
        let place = region.file_offset().ok_or(VhostUserError::Lacks("memory without a file"))?;
        let guest = region.start_addr().0;
        [guest, region.len(), guest, place.start()].iter().for_each(|word| table.extend(word.to_ne_bytes()));
        files.push(place.file().as_raw_fd());
    }
    Ok((table, files))
}

#[cfg(test)]
#[path = "vhost_user_test.rs"]
mod tests;
