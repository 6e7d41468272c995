// SPDX-License-Identifier: Apache-2.0
//! Everything that a guest finds at its start, put together.

use std::io::Write;
use std::path::Path;

use super::testing::{TestBzImage, gzip, small_elf};
use super::*;
use crate::vmm::memory;

const TOPOLOGY: Topology<'_> =
    Topology { cpus: 2, virtio: &[], generation_id: Some(0x0123_4567), pvpanic: true, serial: true };

fn kernel(bytes: Vec<u8>, choice: ProtocolChoice) -> KernelImage {
    KernelImage::from_bytes(bytes, Path::new("vmlinux"), choice).unwrap()
}

fn initrd(bytes: &[u8]) -> Initrd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Initrd::open(file, Path::new("initrd")).unwrap()
}

fn line(words: &str) -> CommandLine {
    let mut line = CommandLine::new();
    line.add(words).unwrap();
    line
}

fn text_at(ram: &Ram, address: u64, length: usize) -> String {
    let mut bytes = vec![0; length];
    ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn place(
    ram: &Ram,
    kernel: &KernelImage,
    initrd: Option<&Initrd>,
    line: &CommandLine,
    topology: &Topology<'_>,
) -> Result<EntryPoint, BootError> {
    describe(ram, &load(ram, kernel, initrd)?, line, topology)
}

#[test]
fn a_guest_is_complete_for_the_linux_protocol() {
    for file in [small_elf(), TestBzImage::new(gzip(&small_elf())).build()] {
        let ram = memory::allocate(64 << 20).unwrap();
        let kernel = kernel(file, ProtocolChoice::Auto);
        let entry = place(&ram, &kernel, Some(&initrd(b"archive")), &line("quiet"), &TOPOLOGY).unwrap();
        let params = GuestAddress(0x7000);
        assert_eq!(entry, EntryPoint { address: GuestAddress(0x100_0000), protocol: Protocol::Linux64, params });
        assert_eq!(text_at(&ram, 0x2_0000, 6), "quiet\0");
        let initrd: u32 = ram.read_obj(GuestAddress(0x7218)).unwrap();
        assert_eq!(text_at(&ram, initrd.into(), 8), "archive\0");
        let rsdp: u64 = ram.read_obj(GuestAddress(0x7070)).unwrap();
        assert_eq!(text_at(&ram, rsdp, 8), "RSD PTR ");
        assert_eq!(text_at(&ram, 0x9_fc00, 4), "_MP_");
        assert_eq!(ram.read_obj::<u128>(GuestAddress(0xf_f000)).unwrap(), 0x0123_4567);
        assert_eq!(text_at(&ram, 0x100_0000, 8), "the code");
    }
}

#[test]
fn a_bzimage_gets_its_own_header_back() {
    let ram = memory::allocate(64 << 20).unwrap();
    let kernel = kernel(TestBzImage::new(gzip(&small_elf())).build(), ProtocolChoice::Auto);
    place(&ram, &kernel, None, &line("quiet"), &TOPOLOGY).unwrap();
    assert_eq!(ram.read_obj::<u16>(GuestAddress(0x7236)).unwrap(), 3);
    assert_eq!(ram.read_obj::<u64>(GuestAddress(0x7258)).unwrap(), 0x100_0000);
    // And the sentinel says that a boot loader has cleared what it did not fill (zero-page.rst).
    assert_eq!(ram.read_obj::<u8>(GuestAddress(0x71ef)).unwrap(), 0);
}

#[test]
fn a_guest_is_complete_for_pvh() {
    let ram = memory::allocate(64 << 20).unwrap();
    let kernel = kernel(small_elf(), ProtocolChoice::Pvh);
    let entry = place(&ram, &kernel, Some(&initrd(b"archive")), &line("quiet"), &TOPOLOGY).unwrap();
    let params = GuestAddress(0x6000);
    assert_eq!(entry, EntryPoint { address: GuestAddress(0x100_0010), protocol: Protocol::Pvh, params });
    let module: u64 = ram.read_obj(GuestAddress(0x6010)).unwrap();
    let initrd: u64 = ram.read_obj(GuestAddress(module)).unwrap();
    assert_eq!(text_at(&ram, initrd, 8), "archive\0");
}

#[test]
fn errors_say_what_to_try() {
    let kernel = kernel(small_elf(), ProtocolChoice::Auto);
    let place = |size, initrd: Option<&Initrd>, words: &str, cpus| {
        let topology = Topology { cpus, ..TOPOLOGY };
        place(&memory::allocate(size).unwrap(), &kernel, initrd, &line(words), &topology).unwrap_err()
    };
    let large = initrd(&vec![1; 1 << 20]);
    let long = "x".repeat(2048);
    for (error, what, advice) in [
        (place(16 << 20, None, "", 1), "needs 17 MiB", "at least 17 MiB"),
        (place(17 << 20, Some(&large), "", 1), "1024 KiB", "at least 18 MiB"),
        (place(32 << 20, None, &long, 1), "2048 bytes", "at least 1 bytes"),
        (place(32 << 20, None, "", 0), "0 CPUs", "1 to 32"),
        (place(32 << 20, None, "", 200), "200 CPUs", "1 to 32"),
    ] {
        let failure = Failure::from(error);
        assert!(failure.why.contains(what), "{failure}");
        assert!(failure.try_next.contains(advice), "{failure}");
    }
}
