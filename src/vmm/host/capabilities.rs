// SPDX-License-Identifier: Apache-2.0
//! The KVM capabilities that Coracle uses (Linux, Documentation/virt/kvm/api.rst §8 and the `Capability:` lines).

use kvm_bindings as kvm;
use kvm_ioctls::Kvm;

/// One capability, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// The constant's name without `KVM_CAP_`.
    pub name: &'static str,
    /// The number that `KVM_CHECK_EXTENSION` takes.
    pub number: u32,
    /// No guest runs without it.
    pub required: bool,
    /// What it is for, or what is lost where it is missing.
    pub purpose: &'static str,
}

macro_rules! capabilities {
    ($($required:literal $constant:ident $name:literal $purpose:literal;)*) => {
        &[$(Capability { name: $name, number: kvm::$constant, required: $required, purpose: $purpose }),*]
    };
}

/// All that are used, or will be where the host has them.
pub const USED: &[Capability] = capabilities! {
    true KVM_CAP_USER_MEMORY "USER_MEMORY" "guest memory";
    true KVM_CAP_IRQCHIP "IRQCHIP" "interrupt controllers in the kernel";
    true KVM_CAP_IRQFD "IRQFD" "interrupts by eventfd";
    true KVM_CAP_IOEVENTFD "IOEVENTFD" "queue notifications without leaving the kernel";
    true KVM_CAP_IMMEDIATE_EXIT "IMMEDIATE_EXIT" "pausing vCPUs without a race";
    true KVM_CAP_READONLY_MEM "READONLY_MEM" "memory that the guest cannot write: registers, pmem images";
    true KVM_CAP_EXT_CPUID "EXT_CPUID" "CPU features as KVM supports them";
    true KVM_CAP_MP_STATE "MP_STATE" "secondary vCPUs that wait to be started";
    false KVM_CAP_SET_TSS_ADDR "SET_TSS_ADDR" "real mode on VMX";
    false KVM_CAP_TSC_DEADLINE_TIMER "TSC_DEADLINE_TIMER" "cheap timer interrupts";
    false KVM_CAP_X2APIC_API "X2APIC_API" "x2APIC identifiers and cheap interrupts between vCPUs";
    false KVM_CAP_SYNC_REGS "SYNC_REGS" "registers read without a system call (profiling)";
    false KVM_CAP_BINARY_STATS_FD "BINARY_STATS_FD" "exact counts of exits and interpreted instructions";
    false KVM_CAP_X86_MSR_FILTER "X86_MSR_FILTER" "model-specific registers kept from the guest";
    false KVM_CAP_DIRTY_LOG_RING "DIRTY_LOG_RING" "snapshots of only what has changed";
    false KVM_CAP_GUEST_MEMFD "GUEST_MEMFD" "guest memory that the host does not map";
    false KVM_CAP_TSC_CONTROL "TSC_CONTROL" "a snapshot resumed on a CPU of another clock rate";
};

/// A capability with KVM's answer.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Which one was asked for.
    pub capability: &'static Capability,
    /// What `KVM_CHECK_EXTENSION` said: 0 is no, more is yes or a count.
    pub value: i32,
}

impl Answer {
    /// Whether the host has it.
    pub fn is_present(&self) -> bool {
        self.value > 0
    }
}

/// Asks for every capability in [`USED`].
pub fn probe(kvm: &Kvm) -> Vec<Answer> {
    let ask = |capability: &'static Capability| Answer {
        capability,
        value: kvm.check_extension_raw(u64::from(capability.number)),
    };
    USED.iter().map(ask).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_capability_is_listed_twice() {
        for (index, one) in USED.iter().enumerate() {
            assert!(USED.iter().skip(index + 1).all(|other| other.number != one.number), "{}", one.name);
        }
    }
}
