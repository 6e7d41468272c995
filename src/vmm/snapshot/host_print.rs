// SPDX-License-Identifier: Apache-2.0
//! By what a host is known on which a snapshot can be restored: the CPU that KVM gives guests there.

use std::fmt;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use serde::{Deserialize, Serialize};

use crate::vmm::host::Host;

/// A kind of host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPrint {
    /// How guests are run.
    pub vendor: String,
    /// The CPU's name.
    pub cpu: String,
    /// Checksum of all that KVM supports of CPUID.
    pub cpuid: u32,
}

impl HostPrint {
    /// This host, whose KVM supports `cpuid`.
    pub fn new(host: &Host, cpuid: &CpuId) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        for entry in cpuid.as_slice().iter().filter_map(constant) {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            for word in [entry.function, entry.index].into_iter().chain(registers) {
                hasher.update(&word.to_le_bytes());
            }
        }
        Self { vendor: host.vendor.to_string(), cpu: name(cpuid), cpuid: hasher.finalize() }
    }
}

impl fmt::Display for HostPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {} (features {:08x})", self.vendor, self.cpu, self.cpuid)
    }
}

/// What of a leaf is the same each time that it is asked for: not which CPU it was asked on.
fn constant(entry: &kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    match entry.function {
        // Bits 31:24 are the APIC's id.
        0x1 => Some(kvm_cpuid_entry2 { ebx: entry.ebx & 0x00ff_ffff, ..*entry }),
        // Topology, which the VM has its own of.
        0xb | 0x1f | 0x8000_001e => None,
        _ => Some(*entry),
    }
}

/// The brand string (Intel SDM vol. 2 "CPUID", leaves 8000_0002h to 8000_0004h).
fn name(cpuid: &CpuId) -> String {
    let leaves =
        (0x8000_0002..=0x8000_0004).filter_map(|leaf| cpuid.as_slice().iter().find(|entry| entry.function == leaf));
    let words = leaves.flat_map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::host::{Cpu, Platform, Vendor};

    fn print(entries: &[kvm_cpuid_entry2]) -> HostPrint {
        let host = Host { vendor: Vendor::Svm, cpu: Cpu { vmx: false, svm: true, platform: Platform::Metal } };
        HostPrint::new(&host, &CpuId::from_entries(entries).unwrap())
    }

    #[test]
    fn features_count_and_the_place_does_not() {
        let leaf = |function, ebx, ecx| kvm_cpuid_entry2 { function, ebx, ecx, ..Default::default() };
        let here = print(&[leaf(1, 0x0100_0800, 7), leaf(0xb, 3, 3)]);
        assert_eq!(here, print(&[leaf(1, 0x0700_0800, 7), leaf(0xb, 4, 9)]));
        assert_ne!(here, print(&[leaf(1, 0x0100_0800, 5), leaf(0xb, 3, 3)]));
        assert_ne!(here, print(&[leaf(1, 0x0100_0800, 7), leaf(7, 1, 0)]));
    }

    #[test]
    fn the_cpu_has_its_name() {
        let leaf = |function, text: &[u8; 4]| kvm_cpuid_entry2 {
            function,
            eax: u32::from_le_bytes(*text),
            ebx: u32::from_le_bytes(*b" CPU"),
            ..Default::default()
        };
        assert_eq!(print(&[leaf(0x8000_0002, b"Fast"), leaf(0x8000_0003, b"none")]).cpu, "Fast CPU");
    }
}
