// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::boot::testing::{TestBzImage, gzip, payload, small_elf};
use crate::vmm::memory;
use proptest::prelude::*;
use vm_memory::Bytes;

fn parse(bytes: Vec<u8>) -> Result<BzImage, KernelProblem> {
    let head = bytes[..bytes.len().min(4096)].to_vec();
    assert!(BzImage::recognises(&head));
    BzImage::parse(Source::Memory(bytes), &head)
}

#[test]
fn every_compression_is_unpacked_on_the_host() {
    for format in [Compression::Gzip, Compression::Xz, Compression::Zstd, Compression::Lz4] {
        // Linux appends relocations to the ELF file.
        let contents = [small_elf(), vec![7; 100]].concat();
        let mut image = parse(TestBzImage::new(payload(format, &contents)).build()).unwrap();
        let elf = image.elf().unwrap();
        assert_eq!((elf.linux_entry().unwrap(), image.end()), (0x100_0000, 0x100_a000));
        assert_eq!((image.header().initrd_max(), image.header().cmdline_max()), (0xbfff_ffff, 2047));
        assert!(image.description().contains(&format.to_string()));
        let ram = memory::allocate(32 << 20).unwrap();
        image.load(&ram).unwrap();
        let mut found = [0; 8];
        ram.read_slice(&mut found, GuestAddress(0x100_2000)).unwrap();
        assert_eq!(&found, b"its data");
        image.release();
        assert_eq!(image.end(), 0x100_a000);
        assert!(matches!(image.load(&ram), Err(KernelProblem::Read(_))));
    }
}

#[test]
fn an_unknown_payload_is_left_to_the_guest() {
    let image = parse(TestBzImage::new(b"BZh9 something in bzip2".to_vec()).build()).unwrap();
    assert!(image.elf().is_none());
    assert_eq!(image.own_entry().unwrap(), 0x10_0200);
    assert_eq!(image.end(), 0x180_0000);
    let ram = memory::allocate(32 << 20).unwrap();
    image.load(&ram).unwrap();
    let mut found = [0; 28];
    ram.read_slice(&mut found, GuestAddress(0x10_03fe)).unwrap();
    assert_eq!(&found, b"\x90\x90BZh9 something in bzip2\0\0\0");
}

#[test]
fn the_guests_own_decompressor_needs_a_64_bit_entry() {
    let mut test = TestBzImage::new(b"BZh9 something in bzip2".to_vec());
    test.xloadflags = 0;
    assert!(matches!(parse(test.build()).unwrap().own_entry(), Err(KernelProblem::No64BitEntry)));
    test.xloadflags = 1;
    test.version = 0x20b;
    assert!(matches!(parse(test.build()).unwrap().own_entry(), Err(KernelProblem::No64BitEntry)));
}

#[test]
fn old_kernels_keep_their_initrd_limit() {
    let mut test = TestBzImage::new(gzip(&small_elf()));
    test.xloadflags = 1;
    assert_eq!(parse(test.build()).unwrap().header().initrd_max(), 0x7fff_ffff);
}

#[test]
fn bad_headers_are_told_apart() {
    let whole = TestBzImage::new(gzip(&small_elf()));
    let with = |change: fn(&mut TestBzImage)| {
        let mut test = whole.clone();
        change(&mut test);
        parse(test.build()).unwrap_err()
    };
    assert!(matches!(with(|test| test.version = 0x207), KernelProblem::BzImageHeader(what) if what.contains("2.08")));
    assert!(matches!(with(|test| test.loadflags = 0), KernelProblem::BzImageHeader(what) if what.contains("zImage")));
    assert!(matches!(with(|test| test.payload.clear()), KernelProblem::BzImageHeader(what) if what.contains("empty")));
    let huge = |test: &mut TestBzImage| {
        test.payload = b"BZh9 something".to_vec();
        test.init_size = u32::MAX;
    };
    assert!(matches!(with(huge), KernelProblem::Segment { reason: "is too large", .. }));
}

#[test]
fn a_payload_that_is_no_x86_kernel_is_refused() {
    let refuse = |contents: &[u8]| parse(TestBzImage::new(gzip(contents)).build()).unwrap_err();
    let text = refuse(b"just a text, and no kernel at all");
    assert!(matches!(&text, KernelProblem::Unpack { reason, .. } if reason.contains("no ELF file")), "{text}");
    let mut arm = small_elf();
    arm[18] = 183;
    assert!(matches!(refuse(&arm), KernelProblem::Architecture(_)));
}

#[test]
fn a_damaged_payload_is_not_left_to_the_guest() {
    let mut packed = gzip(&small_elf());
    let middle = packed.len() / 2;
    packed[middle] ^= 0x55;
    let error = parse(TestBzImage::new(packed).build()).unwrap_err();
    assert!(matches!(error, KernelProblem::Unpack { compression: Compression::Gzip, .. }), "{error}");
}

proptest! {
    #[test]
    fn any_cut_is_an_error(length in 0x290usize..8192, own: bool) {
        let payload = if own { b"BZh9 something in bzip2, long enough".repeat(50) } else { gzip(&small_elf()) };
        let whole = TestBzImage::new(payload.clone()).build();
        // The last paragraph's padding may be missing.
        prop_assume!(length < 5 * 512 + 0x400 + payload.len());
        let error = parse(whole[..length].to_vec()).unwrap_err();
        prop_assert!(matches!(error, KernelProblem::Truncated { .. }), "{}", error);
    }

    #[test]
    fn any_damage_gives_a_loadable_kernel_or_an_error(
        damage in prop::collection::vec((0x1f1usize..0x270, any::<u8>()), 1..6), own: bool
    ) {
        let payload = if own { b"BZh9 something in bzip2".to_vec() } else { gzip(&small_elf()) };
        let mut file = TestBzImage::new(payload).build();
        for (at, value) in damage {
            file[at] = value;
        }
        if !BzImage::recognises(&file) {
            return Ok(());
        }
        if let Ok(image) = parse(file) {
            prop_assert!(image.header().initrd_max() < RAM_HOLE_START);
            if image.end() <= 32 << 20 {
                image.load(&memory::allocate(32 << 20).unwrap()).unwrap();
            }
        }
    }
}
