// SPDX-License-Identifier: Apache-2.0
//! What a snapshot holds of vCPUs and of KVM's own devices, and the order in which KVM gives and takes it
//! (Linux `Documentation/virt/kvm/api.rst`, and `arch/x86/kvm/x86.c` where that is silent).

use std::collections::BTreeSet;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, MsrList, Msrs, kvm_clock_data, kvm_debugregs,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// Registers that KVM has but leaves out of its list: MTRRs (Intel SDM vol. 3 §12.11).
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
/// `IA32_TSC` (Intel SDM vol. 4).
const TSC: u32 = 0x10;
/// Registers in one call; KVM takes 255 (`MAX_IO_MSRS`).
const BATCH: usize = 128;
/// Two measurements of the same time stamp counter differ by as much, in parts of a million.
const TSC_TOLERANCE_PPM: u32 = 250;

/// What could not be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refused.
    #[error("KVM refuses the {what}: {source}")]
    Kvm {
        /// Which part of the state.
        what: &'static str,
        /// KVM's reason.
        source: kvm_ioctls::Error,
    },
    /// A register that this host's KVM does not let be set to its value.
    #[error("KVM refuses model-specific register {index:#x} with the value {value:#x}")]
    Msr {
        /// Its number.
        index: u32,
        /// The value in the snapshot.
        value: u64,
    },
    /// The guest has ended, or a vCPU does not stop.
    #[error("a vCPU has ended, or does not answer")]
    Silent,
    /// The guest's clock would run at another pace.
    #[error("the time stamp counter ran at {then_khz} kHz and runs at {now_khz} kHz here")]
    Tsc {
        /// When the snapshot was taken.
        then_khz: u32,
        /// On this host.
        now_khz: u32,
    },
}

fn doing(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { what, source }
}

/// One vCPU.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: kvm_xsave,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// 0 where the host does not tell.
    tsc_khz: u32,
    /// Model-specific registers, `(number, value)`.
    msrs: Vec<(u32, u64)>,
}

impl VcpuState {
    /// Takes the state of a vCPU that is between two instructions, with no access to a device half done; `list` is what
    /// KVM says to have of model-specific registers.
    ///
    /// # Errors
    /// KVM's.
    pub fn take(vcpu: &VcpuFd, list: &MsrList) -> Result<Self, StateError> {
        // First, since it may take in an INIT or SIPI, which changes all the rest.
        let mp_state = vcpu.get_mp_state().map_err(doing("run state"))?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().map_err(doing("registers"))?,
            sregs: vcpu.get_sregs().map_err(doing("system registers"))?,
            xsave: vcpu.get_xsave().map_err(doing("extended registers"))?,
            xcrs: vcpu.get_xcrs().map_err(doing("extended control registers"))?,
            debug: vcpu.get_debug_regs().map_err(doing("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(doing("local APIC"))?,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            msrs: read_msrs(vcpu, list)?,
            // Last: the calls before may change what is pending.
            events: vcpu.get_vcpu_events().map_err(doing("pending events"))?,
        })
    }

    /// Gives a new vCPU, which has its CPUID, this state.
    ///
    /// # Errors
    /// KVM's, and [`StateError::Tsc`].
    pub fn put(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        self.check_tsc(vcpu)?;
        vcpu.set_mp_state(self.mp_state).map_err(doing("run state"))?;
        // The base of the local APIC is in here, so it comes before the APIC's registers.
        vcpu.set_sregs(&self.sregs).map_err(doing("system registers"))?;
        vcpu.set_regs(&self.regs).map_err(doing("registers"))?;
        // XCR0 says which parts of the extended state there are.
        // A CPU without XSAVE has none, and then KVM takes none.
        if self.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs).map_err(doing("extended control registers"))?;
        }
        // SAFETY: features that need more room than the structure has are off unless this process asks for them
        // (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM), which it never does.
        unsafe { vcpu.set_xsave(&self.xsave) }.map_err(doing("extended registers"))?;
        vcpu.set_debug_regs(&self.debug).map_err(doing("debug registers"))?;
        vcpu.set_lapic(&self.lapic).map_err(doing("local APIC"))?;
        // The deadline of the APIC's timer is one of these, and counts only once the APIC is in that mode.
        self.write_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(doing("pending events"))
    }

    /// The value of its time stamp counter, where KVM tells it.
    pub fn tsc(&self) -> Option<u64> {
        self.msrs.iter().find(|(index, _)| *index == TSC).map(|(_, value)| *value)
    }

    fn check_tsc(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let (then_khz, now_khz) = (self.tsc_khz, vcpu.get_tsc_khz().unwrap_or(0));
        if then_khz == 0 || now_khz == 0 || near(then_khz, now_khz) || vcpu.set_tsc_khz(then_khz).is_ok() {
            return Ok(());
        }
        Err(StateError::Tsc { then_khz, now_khz })
    }

    fn write_msrs(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let mut rest = self.msrs.as_slice();
        while !rest.is_empty() {
            let entries: Vec<_> = rest.iter().take(BATCH).map(|&(index, data)| entry(index, data)).collect();
            let done = vcpu.set_msrs(&list_of(&entries)).map_err(doing("model-specific registers"))?;
            rest = rest.get(done..).unwrap_or_default();
            if done < entries.len()
                && let Some((&(index, value), after)) = rest.split_first()
            {
                // Some cannot be written at all, and need not be: they have the value.
                if read_batch(vcpu, &[index])?.first() != Some(&(index, value)) {
                    return Err(StateError::Msr { index, value });
                }
                rest = after;
            }
        }
        Ok(())
    }
}

