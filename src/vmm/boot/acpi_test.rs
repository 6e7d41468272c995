// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::vmm::memory;
use proptest::prelude::*;

fn topology(cpus: u8, virtio: &[MmioDevice]) -> Topology<'_> {
    Topology { cpus, virtio, generation_id: Some(1), pvpanic: true, serial: true }
}

fn devices(count: u32) -> Vec<MmioDevice> {
    (0..count).map(|n| MmioDevice { address: 0xd000_0000 + u64::from(n) * 4096, size: 4096, gsi: 5 + n }).collect()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows the pointers as a kernel does. Every table's checksum and length are checked on the way.
struct Walk {
    ram: std::sync::Arc<Ram>,
}

impl Walk {
    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        assert!(address >= ACPI_START && address + length as u64 <= VMGENID, "{address:#x}+{length:#x}");
        let mut bytes = vec![0; length];
        self.ram.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn table(&self, address: u64) -> Vec<u8> {
        let header = self.bytes(address, 36);
        let length = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let table = self.bytes(address, usize::try_from(length).unwrap());
        assert_eq!(sum(&table), 0, "{:?}", std::str::from_utf8(&header[..4]));
        table
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// FADT, MADT and DSDT.
    fn all(topology: &Topology<'_>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let walk = Self { ram: memory::allocate(4 << 20).unwrap() };
        let rsdp = build_acpi(&walk.ram, topology).unwrap();
        assert_eq!(rsdp.0, 0xe_0000);
        let rsdp = walk.bytes(rsdp.0, 36);
        assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = walk.table(Self::u64_at(&rsdp, 24));
        assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 16));
        let fadt = walk.table(Self::u64_at(&xsdt, 36));
        let madt = walk.table(Self::u64_at(&xsdt, 44));
        let dsdt = walk.table(Self::u64_at(&fadt, 140));
        assert_eq!((&fadt[..4], &madt[..4], &dsdt[..4]), (&b"FACP"[..], &b"APIC"[..], &b"DSDT"[..]));
        (fadt, madt, dsdt)
    }
}

#[test]
fn the_fadt_says_how_to_sleep_and_reset() {
    let (fadt, _, _) = Walk::all(&topology(1, &[]));
    // Offsets of ACPI 6.5 table 5.9.
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags, 1 << 20 | 1 << 10 | 1 << 4 | 1 << 5);
    let register = |port: u16| [&[1, 8, 0, 1][..], &u64::from(port).to_le_bytes()].concat();
    assert_eq!(fadt[116..128], register(0x602));
    assert_eq!(fadt[128], 1);
    assert_eq!(fadt[244..256], register(0x600));
    assert_eq!(fadt[256..268], register(0x601));
    assert_eq!(fadt[109..111], [0b100, 0]);
}

