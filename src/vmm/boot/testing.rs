// SPDX-License-Identifier: Apache-2.0
//! Kernel files made for tests.

/// A segment of a made ELF file.
#[derive(Debug, Clone)]
pub struct TestSegment {
    pub kind: u32,
    pub address: u64,
    pub bytes: Vec<u8>,
    pub size: u64,
}

impl TestSegment {
    pub fn load(address: u64, bytes: &[u8], size: u64) -> Self {
        Self { kind: 1, address, bytes: bytes.to_vec(), size }
    }

    pub fn note(bytes: &[u8]) -> Self {
        Self { kind: 4, address: 0, bytes: bytes.to_vec(), size: bytes.len() as u64 }
    }
}

/// One ELF note with its padding.
pub fn note(owner: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
    let pad =
        |bytes: &[u8]| bytes.iter().copied().chain(std::iter::repeat_n(0, bytes.len().wrapping_neg() & 3)).collect();
    let owner_bytes: Vec<u8> = pad(owner);
    let descriptor_bytes: Vec<u8> = pad(descriptor);
    let word = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
    [&word(owner.len()), &word(descriptor.len()), &kind.to_le_bytes()[..], &owner_bytes, &descriptor_bytes].concat()
}

/// An ELF file for x86-64 of the given segments.
pub fn elf(entry: u64, segments: &[TestSegment]) -> Vec<u8> {
    let count = u16::try_from(segments.len()).unwrap();
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 8 + 4]);
    file.extend([64, 0, 56, 0]);
    file.extend(count.to_le_bytes());
    file.extend([64, 0, 0, 0, 0, 0]);
    assert_eq!(file.len(), 64);
    let mut offset = 64 + 56 * u64::from(count);
    for segment in segments {
        let length = segment.bytes.len() as u64;
        file.extend(segment.kind.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        let linked = segment.address.wrapping_add(0xffff_ffff_8000_0000);
        for field in [offset, linked, segment.address, length, segment.size, 4096] {
            file.extend(field.to_le_bytes());
        }
        offset += length;
    }
    for segment in segments {
        file.extend(&segment.bytes);
    }
    file
}

/// A small Linux-like kernel: two segments, bss, a Linux note and a PVH entry.
pub fn small_elf() -> Vec<u8> {
    let notes = [note(b"Xen\0", 18, &0x100_0010u64.to_le_bytes()), note(b"Linux\0", 0x100, b"salt")].concat();
    elf(
        0x100_0000,
        &[
            TestSegment::load(0x100_0000, b"the code of a kernel, long enough", 0x1000),
            TestSegment::load(0x100_2000, b"its data", 0x8000),
            TestSegment::note(&notes),
        ],
    )
}
