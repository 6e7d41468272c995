// SPDX-License-Identifier: Apache-2.0
//! Tells TCP's acknowledgements from frames that carry something.

use super::HEADER;

/// Bytes of the longest acknowledgement: the headers of virtio, Ethernet and IPv6, and TCP's with all options.
pub(super) const MAX_ACKNOWLEDGEMENT: usize = HEADER + 14 + 40 + 60;

/// The flags of a TCP header (RFC 9293 §3.1), where it does nothing else than acknowledge.
const ACK: u8 = 0x10;
const TCP: u8 = 6;

/// Whether a frame, with virtio's header before it, is one TCP segment (RFC 9293 §3.1, in IPv4 without options or in
/// IPv6) that acknowledges data, and carries none.
pub(super) fn is_acknowledgement(frame: &[u8]) -> bool {
    parse(frame).unwrap_or(false)
}

fn parse(frame: &[u8]) -> Option<bool> {
    let (types, packet) = frame.get(HEADER + 12..)?.split_first_chunk::<2>()?;
    // RFC 791 §3.1, RFC 8200 §3.
    let (protocol, length, segment) = match (u16::from_be_bytes(*types), *packet.first()?) {
        (0x0800, 0x45) => (*packet.get(9)?, be16(packet, 2)?, packet.get(20..)?),
        (0x86dd, 0x60..=0x6f) => (*packet.get(6)?, be16(packet, 4)? + 40, packet.get(40..)?),
        _ => return None,
    };
    let data = usize::from(*segment.get(12)? >> 4) * 4;
    let flags = *segment.get(13)?;
    Some(protocol == TCP && length == packet.len() && data == segment.len() && flags == ACK)
}

fn be16(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with a TCP segment of these flags and this much data.
    fn frame(v6: bool, flags: u8, options: u8, data: usize) -> Vec<u8> {
        let mut segment = vec![0; 20 + usize::from(options)];
        segment[12] = (5 + options / 4) << 4;
        segment[13] = flags;
        segment.resize(segment.len() + data, 7);
        let length = u16::try_from(segment.len()).unwrap();
        let mut frame = vec![0; HEADER + 12];
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([TCP, 64]);
            frame.extend([1; 32]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
            frame.extend([1; 8]);
        }
        frame.extend(segment);
        frame
    }

    #[test]
    fn acknowledgements_are_known() {
        for v6 in [false, true] {
            for options in [0, 12, 40] {
                let frame = frame(v6, ACK, options, 0);
                assert!(frame.len() <= MAX_ACKNOWLEDGEMENT && is_acknowledgement(&frame));
            }
        }
    }

    #[test]
    fn all_else_is_something_else() {
        for v6 in [false, true] {
            assert!(!is_acknowledgement(&frame(v6, ACK, 12, 1)), "data");
            // With FIN, SYN, RST, PSH, URG, ECE, CWR.
            for flag in [1, 2, 4, 8, 0x20, 0x40, 0x80] {
                assert!(!is_acknowledgement(&frame(v6, ACK | flag, 12, 0)), "flag {flag:#x}");
            }
            let whole = frame(v6, ACK, 12, 0);
            for length in 0..whole.len() {
                assert!(!is_acknowledgement(&whole[..length]), "{length} bytes of it");
            }
            let mut datagram = whole.clone();
            datagram[HEADER + 14 + if v6 { 6 } else { 9 }] = 17;
            assert!(!is_acknowledgement(&datagram), "UDP");
            let mut padded = whole;
            padded.push(0);
            assert!(!is_acknowledgement(&padded), "padding");
        }
    }
}
