// SPDX-License-Identifier: Apache-2.0
//! The 44-byte header of every packet (virtio 1.3 §5.10.6), and what may be done with a packet of the guest's.
//!
//! Parsed here rather than with the `virtio-vsock` crate: that one walks the descriptors in the ring itself and wants
//! the data in one buffer, where ours are copied and checked once, in whatever layout the driver chose.

use super::super::ChainError;
use super::super::chain::{Reader, Writer};

/// Bytes of a header.
pub const HEADER_LEN: usize = 44;

/// The host's context id (virtio 1.3 §5.10.4).
pub const HOST_CID: u64 = 2;

/// Socket type: a stream of bytes, the only one that is offered.
pub const TYPE_STREAM: u16 = 1;

/// `SHUTDOWN` flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `SHUTDOWN` flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both `SHUTDOWN` flags.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks for (virtio 1.3 §5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Open a connection.
    Request,
    /// The connection is accepted.
    Response,
    /// The connection is refused or at its end.
    Reset,
    /// One or both directions are finished, as the flags say.
    Shutdown,
    /// Data.
    Data,
    /// No more than the credit fields of the header.
    CreditUpdate,
    /// A [`Op::CreditUpdate`] is wanted.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The number on the wire.
    pub const fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    /// The operation with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.number() == number)
    }
}

/// A connection's two ports; both ends' context ids are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

/// A packet's header, any value allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender's context id.
    pub src_cid: u64,
    /// Receiver's context id.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// Socket type, see [`TYPE_STREAM`].
    pub kind: u16,
    /// See [`Op`].
    pub op: u16,
    /// Meaning depends on the operation.
    pub flags: u32,
    /// Size of the sender's receive buffer, in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left the sender's receive buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

/// What is to be done with a packet of the guest's, before anything is known of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is well-formed and for the host.
    Deliver(Op),
    /// It is answered with a reset.
    Refuse(&'static str),
    /// It is dropped.
    Drop(&'static str),
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, others)) => {
            *rest = others;
            *first
        }
        None => [0; N],
    }
}

fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    if let Some((first, others)) = std::mem::take(rest).split_first_chunk_mut() {
        *first = bytes;
        *rest = others;
    }
}

