// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::boot::testing::{TestSegment, elf, note, small_elf};
use crate::vmm::memory;
use proptest::prelude::*;
use vm_memory::Bytes;

fn parse(bytes: Vec<u8>) -> Result<ElfKernel, KernelProblem> {
    let head = bytes[..bytes.len().min(128)].to_vec();
    ElfKernel::parse(Source::Memory(bytes), &head)
}

fn one_segment(address: u64, file: &[u8], size: u64) -> Result<ElfKernel, KernelProblem> {
    parse(elf(address, &[TestSegment::load(address, file, size)]))
}

#[test]
fn segments_land_where_they_belong() {
    let kernel = parse(small_elf()).unwrap();
    assert_eq!((kernel.linux_entry().unwrap(), kernel.pvh_entry().unwrap()), (0x100_0000, Some(0x100_0010)));
    assert!(kernel.is_linux());
    assert_eq!(kernel.end(), 0x100_a000);
    let ram = memory::allocate(32 << 20).unwrap();
    kernel.load(&ram).unwrap();
    let mut found = [1; 34];
    ram.read_slice(&mut found, GuestAddress(0x100_0000)).unwrap();
    assert_eq!(&found, b"the code of a kernel, long enough\0");
    let mut found = [1; 9];
    ram.read_slice(&mut found, GuestAddress(0x100_2000)).unwrap();
    assert_eq!(&found, b"its data\0");
}

#[test]
fn bss_without_file_bytes_belongs_to_the_kernel() {
    let segments = [TestSegment::load(0x20_0000, b"code", 0x1000), TestSegment::load(0x30_0000, b"", 0x5000)];
    let kernel = parse(elf(0x20_0000, &segments)).unwrap();
    assert_eq!(kernel.end(), 0x30_5000);
}

#[test]
fn a_pvh_entry_is_found_among_several_note_segments() {
    let code = TestSegment::load(0x20_0000, b"code", 0x1000);
    let pvh = note(b"Xen\0", 18, &0x20_0100u32.to_le_bytes());
    let others = note(b"GNU\0", 3, b"build id");
    let segments = [code, TestSegment::note(&[others.clone(), pvh].concat()), TestSegment::note(&others)];
    let kernel = parse(elf(0x20_0000, &segments)).unwrap();
    assert_eq!(kernel.pvh_entry().unwrap(), Some(0x20_0100));
    assert!(!kernel.is_linux());
}

#[test]
fn a_kernel_that_asks_is_told_that_memory_is_zero() {
    for (address, told) in
        [(0x20_0004, true), (0x20_0005, false), (0x20_0800, false), (0x1000, false), (u64::MAX, false)]
    {
        let asks = TestSegment::note(&note(b"Coracle\0", 1, &u64::to_le_bytes(address)));
        let kernel = parse(elf(0x20_0000, &[TestSegment::load(0x20_0000, b"code0000", 0x1000), asks])).unwrap();
        let ram = memory::allocate(16 << 20).unwrap();
        kernel.load(&ram).unwrap();
        let mut found = [0; 8];
        ram.read_slice(&mut found, GuestAddress(0x20_0000)).unwrap();
        assert_eq!(&found, if told { b"code\x01\0\0\0" } else { b"code0000" }, "{address:#x}");
    }
}

#[test]
fn an_entry_outside_the_kernel_is_refused() {
    let kernel = parse(elf(0x20_1000, &[TestSegment::load(0x20_0000, b"code", 0x1000)])).unwrap();
    assert!(matches!(kernel.linux_entry(), Err(KernelProblem::EntryPoint { address: 0x20_1000, .. })));
    let pvh = TestSegment::note(&note(b"Xen\0", 18, &0x100u32.to_le_bytes()));
    let kernel = parse(elf(0x20_0000, &[TestSegment::load(0x20_0000, b"code", 0x1000), pvh])).unwrap();
    assert!(matches!(kernel.pvh_entry(), Err(KernelProblem::EntryPoint { address: 0x100, which: "PVH" })));
}

