// SPDX-License-Identifier: Apache-2.0
use std::fs;
use std::io::Write;

use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use tempfile::NamedTempFile;

use super::*;

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    compress_to_vec(data, CompressionLevel::Fastest)
}

fn reader(packed: &[u8], compression: Compression, expected: Digest, limit: u64) -> (NamedTempFile, LayerReader) {
    let file = NamedTempFile::new().unwrap();
    fs::write(&file, packed).unwrap();
    let reader = LayerReader::new(file.path().to_owned(), compression, expected, limit);
    (file, reader)
}

fn read(packed: &[u8], compression: Compression, expected: Digest, limit: u64) -> io::Result<Vec<u8>> {
    let (_file, mut reader) = reader(packed, compression, expected, limit);
    let mut data = Vec::new();
    reader.read_to_end(&mut data).map(|_| data)
}

#[test]
fn media_types_say_the_compression() {
    assert_eq!(Compression::of("application/vnd.oci.image.layer.v1.tar+zstd"), Some(Compression::Zstd));
    assert_eq!(Compression::of("application/vnd.docker.image.rootfs.diff.tar.gzip"), Some(Compression::Gzip));
    assert_eq!(Compression::of("application/vnd.oci.image.layer.v1.tar"), Some(Compression::None));
    assert_eq!(Compression::of("application/vnd.in-toto+json"), None);
}

#[test]
fn frames_and_members_follow_each_other() {
    let digest = Digest::of(b"onetwo");
    let joined = [gzip(b"one"), gzip(b"two")].concat();
    assert_eq!(read(&joined, Compression::Gzip, digest, 100).unwrap(), b"onetwo");
    let skippable = [&0x184D_2A53_u32.to_le_bytes()[..], &5_u32.to_le_bytes(), b"extra"].concat();
    let joined = [zstd(b"one"), skippable.clone(), zstd(b"two"), skippable.clone()].concat();
    assert_eq!(read(&joined, Compression::Zstd, digest, 100).unwrap(), b"onetwo");
    let cut = &joined[..joined.len() - 2];
    assert!(read(cut, Compression::Zstd, digest, 100).is_err());
}

#[test]
fn nothing_is_verified_before_the_end() {
    let (_file, mut reader) = reader(&gzip(b"content"), Compression::Gzip, Digest::of(b"content"), 100);
    let verdict = reader.verdict();
    let mut buffer = [0; 7];
    reader.read_exact(&mut buffer).unwrap();
    assert!(!verdict.load(Ordering::Relaxed));
    assert_eq!(reader.read(&mut buffer).unwrap(), 0);
    assert!(verdict.load(Ordering::Relaxed));
    assert_eq!(reader.read(&mut buffer).unwrap(), 0);
}

#[test]
fn other_content_fails_at_the_end() {
    for (packed, compression) in [
        (b"other".to_vec(), Compression::None),
        (gzip(b"other"), Compression::Gzip),
        (zstd(b"other"), Compression::Zstd),
    ] {
        let error = read(&packed, compression, Digest::of(b"content"), 100).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains(&Digest::of(b"other").to_string()), "{error}");
    }
}

#[test]
fn a_bomb_is_stopped() {
    let zeros = vec![0; 1 << 20];
    let digest = Digest::of(&zeros);
    for (packed, compression) in [(gzip(&zeros), Compression::Gzip), (zstd(&zeros), Compression::Zstd)] {
        assert!(packed.len() < zeros.len() / 100);
        assert!(read(&packed, compression, digest, (1 << 20) - 1).unwrap_err().to_string().contains("more than"));
        assert_eq!(read(&packed, compression, digest, 1 << 20).unwrap(), zeros);
    }
}

#[test]
fn a_missing_file_is_an_error() {
    let (file, mut reader) = reader(b"", Compression::None, Digest::of(b""), 0);
    drop(file);
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::NotFound);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_packed_comes_out(data in prop::collection::vec(0..4u8, 0..20000)) {
        let digest = Digest::of(&data);
        for (packed, compression) in
            [(data.clone(), Compression::None), (gzip(&data), Compression::Gzip), (zstd(&data), Compression::Zstd)]
        {
            let limit = u64::try_from(data.len()).unwrap();
            prop_assert_eq!(&read(&packed, compression, digest, limit).unwrap(), &data);
        }
    }

    #[test]
    fn damage_is_never_taken_for_content(
        data in prop::collection::vec(any::<u8>(), 1..3000),
        at: prop::sample::Index,
        bit in 0..8u8,
        cut: bool,
    ) {
        let digest = Digest::of(&data);
        for (mut packed, compression) in [(gzip(&data), Compression::Gzip), (zstd(&data), Compression::Zstd)] {
            let at = at.index(packed.len());
            if cut {
                packed.truncate(at);
            } else {
                packed[at] ^= 1 << bit;
            }
            // A flipped bit may lie where it says nothing, in a time stamp for example.
            if let Ok(found) = read(&packed, compression, digest, 1 << 20) {
                prop_assert_eq!(&found, &data);
            }
        }
    }
}
