// SPDX-License-Identifier: Apache-2.0
//! Network card (virtio 1.3 §5.1) on a TAP interface, or on a stream to a network in user space such as passt.
//!
//! With a TAP, frames go between guest memory and the TAP in one system call and without a copy here. The header before each
//! frame is the guest's and the host kernel's affair: the TUN driver checks every field of it against the frame, and
//! refuses (`EINVAL`) or segments in software what the guest made up, so it is passed on unread.

mod acknowledgement;
mod mac;
mod receive;
mod stream;
mod tap;
mod wire;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4, TUN_F_USO6, c_uint};
use smallvec::SmallVec;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::{Chain, DeviceError, Queue, QueueSize, Session, Source, VirtioDevice, copy_config, device_type};
use crate::vmm::guest_log::guest_warn;
use acknowledgement::{MAX_ACKNOWLEDGEMENT, is_acknowledgement};
pub use mac::{MacAddress, MacError};
use receive::{Format, Link, Receiver, Served};
pub use stream::{FRAME_STREAM_MTU, FrameStream};
pub use tap::{NetError, Tap};
pub use wire::Wire;

/// Bytes of the header before each frame (virtio 1.3 §5.1.6: with `num_buffers`, without hashes).
pub const HEADER: usize = 12;
/// Bytes of the longest frame with its header: 64 KiB of IP packet, Ethernet header, VLAN tag (virtio 1.3 §5.1.6.3.1).
pub const MAX_FRAME: usize = 65562 + HEADER;
/// An Ethernet header: the kernel refuses less.
const MIN_FRAME: usize = HEADER + 14;
/// Room for an ordinary frame, where no offload makes longer ones; jumbo frames go by way of the spill buffer.
const ORDINARY_FRAME: usize = HEADER + 1522;

/// Bytes after which the driver is told without waiting for the end of a batch: it works on them while we go on. A
/// driver that is at work already has asked not to be interrupted, so this costs nothing then.
const NOTIFY_EVERY: usize = 64 << 10;

/// Nobody in the guest waits for the buffers of TCP's acknowledgements, so its driver hears that they are sent with the
/// next interrupt for another reason: when it is at work anyway. At the latest it does after this time.
const ACKNOWLEDGEMENTS_PATIENCE: Duration = Duration::from_millis(20);
/// Or when there are as many of them.
const ACKNOWLEDGEMENTS: u16 = 32;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Sources of events.
const WIRE: u16 = 0;
const TIMER: u16 = 1;
const QUEUES: [QueueSize; 2] = [QueueSize::DEFAULT; 2];
/// Frames, and bytes, that are sent for one event; the rest is left for the next.
const TRANSMIT_BUDGET: u32 = 256;
const TRANSMIT_BYTES: usize = 4 << 20;

/// Offsets in configuration space (virtio 1.3 §5.1.4).
mod config {
    pub const STATUS: usize = 6;
    pub const MTU: usize = 10;
    pub const SIZE: usize = 12;
}

/// What a guest may leave undone in frames that it sends: a TAP with a virtio header always takes these.
const SEND_OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO;

/// What the host may leave undone in frames to the guest: feature bit, and how the TAP calls it.
const RECEIVE_OFFLOADS: [(u32, c_uint); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO),
    (VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6),
];

/// How a guest's network card is connected.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// What it is connected to.
    pub backend: NetBackend,
    /// The guest's address; without one, [`MacAddress::of_tap`] of the backend's name.
    #[serde(default)]
    pub mac: Option<MacAddress>,
}

impl NetConfig {
    /// The guest's address.
    pub fn address(&self) -> MacAddress {
        self.mac.unwrap_or_else(|| match &self.backend {
            NetBackend::Tap(name) => MacAddress::of_tap(name),
            NetBackend::Passt(path) => MacAddress::of_tap(&path.to_string_lossy()),
        })
    }
}

/// The other end of a guest's network card.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// An existing TAP interface, by name.
    Tap(String),
    /// The Unix socket of passt, or of anything else that exchanges frames as QEMU's `-netdev stream` does.
    Passt(PathBuf),
}

/// The network device.
pub struct Net {
    wire: Wire,
    config: [u8; config::SIZE],
    features: u64,
    receiver: Receiver,
    /// The other end would not take a frame; it is sent when there is room again.
    blocked: bool,
    sent: Sent,
    /// A refused frame has been told of; the rest is only counted.
    told: bool,
    packets: u64,
    bytes: u64,
    drops: u64,
}

/// Frames that were sent and of which the driver has not been told yet.
struct Sent {
    /// Not acknowledgements alone.
    awaited: bool,
    /// Ends the patience with acknowledgements. Where the host gives no timer, there is none.
    timer: Option<TimerFd>,
    timed: bool,
}

enum Outcome {
    Sent,
    Dropped,
    Blocked,
}