#[test]
fn bad_segments_are_refused() {
    for (address, size, want) in [
        (0xf_f000, 0x1000, "below 1 MiB"),
        (0, 0x1000, "below 1 MiB"),
        (u64::MAX - 0xfff, 0x1000, "beyond the last address"),
        (0x20_0000, u64::MAX, "beyond the last address"),
        (0x20_0000, 3, "more bytes in the file"),
    ] {
        let error = one_segment(address, b"code", size).unwrap_err();
        assert!(matches!(error, KernelProblem::Segment { index: 0, .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
    let overlapping = [TestSegment::load(0x20_0fff, b"", 1), TestSegment::load(0x20_0000, b"code", 0x1000)];
    let error = parse(elf(0x20_0000, &overlapping)).unwrap_err();
    assert!(matches!(error, KernelProblem::Segment { index: 0, address: 0x20_0fff, .. }), "{error}");
}

#[test]
fn bad_headers_are_told_apart() {
    let with = |offset: usize, bytes: &[u8]| {
        let mut file = small_elf();
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        parse(file).unwrap_err()
    };
    assert!(matches!(with(18, &[183, 0]), KernelProblem::Architecture(name) if name.contains("aarch64")));
    assert!(matches!(with(4, &[1]), KernelProblem::Architecture(name) if name.contains("32-bit")));
    assert!(matches!(with(5, &[2]), KernelProblem::Architecture(name) if name.contains("big-endian")));
    assert!(matches!(with(16, &[1, 0]), KernelProblem::NotAKernel(what) if what.contains("module")));
    assert!(matches!(with(16, &[9, 0]), KernelProblem::ElfHeader(_)));
    assert!(matches!(with(54, &[57, 0]), KernelProblem::ElfHeader(_)));
    assert!(matches!(with(56, &[0, 0]), KernelProblem::ElfHeader(_)));
    assert!(matches!(with(56, &[255, 255]), KernelProblem::Truncated { what: "program header table", .. }));
    assert!(matches!(with(32, &[255; 8]), KernelProblem::Truncated { needed: u64::MAX, .. }));
    assert!(matches!(with(72, &[255; 8]), KernelProblem::Truncated { what: "segment data", .. }));
    assert!(matches!(parse(elf(0, &[TestSegment::note(b"")])).unwrap_err(), KernelProblem::ElfHeader(_)));
}

#[test]
fn malformed_notes_do_no_harm() {
    for notes in [&b"short"[..], &[255; 12], &[255; 64], &note(b"Xen\0", 18, b"ab"), &[0; 4096]] {
        let segments = [TestSegment::load(0x20_0000, b"code", 0x1000), TestSegment::note(notes)];
        assert_eq!(parse(elf(0x20_0000, &segments)).unwrap().pvh_entry().unwrap(), None);
    }
}

proptest! {
    #[test]
    fn any_cut_is_an_error(length in 0usize..600) {
        let whole = small_elf();
        prop_assume!(length < whole.len());
        let error = parse(whole[..length].to_vec()).unwrap_err();
        prop_assert!(matches!(error, KernelProblem::Truncated { .. }), "{}", error);
    }

    #[test]
    fn any_damage_gives_a_kernel_inside_the_rules_or_an_error(
        damage in prop::collection::vec((0usize..320, any::<u8>()), 1..8)
    ) {
        let mut file = small_elf();
        let length = file.len() as u64;
        for (at, value) in damage {
            let at = at % file.len();
            file[at] = value;
        }
        if let Ok(kernel) = parse(file) {
            for segment in kernel.segments() {
                prop_assert!(segment.address >= HIGH_RAM_START && segment.size >= segment.file_size);
                prop_assert!(segment.offset + segment.file_size <= length);
                prop_assert!(segment.end() <= kernel.end());
            }
            if kernel.end() <= 32 << 20 {
                kernel.load(&memory::allocate(32 << 20).unwrap()).unwrap();
            }
        }
    }
}
