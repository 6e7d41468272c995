// SPDX-License-Identifier: Apache-2.0
//! What a snapshot holds of a virtio device. Guest memory has the rest: rings, buffers, and what is in them.

use serde::{Deserialize, Serialize};

use super::DeviceError;
use super::queue::Position;
use crate::vmm::file_identity::FileIdentity;

/// A device behind its registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device type (virtio 1.3 §5).
    pub device_type: u32,
    /// `DeviceFeaturesSel`.
    pub device_features_select: u32,
    /// `DriverFeaturesSel`.
    pub driver_features_select: u32,
    /// Feature bits that the driver accepted.
    pub driver_features: u64,
    /// `QueueSel`.
    pub queue_select: u32,
    /// `Status`.
    pub status: u32,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub generation: u32,
    /// Whether the driver has the device at work: not before `DRIVER_OK`, nor after a mistake.
    pub active: bool,
    /// All queues.
    pub queues: Vec<QueueState>,
    /// The start of the configuration space, to tell whether it has changed.
    pub config: Vec<u8>,
    /// The device's own.
    pub device: DeviceState,
}

/// A queue's registers, and where the device is in its rings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// `QueueNum`.
    pub size: u32,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`.
    pub descriptors: u64,
    /// `QueueDriver`.
    pub available: u64,
    /// `QueueDevice`.
    pub used: u64,
    /// The driver has notified, and the device not looked yet.
    pub notified: bool,
    /// Of a queue at work.
    pub position: Option<Position>,
}

/// What a device remembers beyond its queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// Nothing.
    Plain,
    /// Balloon: what was asked for and what was given, in pages; the buffer that waits to ask for statistics.
    Balloon {
        /// `num_pages`.
        target: u32,
        /// `actual`.
        actual: u32,
        /// `poison_val`.
        poison: u32,
        /// Head of the driver's buffer.
        statistics_buffer: Option<u16>,
    },
    /// Disk.
    Block {
        /// The driver is promised that what is answered is durable.
        write_through: bool,
        /// The disk, unless the guest is to have another.
        disk: Option<FileIdentity>,
    },
    /// Persistent memory.
    Pmem {
        /// Where the guest has it.
        guest_address: u64,
        /// Bytes that the guest has of it.
        length: u64,
        /// The file, unless the guest is to have another.
        file: Option<FileIdentity>,
    },
    /// Host-guest sockets.
    Vsock {
        /// The guest's context id.
        cid: u64,
        /// The guest knows of connections, which are gone after a restore.
        connected: bool,
        /// For the next client of the host.
        next_host_port: u32,
    },
}

/// Why a device cannot take up what another one left.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is of another type.
    #[error("the snapshot has a device of type {found} there, and this is one of type {here}")]
    Type {
        /// Type in the snapshot.
        found: u32,
        /// Type of the device.
        here: u32,
    },
    /// The driver relies on something that this device does not have.
    #[error("its driver was offered features {missing:#x}, which it does not have now")]
    Features {
        /// Bits.
        missing: u64,
    },
    /// The file behind it is not what it was.
    #[error("{0}")]
    File(String),
    /// The state makes no sense.
    #[error("its state in the snapshot makes no sense: {0}")]
    Nonsense(&'static str),
    /// Rings that cannot be.
    #[error("its state in the snapshot makes no sense: {0}")]
    Device(#[from] DeviceError),
}
