// SPDX-License-Identifier: Apache-2.0
//! What the host's CPU says of itself through CPUID.

use std::arch::x86_64::{__cpuid, CpuidResult};

/// What the CPU runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platform {
    /// No hypervisor announces itself.
    Metal,
    /// A hypervisor does; this is its name, or its signature where it is not a known one.
    Virtual {
        /// As a person calls it.
        hypervisor: String,
    },
    /// QEMU's TCG: every instruction is translated, virtualization instructions included.
    Emulated,
}

/// The facts of the host CPU that decide whether and how KVM can work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Intel VT-x (CPUID 1, ECX bit 5; Intel SDM vol. 3C §25.6).
    pub vmx: bool,
    /// AMD-V (CPUID 8000_0001h, ECX bit 2; AMD APM vol. 2 §15.4).
    pub svm: bool,
    /// Metal, a VM, or emulated.
    pub platform: Platform,
}

impl Cpu {
    /// Asks this CPU.
    pub fn detect() -> Self {
        let features = cpuid(1).ecx;
        let svm = cpuid(0x8000_0000).eax >= 0x8000_0001 && cpuid(0x8000_0001).ecx & 1 << 2 != 0;
        // Bit 31 is zero on every real CPU and set by hypervisors, which then sign leaf 4000_0000h.
        let platform = if features & 1 << 31 == 0 { Platform::Metal } else { Platform::from_signature(&signature()) };
        Self { vmx: features & 1 << 5 != 0, svm, platform }
    }
}

impl Platform {
    fn from_signature(signature: &[u8; 12]) -> Self {
        let hypervisor = match signature {
            b"TCGTCGTCGTCG" => return Platform::Emulated,
            b"KVMKVMKVM\0\0\0" => "KVM",
            b"Microsoft Hv" => "Hyper-V",
            b"VMwareVMware" => "VMware",
            b"XenVMMXenVMM" => "Xen",
            b"VBoxVBoxVBox" => "VirtualBox",
            b"bhyve bhyve " => "bhyve",
            b" lrpepyh  vr" => "Parallels",
            b"ACRNACRNACRN" => "ACRN",
            other => {
                let text: String = other.iter().filter(|b| b.is_ascii_graphic()).map(|&b| char::from(b)).collect();
                let hypervisor = if text.is_empty() { "unnamed".to_owned() } else { text };
                return Platform::Virtual { hypervisor };
            }
        };
        Platform::Virtual { hypervisor: hypervisor.to_owned() }
    }
}

fn signature() -> [u8; 12] {
    let leaf = cpuid(0x4000_0000);
    let mut bytes = [0; 12];
    for (part, register) in bytes.chunks_exact_mut(4).zip([leaf.ebx, leaf.ecx, leaf.edx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    bytes
}

/// The time stamp counter of the CPU that this runs on.
pub fn time_stamp() -> u64 {
    // SAFETY: every x86-64 CPU has the counter; a host that forbids its programs to read it (PR_SET_TSC) is none that is
    // known to be used.
    unsafe { std::arch::x86_64::_rdtsc() }
}

// Rust made the intrinsic safe after the oldest version that this crate supports.
#[allow(unused_unsafe)]
fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 CPU has CPUID, and the instruction touches registers only.
    unsafe { __cpuid(leaf) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_become_names() {
        assert_eq!(Platform::from_signature(b"TCGTCGTCGTCG"), Platform::Emulated);
        let name = |signature| match Platform::from_signature(signature) {
            Platform::Virtual { hypervisor } => hypervisor,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(b"KVMKVMKVM\0\0\0"), "KVM");
        assert_eq!(name(b"New\x1b[2JHv\0\0\0"), "New[2JHv");
        assert_eq!(name(&[0; 12]), "unnamed");
    }

    #[test]
    fn this_cpu_agrees_with_its_kernel() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags: Vec<&str> = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap().split_whitespace().collect();
        let cpu = Cpu::detect();
        assert_eq!(cpu.platform != Platform::Metal, flags.contains(&"hypervisor"));
        // Not the other way round: the kernel drops the flag where the firmware has switched the feature off.
        assert!(cpu.vmx || !flags.contains(&"vmx"));
        assert!(cpu.svm || !flags.contains(&"svm"));
    }
}
