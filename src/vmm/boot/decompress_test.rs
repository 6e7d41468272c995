// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::boot::testing::{lz4_legacy, payload, with_size};
use proptest::prelude::*;

const ALL: [Compression; 4] = [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4];

/// Bytes with near calls in them, so that the branch filter has something to turn.
fn code(length: usize) -> Vec<u8> {
    let mut seed = 1u32;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [a, b, c, _] = seed.to_le_bytes();
        bytes.extend([0xe8, a, b, 0, 0, 0x90, c & 3, 0x48]);
    }
    bytes.truncate(length);
    bytes
}

fn size(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap()
}

#[test]
fn every_format_unpacks_to_what_was_packed() {
    let plain = code(100_003);
    for format in ALL {
        let packed = payload(format, &plain);
        assert_eq!(Compression::recognise(&packed), Some(format));
        assert_eq!(packed.last_chunk(), Some(&size(&plain).to_le_bytes()));
        let unpacked = decompress(format, &packed, size(&plain)).unwrap();
        assert!(unpacked == plain, "{format}");
    }
}

#[test]
fn unknown_formats_are_not_recognised() {
    for packed in [&b"BZh9"[..], b"\x5d\0\0\x80\0", b"\x89LZO\0", b"", b"\x1f", b"\x7fELF"] {
        assert_eq!(Compression::recognise(packed), None);
    }
}

#[test]
fn lz4_frames_of_several_blocks() {
    let plain = [vec![0; 8 << 20], code(5)].concat();
    let packed = with_size(&lz4_legacy(&plain), plain.len());
    assert!(decompress(Compression::Lz4, &packed, size(&plain)).unwrap() == plain);
    // `cat` of two frames is a frame.
    let twice = with_size(&[lz4_legacy(b"first"), lz4_legacy(b"second")].concat(), 11);
    assert_eq!(decompress(Compression::Lz4, &twice, 11).unwrap(), b"firstsecond");
}

#[test]
fn more_or_less_than_promised_is_an_error() {
    let plain = code(50_000);
    for format in ALL {
        let packed = payload(format, &plain);
        for promised in [0, 1, 49_999, 50_001, 1 << 20] {
            let error = decompress(format, &packed, promised).unwrap_err();
            let DecompressError::Size { promised: found, more } = error else { panic!("{format} {promised}: {error}") };
            assert_eq!((found, more), (promised, promised < 50_000), "{format}");
        }
    }
}

#[test]
fn a_bomb_is_not_unpacked() {
    let error = decompress(Compression::Gzip, &payload(Compression::Gzip, &[0; 1000]), u32::MAX).unwrap_err();
    assert_eq!(error.to_string(), "it would unpack to 4095 MiB, more than the 512 MiB allowed");
    let zeros = vec![0; 2 << 20];
    for format in ALL {
        assert!(decompress(format, &payload(format, &zeros), 4096).is_err(), "{format}");
    }
}

#[test]
fn a_window_beyond_the_limit_is_refused() {
    // RFC 8878 §3.1.1.1: no single segment, window descriptor with exponent 31: 2 TiB.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00];
    assert!(matches!(unpack_zstd(&frame, 0).unwrap_err(), DecompressError::Damaged(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn damage_gives_the_promised_size_or_an_error(
        which in 0usize..4, cut in 0usize..4000, at in 0usize..4000, flip: u8, promised in 2_000u32..4_000
    ) {
        let format = ALL[which];
        let mut packed = payload(format, &code(3_000));
        let at = at % packed.len();
        packed[at] ^= flip;
        packed.truncate(packed.len().saturating_sub(cut % 200));
        if let Ok(unpacked) = decompress(format, &packed, promised) {
            prop_assert_eq!(size(&unpacked), promised);
        }
    }

    #[test]
    fn noise_never_panics(which in 0usize..4, noise in prop::collection::vec(any::<u8>(), 0..300), promised in 0u32..5000) {
        let magic = payload(ALL[which], b"")[..4].to_vec();
        if let Ok(unpacked) = decompress(ALL[which], &[magic, noise].concat(), promised) {
            prop_assert_eq!(size(&unpacked), promised);
        }
    }
}