#[test]
fn the_madt_lists_every_cpu_and_the_io_apic() {
    for cpus in [1, 2, 8] {
        let (_, madt, _) = Walk::all(&topology(cpus, &[]));
        assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
        let mut rest = &madt[44..];
        for id in 0..cpus {
            assert_eq!(rest[..8], [0, 8, id, id, 1, 0, 0, 0]);
            rest = &rest[8..];
        }
        assert_eq!(rest, [1, 12, cpus, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    }
}

/// Counts the named device objects of an AML body, walking package lengths (ACPI 6.5 §20.2.4, §20.2.5.2).
fn device_names(aml: &[u8]) -> Vec<String> {
    let (mut at, mut names) = (0, Vec::new());
    while at < aml.len() {
        let (skip, scope) = match aml[at..] {
            [0x10, ..] => (1, true),
            [0x5b, 0x82, ..] => (2, false),
            // Name(_S5_, Package): the only other thing at the top.
            [0x08, b'_', b'S', b'5', b'_', 0x12, length, ..] => {
                at += 6 + usize::from(length);
                continue;
            }
            ref other => panic!("unknown AML {:x?}", &other[..8.min(other.len())]),
        };
        let lead = usize::from(aml[at + skip]);
        let more = lead >> 6;
        let length = match more {
            0 => lead & 0x3f,
            more => (1..=more).fold(lead & 0xf, |sum, n| sum | usize::from(aml[at + skip + n]) << (4 + 8 * (n - 1))),
        };
        let (body, end) = (at + skip + 1 + more, at + skip + length);
        if scope {
            let prefix = if aml[body] == b'\\' { 1 } else { 0 };
            assert_eq!(aml[body + prefix..body + prefix + 4], *b"_SB_");
            names.extend(device_names(&aml[body + prefix + 4..end]));
        } else {
            names.push(String::from_utf8(aml[body..body + 4].to_vec()).unwrap());
        }
        at = end;
    }
    assert_eq!(at, aml.len());
    names
}

#[test]
fn the_dsdt_holds_every_device() {
    let (_, _, dsdt) = Walk::all(&topology(2, &devices(17)));
    let mut want = vec!["C000".to_owned(), "C001".into(), "COM1".into()];
    want.extend((0..17).map(|n| format!("V{n:03X}")));
    want.extend(["VGEN".to_owned(), "GEVT".into(), "PEVT".into()]);
    assert_eq!(device_names(&dsdt[36..]), want);
    // Package of two integers: a double word, and zero.
    let address = b"ADDR\x12\x08\x02\x0c\x00\xf0\x0f\x00\x00";
    assert!(dsdt.windows(address.len()).any(|window| window == address));
    // Method _EVT of one argument, serialized: Notify (VGEN, 0x80).
    let event = b"\x14\x0d_EVT\x09\x86VGEN\x0a\x80";
    assert!(dsdt.windows(event.len()).any(|window| window == event));
    // Memory32Fixed, read-write, and an edge-triggered, active-high, exclusive interrupt (§6.4.3.4, §6.4.3.6).
    let last = [0x86, 9, 0, 1, 0, 0, 1, 0xd0, 0, 0x10, 0, 0, 0x89, 6, 0, 0b0011, 1, 21, 0, 0, 0];
    assert!(dsdt.windows(last.len()).any(|window| window == last));
}

#[test]
fn what_is_not_there_is_not_described() {
    let bare = Topology { cpus: 1, virtio: &[], generation_id: None, pvpanic: false, serial: false };
    let (_, _, dsdt) = Walk::all(&bare);
    assert_eq!(device_names(&dsdt[36..]), ["C000"]);
}

#[test]
fn a_device_out_of_reach_is_an_error() {
    for (address, size) in [(1 << 32, 4096), (0xffff_f001, 4096), (0, 1 << 32)] {
        let device = [MmioDevice { address, size, gsi: 5 }];
        assert_eq!(tables(&topology(1, &device)), Err(AcpiError::DeviceAddress(address)));
    }
}

#[test]
fn tables_that_do_not_fit_are_an_error() {
    let many = devices(4000);
    assert!(matches!(tables(&topology(1, &many)), Err(AcpiError::TooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_machine_can_be_walked(
        cpus in 1u8..=255, serial: bool, pvpanic: bool, generation_id: Option<u128>,
        virtio in prop::collection::vec((any::<u32>(), 0u64..65536, any::<u32>()), 0..24)
    ) {
        let virtio: Vec<_> = virtio
            .into_iter()
            .map(|(address, size, gsi)| MmioDevice { address: u64::from(address), size, gsi })
            .filter(|device| device.address + device.size < 1 << 32)
            .collect();
        let (_, _, dsdt) = Walk::all(&Topology { cpus, virtio: &virtio, generation_id, pvpanic, serial });
        // With the ID comes the device whose event tells of its change.
        let extra = usize::from(serial) + usize::from(pvpanic) + 2 * usize::from(generation_id.is_some());
        prop_assert_eq!(device_names(&dsdt[36..]).len(), usize::from(cpus) + virtio.len() + extra);
    }
}
