// SPDX-License-Identifier: Apache-2.0
//! Host-guest sockets (virtio 1.3 §5.10), with unix sockets as the host's end.
//!
//! - The host connects to the unix socket at `PATH` and sends `CONNECT PORT\n`; once a program in the guest has
//!   accepted on that port, it gets `OK HOST_PORT\n`, and from there on the socket is the connection. It is closed
//!   where nobody in the guest listens.
//! - The guest connects to context id 2, port `PORT`; it reaches whoever listens on the unix socket `PATH_PORT`, and
//!   is reset where nobody does.
//!
//! Data goes between guest buffers and sockets without a copy in between, except what a slow host reader cannot take,
//! which waits here within the credit that the guest was given. All sockets wait in one epoll set of the device's own
//! (edge-triggered, so that a stream that cannot go on costs nothing), which the event loop sees as one descriptor.
//!
//! Files: `packet` (headers), `credit`, `stream` (one connection), `table` (all of them), `from_guest` (tx queue),
//! `to_guest` (rx queue), `from_host` (sockets and time), `endpoint` (paths), `io` (system calls).

pub mod credit;
mod endpoint;
mod from_guest;
mod from_host;
mod io;
pub mod packet;
mod stream;
mod table;
#[cfg(test)]
mod tests;
mod to_guest;

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::timerfd::TimerFd;

use super::chain::used_length;
use super::{
    DeviceError, DeviceState, QueueSize, RestoreError, Session, Source, VirtioDevice, copy_config, device_type,
};
pub use endpoint::Endpoint;
use packet::{HOST_CID, Header, Op, Ports, TYPE_STREAM};
use stream::Fate;
use table::{Id, Table};

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// `VIRTIO_VSOCK_F_STREAM`.
const FEATURE_STREAM: u64 = 1;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const EVENT_TRANSPORT_RESET: u32 = 0;

/// Linux fills the whole receive queue with 4 KiB buffers when it starts, which costs memory and time to boot; half
/// of the usual size still holds four full turns of a stream. It posts 8 event buffers.
const QUEUES: [QueueSize; 3] = [QueueSize::new(128).unwrap(), QueueSize::new(128).unwrap(), QueueSize::new(8).unwrap()];

/// Resets for connections that are not (or no longer) in the table, and wait for a receive buffer. With this many,
/// the guest's packets wait until it takes some of them (virtio 1.3 §5.10.6.1.1).
const MAX_RESETS: usize = 256;

/// First port that is given to a host client; guests' own clients use the lower ones.
const FIRST_HOST_PORT: u32 = 1 << 30;

/// How exactly deadlines are kept.
const TICK: Duration = Duration::from_millis(100);

/// What a vsock device is made of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Unix socket to listen on; the guest's connections go to this path with `_PORT` behind it.
    pub path: PathBuf,
    /// The guest's context id, from 3 up. Since every guest has its own unix socket, all can have the same.
    #[serde(default = "default_cid")]
    pub cid: u64,
}

fn default_cid() -> u64 {
    3
}

