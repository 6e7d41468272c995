// SPDX-License-Identifier: Apache-2.0
//! What a vCPU says of itself: what KVM supports on this host, with this VM's topology in it.
//!
//! Leaves: Intel SDM vol. 2 "CPUID", AMD APM vol. 3 appendix E, Linux `Documentation/virt/kvm/x86/cpuid.rst`.
//! One package with `cpus` cores of one thread each.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: TSC-deadline timer, which KVM emulates everywhere but reports by a capability only.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: running under a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the count of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: the AMD counterpart of [`HTT`].
const CMP_LEGACY: u32 = 1 << 1;

/// Adapts what KVM supports (`base`) to vCPU number `id` of `cpus`.
///
/// # Panics
/// Never: `base` has fewer entries than KVM's own maximum.
pub fn for_vcpu(base: &CpuId, id: u8, cpus: u8, tsc_deadline: bool) -> CpuId {
    let topology_leaves: Vec<u32> =
        base.as_slice().iter().map(|entry| entry.function).filter(|leaf| matches!(leaf, 0xb | 0x1f)).collect();
    let mut entries: Vec<_> =
        base.as_slice().iter().filter(|entry| !matches!(entry.function, 0xb | 0x1f)).copied().collect();
    for entry in &mut entries {
        adapt(entry, id, cpus, tsc_deadline);
    }
    for leaf in [0xb, 0x1f] {
        if topology_leaves.contains(&leaf) {
            entries.extend(x2apic_topology(leaf, id, cpus));
        }
    }
    CpuId::from_entries(&entries).unwrap_or_else(|_| base.clone())
}

fn adapt(entry: &mut kvm_cpuid_entry2, id: u8, cpus: u8, tsc_deadline: bool) {
    let (id, cpus) = (u32::from(id), u32::from(cpus));
    match entry.function {
        0x1 => {
            // Bits 15:8 are the CLFLUSH size, 7:0 the brand; the rest is ours.
            entry.ebx = entry.ebx & 0xffff | cpus << 16 | id << 24;
            entry.ecx |= HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, HTT, cpus > 1);
        }
        // Deterministic cache parameters, Intel and AMD: 25:14 threads that share the cache less one; Intel has the
        // package's cores less one in 31:26. Levels 1 and 2 are a core's own, level 3 is everybody's.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14;
            if entry.function == 0x4 {
                entry.eax |= (cpus - 1) << 26;
            }
        }
        // Performance counters: not offered, so that one tenant cannot watch another's.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => set(&mut entry.ecx, CMP_LEGACY, cpus > 1),
        // ECX: 7:0 cores less one, 15:12 bits of an APIC id that tell cores apart.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | core_bits(cpus) << 12,
        // Extended APIC id, compute unit (one thread each), node 0 of 1.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// Bits of an APIC id that tell `cpus` cores apart.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Leaf 0xB or 0x1F: a thread level, a core level, and the level that ends the list.
fn x2apic_topology(leaf: u32, id: u8, cpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id.into(),
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, core_bits(cpus.into()), cpus.into(), 2), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index)).unwrap()
    }

    fn base() -> CpuId {
        let cache = |leaf, index, level: u32| kvm_cpuid_entry2 { eax: level << 5 | 1 | 63 << 14, ..entry(leaf, index) };
        let leaf1 = kvm_cpuid_entry2 { ebx: 0x1234_0842, edx: HTT, ..entry(1, 0) };
        let counters = kvm_cpuid_entry2 { eax: 2, ..entry(0xa, 0) };
        let entries = [
            leaf1,
            cache(4, 0, 1),
            cache(4, 3, 3),
            counters,
            entry(0xb, 0),
            entry(0xb, 1),
            entry(0x8000_0001, 0),
            kvm_cpuid_entry2 { ecx: 0x7_f0ff, ..entry(0x8000_0008, 0) },
            entry(0x8000_001e, 0),
        ];
        CpuId::from_entries(&entries).unwrap()
    }

    #[test]
    fn a_vcpu_knows_its_place() {
        let cpuid = for_vcpu(&base(), 2, 3, true);
        let leaf1 = find(&cpuid, 1, 0);
        assert_eq!(leaf1.ebx, 0x0203_0842);
        assert_eq!(leaf1.ecx, TSC_DEADLINE | HYPERVISOR);
        assert_eq!(leaf1.edx, HTT);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 3, 0x201, 2));
        assert_eq!(find(&cpuid, 0xb, 2).ecx, 2);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x7_2002);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let cpuid = for_vcpu(&base(), 0, 4, false);
        assert_eq!(find(&cpuid, 4, 0).eax, 3 << 26 | 1 << 5 | 1);
        assert_eq!(find(&cpuid, 4, 3).eax, 3 << 26 | 3 << 14 | 3 << 5 | 1);
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let cpuid = for_vcpu(&base(), 0, 1, false);
        assert_eq!(find(&cpuid, 1, 0).edx, 0);
        assert_eq!(find(&cpuid, 1, 0).ebx >> 16, 1);
        assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
        assert!(!cpuid.as_slice().iter().any(|entry| entry.function == 0x1f));
    }
}
