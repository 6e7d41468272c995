// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::boot::testing::{TestBzImage, TestSegment, elf, gzip, note, small_elf};
use crate::vmm::memory;
use proptest::prelude::*;

fn image(bytes: &[u8], choice: ProtocolChoice) -> Result<KernelImage, KernelError> {
    KernelImage::from_bytes(bytes.to_vec(), Path::new("bzImage"), choice)
}

fn problem(bytes: &[u8]) -> KernelProblem {
    image(bytes, ProtocolChoice::Auto).unwrap_err().problem
}

/// A kernel that is not Linux, with or without a PVH entry.
fn other_kernel(pvh: bool) -> Vec<u8> {
    let mut segments = vec![TestSegment::load(0x20_0000, b"code", 0x1000)];
    if pvh {
        segments.push(TestSegment::note(&note(b"Xen\0", 18, &0x20_0100u32.to_le_bytes())));
    }
    elf(0x20_0000, &segments)
}

#[test]
fn files_that_cannot_be_opened() {
    let missing = KernelImage::open_path(Path::new("no/such/vmlinux"), ProtocolChoice::Auto).unwrap_err();
    assert_eq!(missing.to_string(), "cannot boot kernel no/such/vmlinux: No such file or directory (os error 2)");
    assert!(missing.advice().contains("check the path"));
    let directory = KernelImage::open_path(Path::new("/tmp"), ProtocolChoice::Auto).unwrap_err();
    assert_eq!(directory.to_string(), "cannot boot kernel /tmp: it is a directory, not a file");
    let device = KernelImage::open_path(Path::new("/dev/null"), ProtocolChoice::Auto).unwrap_err();
    assert!(matches!(device.problem, KernelProblem::NotAFile("a special file")));
}

#[test]
fn a_file_is_read_without_moving_its_position() {
    use std::io::{Seek, Write};
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&small_elf()).unwrap();
    let mut same = file.try_clone().unwrap();
    let before = same.stream_position().unwrap();
    let kernel = KernelImage::open(file, Path::new("vmlinux"), ProtocolChoice::Auto).unwrap();
    kernel.load(&memory::allocate(32 << 20).unwrap()).unwrap();
    assert_eq!(same.stream_position().unwrap(), before);
}

#[test]
fn files_that_are_no_kernel() {
    assert!(matches!(problem(b""), KernelProblem::Empty));
    let padded = |start: &[u8], at: usize, magic: &[u8]| {
        let mut file = start.to_vec();
        file.resize(at.max(start.len()), 0);
        file.extend(magic);
        file.resize(file.len().max(0x400), 0);
        file
    };
    for (file, want) in [
        (b"this is a text\nof two lines\n".to_vec(), "a text file"),
        (b"#!/bin/sh\nexit\n".to_vec(), "a script"),
        (padded(b"\x1f\x8b\x08", 0, b""), "a gzip file"),
        (padded(b"\xfd7zXZ\0", 0, b""), "an xz file"),
        (padded(b"\x28\xb5\x2f\xfd", 0, b""), "a zstd file"),
        (padded(b"070701", 0, b""), "an initramfs"),
        (padded(b"QFI\xfb", 0, b""), "a qcow2 disk image"),
        (padded(b"MZ", 0, b""), "an EFI or Windows program"),
        (padded(b"", 510, b"\x55\xaa"), "a boot sector or disk image"),
        (padded(b"\x01\x02\x03", 0, b""), "data of an unknown kind"),
    ] {
        let found = problem(&file);
        assert!(matches!(&found, KernelProblem::NotAKernel(what) if what.contains(want)), "{found}");
    }
    for (file, want) in [
        (padded(b"MZ", 0x38, b"ARM\x64"), "aarch64"),
        (padded(b"MZ", 0x38, b"RSC\x05"), "RISC-V"),
        (padded(b"", 0x24, b"\x18\x28\x6f\x01"), "32-bit ARM"),
    ] {
        let found = problem(&file);
        assert!(matches!(&found, KernelProblem::Architecture(name) if name.contains(want)), "{found}");
    }
}

#[test]
fn every_problem_has_advice() {
    let files: [&[u8]; 4] = [b"", b"text", &small_elf()[..70], &elf(0, &[])];
    let errors = files.map(|file| image(file, ProtocolChoice::Auto).unwrap_err());
    for error in errors {
        assert!(error.advice().starts_with(|c: char| c.is_ascii_lowercase()), "{error}: {}", error.advice());
    }
}

#[test]
fn the_protocol_follows_kernel_and_choice() {
    use ProtocolChoice::{Auto, Linux64, Pvh};
    for (file, choice, want) in [
        (small_elf(), Auto, Some((Protocol::Linux64, 0x100_0000))),
        (small_elf(), Linux64, Some((Protocol::Linux64, 0x100_0000))),
        (small_elf(), Pvh, Some((Protocol::Pvh, 0x100_0010))),
        (other_kernel(true), Auto, Some((Protocol::Pvh, 0x20_0100))),
        (other_kernel(false), Auto, Some((Protocol::Linux64, 0x20_0000))),
        (other_kernel(false), Pvh, None),
        (TestBzImage::new(gzip(&small_elf())).build(), Pvh, Some((Protocol::Pvh, 0x100_0010))),
        (TestBzImage::new(b"BZh9 something".to_vec()).build(), Auto, Some((Protocol::Linux64, 0x10_0200))),
        (TestBzImage::new(b"BZh9 something".to_vec()).build(), Pvh, None),
    ] {
        match (image(&file, choice), want) {
            (Ok(found), Some(want)) => assert_eq!((found.protocol, found.entry), want),
            (Err(error), None) => assert!(matches!(error.problem, KernelProblem::NoPvhEntry), "{error}"),
            (found, want) => panic!("{found:?} instead of {want:?}"),
        }
    }
}

#[test]
fn too_little_memory_says_how_much_would_do() {
    let kernel = image(&small_elf(), ProtocolChoice::Auto).unwrap();
    let error = kernel.load(&memory::allocate(16 << 20).unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "cannot boot kernel bzImage: it needs 17 MiB of memory, and the guest has 16 MiB");
    assert!(error.advice().contains("17 MiB"));
    kernel.load(&memory::allocate(17 << 20).unwrap()).unwrap();
}

#[test]
fn a_kernel_in_the_device_hole_is_refused() {
    for address in [0xc000_0000u64, 0xbfff_ff00, 0x1_0000_0000] {
        let found = problem(&elf(address, &[TestSegment::load(address, b"code", 0x1000)]));
        assert!(matches!(found, KernelProblem::Segment { reason, .. } if reason.contains("3 GiB")), "{found}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), kind in 0usize..3) {
        let mut bytes = bytes;
        for (at, magic) in [(0, &b"\x7fELF\x02\x01\x01"[..]), (0x1fe, b"\x55\xaa\xeb\x6aHdrS")].into_iter().skip(kind) {
            if let Some(room) = bytes.get_mut(at..at + magic.len()) {
                room.copy_from_slice(magic);
            }
        }
        if let Ok(kernel) = image(&bytes, ProtocolChoice::Auto) {
            prop_assert!(!kernel.description().is_empty());
            let _ = kernel.symbols();
        }
    }
}
