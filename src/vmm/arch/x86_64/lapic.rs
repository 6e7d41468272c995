// SPDX-License-Identifier: Apache-2.0
//! Local APIC of the boot processor in "virtual wire" mode (MP specification 1.4 §3.6.2.2).

use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::{Error, VcpuFd};

/// Offsets of the local vector table (Intel SDM vol. 3 §11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes, in bits 8 to 10 of an entry.
const EXTINT: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// LINT0 takes the legacy interrupt controller's line, LINT1 is the NMI, as firmware would leave them.
pub fn wire_legacy_interrupts(vcpu: &VcpuFd) -> Result<(), Error> {
    let mut state = vcpu.get_lapic()?;
    set_register(&mut state, LVT_LINT0, EXTINT);
    set_register(&mut state, LVT_LINT1, NMI);
    vcpu.set_lapic(&state)
}

fn set_register(state: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in state.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_little_endian_at_their_offset() {
        let mut state = kvm_lapic_state::default();
        set_register(&mut state, LVT_LINT0, EXTINT | 0x80);
        assert_eq!(state.regs[0x34f..0x355], [0, -128, 7, 0, 0, 0]);
    }
}
