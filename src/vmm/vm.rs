// SPDX-License-Identifier: Apache-2.0
//! The KVM side of a microVM: memory slots, interrupt lines, notification points, vCPUs.

use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, MsrList, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use super::arch;
use super::arch::state::VmState;
use super::devices::virtio::Windows;
use super::devices::virtio::pmem::ReadOnlyMapping;
use super::layout::{KVM_IDENTITY_MAP, KVM_TSS, MMIO_BASE};
use super::memory::Ram;

/// What was asked of KVM and refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct VmError {
    /// What was being done.
    pub what: &'static str,
    /// KVM's reason.
    pub source: kvm_ioctls::Error,
}

/// Names what was being done when KVM refused.
fn doing(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |source| VmError { what, source }
}

/// A VM without vCPUs or memory yet.
pub struct Vm {
    fd: VmFd,
    /// For what a snapshot has to ask of KVM itself.
    kvm: Kvm,
    cpuid: CpuId,
    tsc_deadline: bool,
    slots: u32,
    /// Keeps what the slots point to mapped as long as the VM lives.
    ram: Option<Arc<Ram>>,
    mappings: Vec<Arc<ReadOnlyMapping>>,
    _windows: Arc<Windows>,
    /// Takes notifications for nobody, who reads them never: it counts to where it stays.
    nobody: EventFd,
}

