// SPDX-License-Identifier: Apache-2.0
//! x86-64: processor identification, model-specific registers, entry state, local APIC; all of it in a snapshot.

pub mod cpuid;
mod lapic;
pub mod registers;
pub mod state;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `IA32_MTRR_DEF_TYPE` (Intel SDM vol. 3 §12.11.2.1): MTRRs on, everything write-back.
const MTRR_DEF_TYPE: kvm_msr_entry = kvm_msr_entry { index: 0x2ff, reserved: 0, data: 1 << 11 | 6 };
/// `IA32_MISC_ENABLE` (Intel SDM vol. 4): fast strings on.
const MISC_ENABLE: kvm_msr_entry = kvm_msr_entry { index: 0x1a0, reserved: 0, data: 1 };

/// Gives vCPU number `id` the state in which firmware would leave it; the first one also needs [`registers::enter`].
///
/// # Errors
/// KVM's, with what was being set.
pub fn prepare_vcpu(vcpu: &VcpuFd, id: usize) -> Result<(), (&'static str, kvm_ioctls::Error)> {
    // An MSR that this host's KVM does not have ends the list early; both are better set than not, no guest needs them.
    for entry in [MTRR_DEF_TYPE, MISC_ENABLE] {
        if let Ok(msrs) = Msrs::from_entries(&[entry]) {
            vcpu.set_msrs(&msrs).map_err(|error| ("model-specific registers", error))?;
        }
    }
    if id == 0 {
        lapic::wire_legacy_interrupts(vcpu).map_err(|error| ("local APIC", error))?;
    }
    Ok(())
}