impl Header {
    /// Decodes a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let rest = &mut bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(rest)),
            dst_cid: u64::from_le_bytes(take(rest)),
            src_port: u32::from_le_bytes(take(rest)),
            dst_port: u32::from_le_bytes(take(rest)),
            length: u32::from_le_bytes(take(rest)),
            kind: u16::from_le_bytes(take(rest)),
            op: u16::from_le_bytes(take(rest)),
            flags: u32::from_le_bytes(take(rest)),
            buf_alloc: u32::from_le_bytes(take(rest)),
            fwd_cnt: u32::from_le_bytes(take(rest)),
        }
    }

    /// Encodes the header.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let rest = &mut bytes.as_mut_slice();
        put(rest, self.src_cid.to_le_bytes());
        put(rest, self.dst_cid.to_le_bytes());
        put(rest, self.src_port.to_le_bytes());
        put(rest, self.dst_port.to_le_bytes());
        put(rest, self.length.to_le_bytes());
        put(rest, self.kind.to_le_bytes());
        put(rest, self.op.to_le_bytes());
        put(rest, self.flags.to_le_bytes());
        put(rest, self.buf_alloc.to_le_bytes());
        put(rest, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Reads a header from the front of a chain; the data is what follows.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, ChainError> {
        let mut bytes = [0; HEADER_LEN];
        reader.read_exact(&mut bytes)?;
        Ok(Self::from_bytes(&bytes))
    }

    /// Writes the header to the front of a chain.
    ///
    /// # Errors
    /// [`ChainError::Short`].
    pub fn write(&self, writer: &mut Writer<'_>) -> Result<(), ChainError> {
        writer.write_all(&self.to_bytes())
    }

    /// Judges a packet from the guest with context id `guest_cid`, which has `data` bytes behind its header.
    pub fn judge(&self, guest_cid: u64, data: usize) -> Verdict {
        if self.src_cid != guest_cid {
            // A reply would go to whom the guest pretends to be.
            return Verdict::Drop("packet with a foreign source context id");
        }
        let op = Op::from_number(self.op);
        let wrong = if self.dst_cid != HOST_CID {
            "packet to a context id other than the host's"
        } else if self.kind != TYPE_STREAM {
            "packet of an unknown socket type"
        } else if usize::try_from(self.length).is_ok_and(|length| length > data) {
            "packet that is shorter than its header says"
        } else if let Some(op) = op {
            return Verdict::Deliver(op);
        } else {
            "packet with an unknown operation"
        };
        // Two sides that answer resets with resets would never stop.
        if op == Some(Op::Reset) { Verdict::Drop(wrong) } else { Verdict::Refuse(wrong) }
    }

    /// The reset that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        }
    }

    /// The connection that a packet of the guest's belongs to.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeDriver;
    use super::*;
    use proptest::prelude::*;

    fn good() -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: 4,
            dst_port: 5,
            kind: TYPE_STREAM,
            op: 5,
            length: 8,
            ..Header::default()
        }
    }

    #[test]
    fn fields_lie_where_the_specification_has_them() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!((header.src_port, header.dst_port), (0x1312_1110, 0x1716_1514));
        assert_eq!(header.length, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn packets_are_judged() {
        assert_eq!(good().judge(3, 8), Verdict::Deliver(Op::Data));
        assert!(matches!(good().judge(4, 8), Verdict::Drop(_)));
        assert!(matches!(good().judge(3, 7), Verdict::Refuse(_)));
        for header in [
            Header { dst_cid: 1, ..good() },
            Header { dst_cid: 1 << 32 | 2, ..good() },
            Header { kind: 2, ..good() },
            Header { op: 0, ..good() },
            Header { op: 8, ..good() },
            Header { length: u32::MAX, ..good() },
        ] {
            assert!(matches!(header.judge(3, 8), Verdict::Refuse(_)), "{header:?}");
        }
        let reset = Header { op: 3, kind: 9, ..good() };
        assert!(matches!(reset.judge(3, 8), Verdict::Drop(_)));
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let reset = Header { kind: 7, ..good() }.reset();
        assert_eq!((reset.src_cid, reset.dst_cid), (2, 3));
        assert_eq!((reset.src_port, reset.dst_port), (5, 4));
        assert_eq!((reset.kind, reset.op, reset.length), (7, 3, 0));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_and_encode_to_themselves(bytes in prop::array::uniform32(any::<u8>()), more in prop::array::uniform12(any::<u8>())) {
            let mut all = [0; HEADER_LEN];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            prop_assert_eq!(Header::from_bytes(&all).to_bytes(), all);
        }

        /// In whatever pieces a driver lays out a packet, it is the same packet, and a short one is an error.
        #[test]
        fn the_layout_of_a_chain_does_not_matter(cuts in prop::collection::vec(1u32..30, 1..8)) {
            let mut driver = FakeDriver::new(16);
            let mut queue = driver.queue();
            let (mut at, mut buffers) = (0x3_0000, Vec::new());
            for (bytes, cut) in good().to_bytes().chunks(5).zip(0u64..) {
                driver.write(0x3_0000 + cut * 5, bytes);
            }
            for length in cuts {
                buffers.push((at, length, false));
                at += u64::from(length);
            }
            driver.add(&buffers);
            let chain = queue.pop().unwrap().unwrap();
            let mut reader = chain.reader();
            match Header::read(&mut reader) {
                Ok(header) => {
                    prop_assert_eq!(header, good());
                    prop_assert_eq!(reader.remaining(), chain.readable_len() - HEADER_LEN);
                }
                Err(error) => prop_assert_eq!(error, ChainError::Short { wanted: 44, left: chain.readable_len() }),
            }
        }
    }
}