impl Vm {
    /// Gives the new VM `fd` its RAM and what drivers read of registers, then interrupt controllers in the kernel.
    ///
    /// In this order: KVM waits for an SRCU grace period at each change of memory and of buses, and a change of memory
    /// that follows one of buses waits longest.
    ///
    /// # Errors
    /// KVM's, with what was being done.
    pub fn new(kvm: Kvm, fd: VmFd, ram: &Arc<Ram>, windows: &Arc<Windows>) -> Result<Self, VmError> {
        // Only Intel processors without "unrestricted guest" use these, and the addresses have to be set before vCPUs.
        fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(doing("placing the identity map"))?;
        let tss = usize::try_from(KVM_TSS).unwrap_or(usize::MAX);
        fd.set_tss_address(tss).map_err(doing("placing the task state segment"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(doing("asking for the supported CPUID"))?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let no_fd = |error: std::io::Error| kvm_ioctls::Error::new(error.raw_os_error().unwrap_or(libc::EMFILE));
        let nobody = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let nobody = nobody.map_err(no_fd).map_err(doing("making a descriptor"))?;
        let mut vm = Self {
            nobody,
            fd,
            kvm,
            cpuid,
            tsc_deadline,
            slots: 0,
            ram: None,
            mappings: Vec::new(),
            _windows: Arc::clone(windows),
        };
        vm.add_ram(ram)?;
        // SAFETY: they are as long as they say, and `vm` keeps them until the VM is gone.
        unsafe { vm.add_slot(MMIO_BASE, windows.host_address(), windows.length(), KVM_MEM_READONLY) }?;
        vm.fd.create_irq_chip().map_err(doing("creating the interrupt controllers"))?;
        Ok(vm)
    }

    fn add_ram(&mut self, ram: &Arc<Ram>) -> Result<(), VmError> {
        for region in ram.iter() {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap_or(std::ptr::null_mut());
            // SAFETY: the region is mapped for its whole length, and `self.ram` keeps it so until the VM is gone.
            unsafe { self.add_slot(region.start_addr().0, host.cast_const(), region.len(), 0) }?;
        }
        self.ram = Some(Arc::clone(ram));
        Ok(())
    }

    /// Gives the guest a file's mapping that it can read and execute, but not write.
    ///
    /// # Errors
    /// KVM's.
    pub fn add_read_only(&mut self, guest: u64, mapping: Arc<ReadOnlyMapping>) -> Result<(), VmError> {
        let host: *const u8 = std::ptr::with_exposed_provenance(mapping.host_address());
        let length = mapping.length() as u64;
        // SAFETY: the mapping is as long as it says, and `self.mappings` keeps it until the VM is gone.
        unsafe { self.add_slot(guest, host, length, KVM_MEM_READONLY) }?;
        self.mappings.push(mapping);
        Ok(())
    }

    /// # Safety
    /// `length` bytes from `host` stay mapped as long as the VM lives, and the guest writes there unless `flags` forbid.
    unsafe fn add_slot(&mut self, guest: u64, host: *const u8, length: u64, flags: u32) -> Result<(), VmError> {
        let region = kvm_userspace_memory_region {
            slot: self.slots,
            flags,
            guest_phys_addr: guest,
            memory_size: length,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller's promise covers the whole range.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(doing("giving the guest memory"))?;
        self.slots += 1;
        Ok(())
    }

    /// Makes writes to `line` raise interrupt `gsi`, edge-triggered.
    ///
    /// # Errors
    /// KVM's.
    pub fn connect_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(line, gsi).map_err(doing("connecting an interrupt"))
    }

    /// Raises interrupt `gsi` once, as an edge.
    ///
    /// # Errors
    /// KVM's.
    pub fn pulse(&self, gsi: u32) -> Result<(), VmError> {
        let set = |level| self.fd.set_irq_line(gsi, level).map_err(doing("raising an interrupt"));
        set(true)?;
        set(false)
    }

    /// Has 32-bit guest writes of `value` to `address` do nothing, without an exit.
    ///
    /// # Errors
    /// KVM's.
    pub fn absorb(&self, address: u64, value: u32) -> Result<(), VmError> {
        self.fd
            .register_ioevent(&self.nobody, &IoEventAddress::Mmio(address), value)
            .map_err(doing("leaving writes aside"))
    }

    /// Makes 32-bit guest writes of 0, 1, ... to `address` signal the descriptors of `kicks`, in order, without an exit.
    ///
    /// # Errors
    /// KVM's.
    pub fn connect_notifications(&self, address: u64, kicks: &[Arc<EventFd>]) -> Result<(), VmError> {
        for (number, kick) in (0u32..).zip(kicks) {
            let address = IoEventAddress::Mmio(address);
            self.fd.register_ioevent(kick.as_ref(), &address, number).map_err(doing("connecting a queue"))?;
        }
        Ok(())
    }

    /// Makes the vCPUs, with their CPUID and, but for that, as KVM makes them.
    ///
    /// # Errors
    /// KVM's.
    pub fn create_vcpus(&self, count: u8) -> Result<Vec<VcpuFd>, VmError> {
        let create = |id: u8| {
            let vcpu = self.fd.create_vcpu(id.into()).map_err(doing("creating a vCPU"))?;
            let cpuid = arch::cpuid::for_vcpu(&self.cpuid, id, count, self.tsc_deadline);
            vcpu.set_cpuid2(&cpuid).map_err(doing("CPUID"))?;
            Ok(vcpu)
        };
        (0..count).map(create).collect()
    }

    /// What KVM supports of CPUID on this host.
    pub fn supported_cpuid(&self) -> &CpuId {
        &self.cpuid
    }

    /// Model-specific registers that a vCPU of this host has.
    ///
    /// # Errors
    /// KVM's.
    pub fn msr_list(&self) -> Result<MsrList, VmError> {
        self.kvm.get_msr_index_list().map_err(doing("asking for model-specific registers"))
    }

    /// Takes the state of interrupt controllers and clock, while no vCPU runs.
    ///
    /// # Errors
    /// KVM's.
    pub fn state(&self) -> Result<VmState, arch::state::StateError> {
        VmState::take(&self.fd)
    }

    /// Gives interrupt controllers and clock this state; vCPUs get theirs before.
    ///
    /// # Errors
    /// KVM's.
    pub fn set_state(&self, state: &VmState) -> Result<(), arch::state::StateError> {
        state.put(&self.fd)
    }
}