/// Why a vsock device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Reserved context ids (virtio 1.3 §5.10.4) and those beyond 32 bits.
    #[error("vsock context id {cid} cannot be a guest's: use 3 to 4294967294")]
    Cid {
        /// What was asked.
        cid: u64,
    },
    /// A path that ends in no file name.
    #[error("vsock path {path:?} names no file: give the path of a socket to be made")]
    NoName {
        /// What was asked.
        path: PathBuf,
    },
    /// Longer than a unix socket's address, with room for `_PORT`.
    #[error("vsock path {path:?} is too long: the system allows 96 bytes in all, and 76 in the file name")]
    TooLong {
        /// What was asked.
        path: PathBuf,
    },
    /// The directory is missing, or not accessible.
    #[error("vsock path {path:?}: cannot open directory {directory:?}: {source}; make it first")]
    Directory {
        /// What was asked.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of another kind, which is never removed.
    #[error("vsock path {path:?} exists and is not a socket: remove it, or choose another path")]
    NotASocket {
        /// What was asked.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("vsock path {path:?} is in use by a running program: stop it, or choose another path")]
    InUse {
        /// What was asked.
        path: PathBuf,
    },
    /// A socket that nobody listens on, but that cannot be removed.
    #[error("vsock path {path:?}: cannot remove the socket that an earlier run left behind: {source}")]
    Stale {
        /// What was asked.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("vsock path {path:?}: cannot listen: {source}; check that the directory is yours to write")]
    Listen {
        /// What was asked.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The kernel gave no epoll set or timer.
    #[error("cannot watch vsock connections: {0}")]
    Watch(#[source] std::io::Error),
}

#[derive(Debug, Default)]
struct Counters {
    from_host: u64,
    from_guest: u64,
    refused: u64,
    resets: u64,
    malformed: u64,
    rx_packets: u64,
    rx_bytes: u64,
    tx_packets: u64,
    tx_bytes: u64,
}

/// The device.
pub struct Vsock {
    cid: u64,
    endpoint: Arc<Endpoint>,
    epoll: Epoll,
    timer: TimerFd,
    ticking: bool,
    /// Whether new clients are left waiting, until the next tick, for want of descriptors.
    accept_paused: bool,
    /// The driver has yet to act on a transport reset; so many event buffers were left when it was told. New clients
    /// wait until then: Linux would end their connections too, without a word.
    telling: Option<u16>,
    streams: Table,
    resets: VecDeque<Header>,
    next_host_port: u32,
    counters: Counters,
}

impl Vsock {
    /// Listens on the configured path.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn open(config: &VsockConfig) -> Result<Self, VsockError> {
        if !(3..u64::from(u32::MAX)).contains(&config.cid) {
            return Err(VsockError::Cid { cid: config.cid });
        }
        let endpoint = Arc::new(Endpoint::open(&config.path)?);
        let epoll = Epoll::new().map_err(VsockError::Watch)?;
        let timer = TimerFd::new().map_err(|error| VsockError::Watch(error.into()))?;
        let watch = |fd, token| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token));
        watch(endpoint.as_raw_fd(), from_host::LISTENER).map_err(VsockError::Watch)?;
        watch(timer.as_raw_fd(), from_host::TIMER).map_err(VsockError::Watch)?;
        Ok(Self {
            cid: config.cid,
            endpoint,
            epoll,
            timer,
            ticking: false,
            accept_paused: false,
            telling: None,
            streams: Table::default(),
            resets: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            counters: Counters::default(),
        })
    }

    /// Where the guest's connections go.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(&self.endpoint)
    }

    /// Tells the guest that all its connections are gone and that its context id may have changed (virtio 1.3
    /// §5.10.6.7): for a guest that goes on in another place or from a snapshot. `false` where the driver has left no
    /// event buffer, and then it was not told.
    ///
    /// # Errors
    /// The driver's ring is broken, or its buffer too small.
    pub fn transport_reset(&mut self, session: &mut Session) -> Result<bool, DeviceError> {
        self.drop_streams();
        let queue = session.queue(EVENT)?;
        let Some(chain) = queue.pop()? else {
            return Ok(false);
        };
        let mut writer = chain.writer();
        writer.write_obj(EVENT_TRANSPORT_RESET.to_le())?;
        let written = used_length(writer.written());
        let left = queue.waiting()?;
        queue.push(chain.head(), written)?;
        queue.notify_driver()?;
        self.telling = Some(left);
        self.watch_listener(EventSet::empty());
        self.start_ticking();
        Ok(true)
    }

    /// Lets clients in again once the driver has given back an event buffer, which it does after it has acted.
    fn look_whether_told(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        if let Some(left) = self.telling
            && session.queue(EVENT)?.waiting()? > left
        {
            self.telling = None;
            self.watch_listener(EventSet::IN);
        }
        Ok(())
    }

    fn drop_streams(&mut self) {
        self.streams = Table::default();
        self.resets.clear();
    }

    /// The header of a packet to the guest on a connection.
    fn header(&self, ports: Ports, op: Op) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            op: op.number(),
            ..Header::default()
        }
    }

    /// Adds a reset for the guest. Each answers a packet of the guest's or ends a connection that it knows of, so
    /// that their number is bounded by [`MAX_RESETS`] and the table's size.
    fn queue_reset(&mut self, header: Header) {
        self.resets.push_back(header);
        self.counters.resets += 1;
    }

    /// Draws the consequences of what happened to a stream.
    fn settle(&mut self, id: Id, fate: Fate) {
        let Some(stream) = self.streams.get_mut(id) else { return };
        let ports = stream.ports;
        match fate {
            Fate::Live => {
                let (wants_turn, starved) = (stream.wants_turn(), stream.wait_for_credit());
                if starved || stream.deadline.is_some() {
                    self.start_ticking();
                }
                if wants_turn {
                    self.streams.queue(id);
                }
            }
            Fate::Over => {
                self.streams.remove(id);
                return;
            }
            Fate::Reset => {
                let drains = stream.drain();
                let header = self.header(ports, Op::Reset);
                self.queue_reset(header);
                if !drains {
                    self.streams.remove(id);
                    return;
                }
                self.streams.unbind(ports, id);
                self.start_ticking();
            }
        }
        self.watch_room(id);
    }

    fn start_ticking(&mut self) {
        if !self.ticking {
            // It fails only for times that are out of range.
            self.ticking = self.timer.reset(TICK, Some(TICK)).is_ok();
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_type::VSOCK
    }

    fn name(&self) -> &str {
        "vsock"
    }

    fn features(&self) -> u64 {
        FEATURE_STREAM
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn reset(&mut self, _session: &mut Session) {
        self.drop_streams();
        if self.telling.take().is_some() {
            self.watch_listener(EventSet::IN);
        }
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock {
            cid: self.cid,
            connected: self.streams.len() > 0 || !self.resets.is_empty() || self.telling.is_some(),
            next_host_port: self.next_host_port,
        }
    }

    /// A guest that knew of no connection, and keeps its context id, need not be told that there are none.
    fn restore(&mut self, state: &DeviceState, session: Option<&mut Session>) -> Result<(), RestoreError> {
        let DeviceState::Vsock { cid, connected, next_host_port } = *state else {
            return Err(RestoreError::Nonsense("it is not that of a vsock"));
        };
        self.next_host_port = next_host_port.max(FIRST_HOST_PORT);
        if let Some(session) = session
            && (connected || cid != self.cid)
            && !self.transport_reset(session)?
        {
            log::warn!("the guest has no buffer for the news that its vsock connections are gone");
        }
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        if queue == TX {
            self.serve_tx(session)?;
        }
        self.look_whether_told(session)?;
        self.serve_rx(session)
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.epoll.as_raw_fd(), id: 0, events: EventSet::IN }]
    }

    fn source_event(&mut self, _id: u16, _events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        self.serve_host()?;
        self.look_whether_told(session)?;
        self.serve_rx(session)
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let Counters { from_host, from_guest, refused, resets, malformed, rx_packets, rx_bytes, tx_packets, tx_bytes } =
            self.counters;
        vec![
            ("streams", u64::try_from(self.streams.len()).unwrap_or(u64::MAX)),
            ("connections_from_host", from_host),
            ("connections_from_guest", from_guest),
            ("refused", refused),
            ("resets", resets),
            ("malformed", malformed),
            ("rx_packets", rx_packets),
            ("rx_bytes", rx_bytes),
            ("tx_packets", tx_packets),
            ("tx_bytes", tx_bytes),
        ]
    }
}