impl Net {
    /// Opens the TAP, or connects to the socket.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn open(config: &NetConfig) -> Result<Self, NetError> {
        let wire = match &config.backend {
            NetBackend::Tap(name) => Wire::Tap(Tap::open(name)?),
            NetBackend::Passt(path) => Wire::Stream(FrameStream::connect(path)?),
        };
        Ok(Self::new(wire, config.address()))
    }

    /// Takes over a TAP that was opened, with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, by someone with the right to.
    ///
    /// # Errors
    /// [`NetError::Format`], where it is something else.
    pub fn from_tap(tap: File, mac: MacAddress) -> Result<Self, NetError> {
        Ok(Self::new(Wire::Tap(Tap::from_file(tap)?), mac))
    }

    /// A card at one end of `wire`.
    pub fn new(wire: Wire, mac: MacAddress) -> Self {
        let mut features = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        if let Wire::Tap(tap) = &wire {
            features |= SEND_OFFLOADS;
            for (feature, offload) in RECEIVE_OFFLOADS {
                features |= u64::from(tap.offloads() & offload != 0) << feature;
            }
            // The kernels that can leave UDP segments to us are those that take them from us.
            features |= u64::from(tap.offloads() & TUN_F_USO4 != 0) << VIRTIO_NET_F_HOST_USO;
        }
        let mut config = [0; config::SIZE];
        put(&mut config, 0, &mac.bytes());
        // Less than 1280 would break IPv6 in the guest, 68 is the least that is allowed (virtio 1.3 §5.1.4.1).
        if let Some(mtu) = wire.mtu().filter(|&mtu| mtu >= 1280) {
            features |= 1 << VIRTIO_NET_F_MTU;
            put(&mut config, config::MTU, &mtu.to_le_bytes());
        }
        let mut net = Self {
            wire,
            config,
            features,
            receiver: Receiver::new(),
            blocked: false,
            sent: Sent { awaited: false, timer: TimerFd::new().ok(), timed: false },
            told: false,
            packets: 0,
            bytes: 0,
            drops: 0,
        };
        net.set_link(true);
        net
    }

    /// Sets the link's state; `true` where that is a change.
    fn set_link(&mut self, up: bool) -> bool {
        let status = if up { [VIRTIO_NET_S_LINK_UP.to_le_bytes()[0], 0] } else { [0; 2] };
        let before = self.config;
        put(&mut self.config, config::STATUS, &status);
        before != self.config
    }

    /// Follows a look at the host's side.
    fn settle(&mut self, served: Served, session: &mut Session) -> Result<(), DeviceError> {
        if served.link == Link::Gone && self.set_link(false) {
            log::warn!("the host's end of a guest's network has gone: its link is down");
            session.interrupt.config_change();
        }
        if served.interrupted {
            session.queue(TRANSMIT)?.mark_told();
            self.sent.awaited = false;
        }
        Ok(())
    }

    fn transmit(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.blocked = false;
        let result = self.send_batch(session.queue(TRANSMIT)?);
        self.blocked |= self.wire.flush();
        result?;
        if matches!(self.wire, Wire::Tap(_)) && session.queue(TRANSMIT)?.untold() > 0 {
            // The host's own network has often answered by now, and then one interrupt is for both.
            let served = self.receiver.readable(&mut self.wire, session.queue(RECEIVE)?)?;
            self.settle(served, session)?;
        }
        self.tell_of_sent(session.queue(TRANSMIT)?)
    }

    /// Tells the driver of what was sent, or sees to it that it is told of acknowledgements in time.
    fn tell_of_sent(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        let untold = queue.untold();
        if untold == 0 {
            return Ok(());
        }
        if !self.sent.awaited && untold < ACKNOWLEDGEMENTS {
            if let Some(timer) = self.sent.timer.as_mut().filter(|_| !self.sent.timed) {
                self.sent.timed = timer.reset(ACKNOWLEDGEMENTS_PATIENCE, None).is_ok();
            }
            if self.sent.timed {
                return Ok(());
            }
        }
        self.sent.awaited = false;
        Ok(queue.notify_driver()?)
    }

    fn send_batch(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        let (mut budget, mut bytes, mut untold) = (TRANSMIT_BUDGET, TRANSMIT_BYTES, 0);
        queue.disable_notification()?;
        while budget > 0 && bytes > 0 {
            budget -= 1;
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    queue.disable_notification()?;
                    continue;
                }
                return Ok(());
            };
            if untold >= NOTIFY_EVERY {
                untold = 0;
                queue.notify_driver()?;
            }
            let length = chain.readable_len();
            match self.send(&chain, length)? {
                Outcome::Sent => {
                    self.packets += 1;
                    self.bytes += (length - HEADER) as u64;
                }
                Outcome::Dropped => self.drops += 1,
                Outcome::Blocked => {
                    queue.undo_pop();
                    self.blocked = true;
                    return Ok(());
                }
            }
            queue.push(chain.head(), 0)?;
            bytes = bytes.saturating_sub(length);
            untold += length;
            self.sent.awaited = self.sent.awaited || !acknowledges(&chain, length)?;
        }
        queue.reschedule();
        Ok(())
    }

    fn send(&mut self, chain: &Chain, length: usize) -> Result<Outcome, DeviceError> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            return Ok(Outcome::Dropped);
        }
        let tap = match &mut self.wire {
            Wire::Tap(tap) => tap,
            Wire::Stream(stream) => {
                return Ok(if stream.send(chain.reader(), length)? { Outcome::Sent } else { Outcome::Blocked });
            }
        };
        let vectors: SmallVec<[_; 4]> = chain.reader().io_vectors(length)?.collect();
        loop {
            // SAFETY: the vectors lead into guest memory, which `chain` keeps.
            let error = match unsafe { tap.send(&vectors) } {
                Ok(_) => return Ok(Outcome::Sent),
                Err(error) => error,
            };
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(Outcome::Blocked),
                _ => {
                    if !std::mem::replace(&mut self.told, true) {
                        guest_warn(format_args!("the TAP refused a frame, it and such others are dropped: {error}"));
                    }
                    return Ok(Outcome::Dropped);
                }
            }
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        device_type::NET
    }

    fn name(&self) -> &str {
        "net"
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[QueueSize] {
        &QUEUES
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        session.queue(TRANSMIT)?;
        session.queue(RECEIVE)?.disable_notification()?;
        let mut offloads = 0;
        // All others build on GUEST_CSUM (virtio 1.3 §5.1.3.1), and the TAP refuses them without it.
        if session.has(VIRTIO_NET_F_GUEST_CSUM) {
            let agreed = RECEIVE_OFFLOADS.iter().filter(|(feature, _)| session.has(*feature));
            offloads = agreed.fold(0, |bits, (_, offload)| bits | offload);
        }
        // The TAP knows UDP segmentation only for both IP versions.
        if offloads & (TUN_F_USO4 | TUN_F_USO6) != TUN_F_USO4 | TUN_F_USO6 {
            offloads &= !(TUN_F_USO4 | TUN_F_USO6);
        }
        match self.wire.set_offloads(offloads) {
            Err(error) if Tap::is_gone(&error) => _ = self.set_link(false),
            Err(source) => return Err(DeviceError::Host { what: "setting the TAP's offloads", source }),
            Ok(()) => {}
        }
        let format = Format {
            mergeable: session.has(VIRTIO_NET_F_MRG_RXBUF),
            room: if offloads & !TUN_F_CSUM == 0 { ORDINARY_FRAME } else { MAX_FRAME },
            clear_flags: !session.has(VIRTIO_NET_F_GUEST_CSUM),
        };
        self.receiver.start(format, &mut self.wire);
        self.blocked = false;
        // The timer of a session before this one has gone off unseen.
        (self.sent.awaited, self.sent.timed) = (false, false);
        Ok(())
    }

    fn reset(&mut self, _session: &mut Session) {
        self.receiver.clear();
        // What queues up from here on is for a driver that has not said what it can take.
        if let Err(error) = self.wire.set_offloads(0)
            && !Tap::is_gone(&error)
        {
            guest_warn(format_args!("cannot take back the offloads of a TAP: {error}"));
        }
    }

    /// Buffers in hand go back to the ring. A frame that was cut off by the want of them is lost, as frames may be.
    fn rest(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        session.queue(TRANSMIT)?.notify_driver()?;
        self.receiver.put_back(session.queue(RECEIVE)?);
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, session: &mut Session) -> Result<(), DeviceError> {
        if queue == TRANSMIT {
            return self.transmit(session);
        }
        let served = self.receiver.refilled(&mut self.wire, session.queue(RECEIVE)?)?;
        self.settle(served, session)
    }

    fn sources(&self) -> Vec<Source> {
        // On edges: while the guest has no buffers, a readable TAP must not wake anyone.
        let events = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        let mut sources = vec![Source { fd: self.wire.as_raw_fd(), id: WIRE, events }];
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        sources.extend(self.sent.timer.iter().map(|timer| Source { fd: timer.as_raw_fd(), id: TIMER, events }));
        sources
    }

    fn source_event(&mut self, id: u16, events: EventSet, session: &mut Session) -> Result<(), DeviceError> {
        if id == TIMER {
            self.sent.timed = false;
            return Ok(session.queue(TRANSMIT)?.notify_driver()?);
        }
        if events.contains(EventSet::OUT) && self.blocked {
            self.transmit(session)?;
        }
        // An error or hang-up shows up in the read as well.
        if events.intersects(EventSet::IN | EventSet::ERROR | EventSet::HANG_UP) {
            let served = self.receiver.readable(&mut self.wire, session.queue(RECEIVE)?)?;
            self.settle(served, session)?;
        }
        Ok(())
    }

    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("rx_packets", self.receiver.packets),
            ("rx_bytes", self.receiver.bytes),
            ("rx_drops", self.receiver.drops),
            ("tx_packets", self.packets),
            ("tx_bytes", self.bytes),
            ("tx_drops", self.drops),
        ]
    }
}

fn acknowledges(chain: &Chain, length: usize) -> Result<bool, DeviceError> {
    let mut buffer = [0; MAX_ACKNOWLEDGEMENT];
    let Some(frame) = buffer.get_mut(..length) else { return Ok(false) };
    chain.reader().read_exact(frame)?;
    Ok(is_acknowledgement(frame))
}

fn put(config: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in config.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

#[cfg(test)]
#[path = "net_test.rs"]
mod tests;