fn near(a: u32, b: u32) -> bool {
    u64::from(a.abs_diff(b)) * 1_000_000 <= u64::from(a) * u64::from(TSC_TOLERANCE_PPM)
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, reserved: 0, data }
}

fn list_of(entries: &[kvm_msr_entry]) -> Msrs {
    // Fails for more entries than KVM takes, which a batch never has.
    Msrs::from_entries(entries).unwrap_or_else(|_| unreachable!("a batch fits"))
}

/// All registers of `list`, and the MTRRs, that can be read.
fn read_msrs(vcpu: &VcpuFd, list: &MsrList) -> Result<Vec<(u32, u64)>, StateError> {
    let listed = list.as_slice().iter().copied();
    // In order, and each once: the time stamp counter comes before the deadline that is measured in it.
    let all: BTreeSet<u32> = listed.chain(MTRRS.into_iter().flatten()).collect();
    let all: Vec<u32> = all.into_iter().collect();
    let mut read = Vec::with_capacity(all.len());
    for batch in all.chunks(BATCH) {
        read.extend(read_batch(vcpu, batch)?);
    }
    Ok(read)
}

/// Those of `indices` that can be read.
fn read_batch(vcpu: &VcpuFd, mut indices: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut read = Vec::with_capacity(indices.len());
    while !indices.is_empty() {
        let mut msrs = list_of(&indices.iter().map(|index| entry(*index, 0)).collect::<Vec<_>>());
        let count = vcpu.get_msrs(&mut msrs).map_err(doing("model-specific registers"))?;
        read.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        // KVM stops at the first that it does not have.
        indices = indices.get(count + 1..).unwrap_or_default();
    }
    Ok(read)
}

/// The interrupt controllers and the clock of a VM.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct VmState {
    chips: Vec<kvm_irqchip>,
    clock: kvm_clock_data,
}

impl VmState {
    /// Takes the state of a VM whose vCPUs stand still.
    ///
    /// # Errors
    /// KVM's.
    pub fn take(vm: &VmFd) -> Result<Self, StateError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(doing("interrupt controllers"))?;
            Ok(chip)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC].map(chip);
        let mut clock = vm.get_clock().map_err(doing("clock"))?;
        // Flags that KVM gives and does not take back: the clock goes on from its value, not from the host's time.
        clock.flags = 0;
        Ok(Self { chips: chips.into_iter().collect::<Result<_, _>>()?, clock })
    }

    /// Gives a new VM, whose vCPUs have their state, this one. Interrupts that wait in the I/O APIC go to the local
    /// ones, which therefore come first.
    ///
    /// # Errors
    /// KVM's.
    pub fn put(&self, vm: &VmFd) -> Result<(), StateError> {
        vm.set_clock(&self.clock).map_err(doing("clock"))?;
        self.chips.iter().try_for_each(|chip| vm.set_irqchip(chip).map_err(doing("interrupt controllers")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_of_one_counter_are_near() {
        assert!(near(2_500_000, 2_500_000) && near(2_500_000, 2_500_600));
        assert!(!near(2_500_000, 2_501_000) && !near(2_500_000, 1));
    }
}
