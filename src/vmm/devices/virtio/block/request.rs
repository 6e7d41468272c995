// SPDX-License-Identifier: Apache-2.0
//! Requests of a driver (virtio 1.3 §5.2.6): what a chain asks for, checked against the disk.
//!
//! Descriptor boundaries mean nothing (§2.7.4.3): the header is the first 16 readable bytes, the status the last
//! writable byte, data what lies between.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::super::{Chain, DeviceError};

/// Bytes of a sector, whatever the disk's block size (virtio 1.3 §5.2.4).
pub const SECTOR: u64 = 512;
/// Bytes of the header: type, reserved, sector.
pub const HEADER: usize = 16;
/// Buffers that a request may have beside header and status: what fits a queue of 256 without an indirect table.
pub const MAX_SEGMENTS: u32 = 254;
/// Bytes that one buffer may have.
pub const MAX_SEGMENT: u32 = 128 << 10;
/// Bytes of data in a request: what the two limits above allow.
pub const MAX_DATA: usize = 254 * (128 << 10);
/// Bytes of a serial.
pub const SERIAL: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Ranges in one discard or write-zeroes request.
pub const MAX_RANGES: u32 = 16;
/// Sectors of one such range, 2 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// Bytes of one such range's description: sector, number of sectors, flags.
const RANGE: usize = 16;

/// What the device answers in the last byte of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed, or nothing that this disk could do: beyond its end, a write to a read-only one, a broken length.
    IoError,
    /// A type or flag that the device does not know.
    Unsupported,
}

impl Status {
    /// The byte itself.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        value.to_le_bytes()[0]
    }
}

/// What is to become of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// Nobody needs its content; keeping it would be allowed.
    Discard,
    /// It is to read as zeroes and need not keep its space.
    Unmap,
    /// It is to read as zeroes and to keep its space.
    Zero,
}

/// A range to clear; within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes, not zero.
    pub length: u64,
    /// How.
    pub clearing: Clearing,
}

/// What a request asks for. Ranges lie within the disk, and the disk can do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Fill the writable part from the disk.
    Read {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Put what follows the header onto the disk.
    Write {
        /// First byte on the disk.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Make completed writes durable.
    Flush,
    /// Discard or zero these.
    Clear(Vec<Range>),
    /// Give the serial.
    Identify,
    /// Nothing: answer with this.
    Refuse(Status),
}

/// What the parser needs to know of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Size in sectors.
    pub sectors: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether ranges can be discarded and zeroed.
    pub clears: bool,
}

/// A parsed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Writable bytes before the status byte.
    pub room: usize,
}

impl Request {
    /// Reads the request in `chain`.
    ///
    /// # Errors
    /// A chain without a whole header, or without room for a status: there is no way to answer it.
    pub fn parse(chain: &Chain, limits: &Limits) -> Result<Self, DeviceError> {
        let Some(room) = chain.writable_len().checked_sub(1) else {
            return Err(DeviceError::Driver("a block request has no room for its status"));
        };
        let mut header = [0; HEADER];
        chain.reader().read_exact(&mut header)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes(sector);
        let payload = chain.readable_len().saturating_sub(HEADER);
        let command = match kind {
            VIRTIO_BLK_T_IN => match limits.data(sector, room) {
                Some(offset) if payload == 0 => Command::Read { offset, length: room },
                _ => Command::Refuse(Status::IoError),
            },
            VIRTIO_BLK_T_OUT => match limits.data(sector, payload) {
                Some(offset) if room == 0 && !limits.read_only => Command::Write { offset, length: payload },
                _ => Command::Refuse(Status::IoError),
            },
            VIRTIO_BLK_T_FLUSH => Command::Flush,
            VIRTIO_BLK_T_GET_ID => Command::Identify,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => Command::Refuse(Status::IoError),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.clears => {
                match ranges(chain, payload, kind == VIRTIO_BLK_T_DISCARD, limits)? {
                    Ok(ranges) => Command::Clear(ranges),
                    Err(status) => Command::Refuse(status),
                }
            }
            _ => Command::Refuse(Status::Unsupported),
        };
        Ok(Self { command, room })
    }
}

impl Limits {
    /// Offset in bytes of `length` bytes of data at `sector`, where they are whole sectors within the disk.
    fn data(&self, sector: u64, length: usize) -> Option<u64> {
        let bytes = u64::try_from(length).ok()?;
        (length <= MAX_DATA && bytes.is_multiple_of(SECTOR)).then(|| self.range(sector, bytes / SECTOR))?
    }

    /// Offset in bytes of `count` sectors at `sector`, where the disk has them.
    fn range(&self, sector: u64, count: u64) -> Option<u64> {
        let end = sector.checked_add(count)?;
        if end <= self.sectors { sector.checked_mul(SECTOR) } else { None }
    }
}

fn ranges(
    chain: &Chain,
    payload: usize,
    discard: bool,
    limits: &Limits,
) -> Result<Result<Vec<Range>, Status>, DeviceError> {
    let count = payload / RANGE;
    if payload == 0 || !payload.is_multiple_of(RANGE) || u32::try_from(count).map_or(true, |count| count > MAX_RANGES) {
        return Ok(Err(Status::IoError));
    }
    let mut reader = chain.reader();
    reader.skip(HEADER)?;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let mut raw = [0; RANGE];
        reader.read_exact(&mut raw)?;
        match range(raw, discard, limits) {
            Ok(range) if range.length > 0 => ranges.push(range),
            Ok(_) => {}
            Err(status) => return Ok(Err(status)),
        }
    }
    Ok(Ok(ranges))
}

fn range(raw: [u8; RANGE], discard: bool, limits: &Limits) -> Result<Range, Status> {
    let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = raw;
    let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let count = u32::from_le_bytes([i, j, k, l]);
    // The rest of the flags is reserved, and so is this one for a discard (virtio 1.3 §5.2.6.2).
    let clearing = match (discard, u32::from_le_bytes(flags)) {
        (true, 0) => Clearing::Discard,
        (false, 0) => Clearing::Zero,
        (false, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => Clearing::Unmap,
        _ => return Err(Status::Unsupported),
    };
    if count > MAX_RANGE_SECTORS {
        return Err(Status::IoError);
    }
    let offset = limits.range(sector, count.into()).ok_or(Status::IoError)?;
    Ok(Range { offset, length: u64::from(count) * SECTOR, clearing })
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
