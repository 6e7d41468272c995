// SPDX-License-Identifier: Apache-2.0
//! Kernel files made for tests.

use super::Compression;

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

/// How [`bzimage`] makes a file.
#[derive(Debug, Clone)]
pub struct TestBzImage {
    /// The payload as it lies in the file, with its size at the end.
    pub payload: Vec<u8>,
    pub version: u16,
    pub loadflags: u8,
    pub xloadflags: u16,
    pub init_size: u32,
}

impl TestBzImage {
    pub fn new(payload: Vec<u8>) -> Self {
        Self { payload, version: 0x20f, loadflags: 1, xloadflags: 3, init_size: 0x80_0000 }
    }

    /// The file: boot sector, four sectors of setup, then the protected-mode code with the payload at 0x400.
    pub fn build(&self) -> Vec<u8> {
        let mut code = vec![0x90; 0x400];
        code.extend(&self.payload);
        code.resize(code.len().next_multiple_of(16), 0);
        let mut file = vec![0; 5 * 512];
        let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
        let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
        put(0x1f1, &[4]);
        put(0x1f4, &word(code.len() / 16));
        put(0x1fe, b"\x55\xaa\xeb\x6aHdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x211, &[self.loadflags]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &self.xloadflags.to_le_bytes());
        put(0x238, &2047u32.to_le_bytes());
        put(0x248, &0x400u32.to_le_bytes());
        put(0x24c, &word(self.payload.len()));
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        file.extend(code);
        file
    }
}

/// `packed` with the size of what it unpacks to, as Linux appends it.
pub fn with_size(packed: &[u8], size: usize) -> Vec<u8> {
    [packed, &u32::try_from(size).unwrap().to_le_bytes()].concat()
}

/// `bytes` as a gzip file.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `bytes` in the legacy frame format of lz4, in blocks as large as they may be.
pub fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in bytes.chunks(8 << 20) {
        let packed = lz4_flex::block::compress(block);
        frame.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
        frame.extend(packed);
    }
    frame
}

/// `bytes` as an xz file, packed as Linux packs its kernel: x86 branch filter, CRC32.
pub fn xz(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
    options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
    let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `bytes` as a zstd file.
pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// `bytes` packed as a kernel payload of the given format.
pub fn payload(format: Compression, bytes: &[u8]) -> Vec<u8> {
    match format {
        Compression::Gzip => gzip(bytes),
        Compression::Xz => with_size(&xz(bytes), bytes.len()),
        Compression::Zstd => with_size(&zstd(bytes), bytes.len()),
        Compression::Lz4 => with_size(&lz4_legacy(bytes), bytes.len()),
    }
}
