// SPDX-License-Identifier: Apache-2.0
//! What this host's KVM can and cannot do.
//!
//! [`Host::detect`] and [`open`] are cheap (CPUID, at most three `stat`s, one `open`): a VMM runs them each time it
//! starts. [`capabilities`] asks for everything and is for `coracle doctor`.

pub mod capabilities;
mod cpu;
mod unavailable;

use std::fmt;
use std::path::Path;

use kvm_ioctls::{Kvm, VmFd};

pub use cpu::{Cpu, Platform, time_stamp};
pub use unavailable::Unavailable;

/// The device node through which KVM is used.
pub const DEVICE: &str = "/dev/kvm";

/// What a kernel that runs under PVM must leave alone. PVM interprets the guest kernel, its interpreter lacks these
/// instructions, and `KVM_SET_CPUID2` cannot hide them: only the guest's own command line keeps the kernel off them.
///
/// In this order: popcnt, cx16, rdrand, rdseed, bmi1, bmi2, movbe, erms, fsrm, smap, smep, umip. By number (Linux
/// `asm/cpufeatures.h`), since for each name the kernel searches a list of hundreds.
const PVM_COMMAND_LINE: &str = "clearcpuid=151,141,158,306,291,296,150,297,580,308,295,514";

/// The KVM vendor module, that is, how guests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel VT-x (`kvm_intel`; Intel SDM vol. 3C).
    Vmx,
    /// AMD-V (`kvm_amd`; AMD APM vol. 2 ch. 15).
    Svm,
    /// Pagetable Virtual Machine (`kvm_pvm`): no hardware virtualization; guest user space runs natively, the guest
    /// kernel is interpreted.
    Pvm,
    /// None of these: KVM is not loaded, or by a module that is not known here.
    Unknown,
}

impl Vendor {
    /// Only one vendor module can be active, but one that is built into the kernel leaves its directory under
    /// `/sys/module` also on the other maker's CPU: the CPU's own flag decides between them.
    fn detect(cpu: &Cpu, is_loaded: impl Fn(&str) -> bool) -> Self {
        if cpu.vmx && is_loaded("kvm_intel") {
            Vendor::Vmx
        } else if cpu.svm && is_loaded("kvm_amd") {
            Vendor::Svm
        } else if is_loaded("kvm_pvm") {
            Vendor::Pvm
        } else {
            Vendor::Unknown
        }
    }

    /// Name of the kernel module, where there is one.
    pub fn module(self) -> Option<&'static str> {
        match self {
            Vendor::Vmx => Some("kvm_intel"),
            Vendor::Svm => Some("kvm_amd"),
            Vendor::Pvm => Some("kvm_pvm"),
            Vendor::Unknown => None,
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Vendor::Vmx => "VMX",
            Vendor::Svm => "SVM",
            Vendor::Pvm => "PVM",
            Vendor::Unknown => "unknown",
        })
    }
}

/// The kind of host this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// How guests are run.
    pub vendor: Vendor,
    /// What the host's CPU says of itself.
    pub cpu: Cpu,
}

impl Host {
    /// Looks at the CPU and at which vendor module is loaded. Opens nothing.
    pub fn detect() -> Self {
        let cpu = Cpu::detect();
        Self { vendor: Vendor::detect(&cpu, is_loaded), cpu }
    }

    /// What has to be added to a guest's kernel command line on this host; empty on VMX and SVM.
    pub fn guest_command_line(&self) -> &'static str {
        match self.vendor {
            Vendor::Pvm => PVM_COMMAND_LINE,
            Vendor::Vmx | Vendor::Svm | Vendor::Unknown => "",
        }
    }

    /// Whether a kernel that knows nothing of this host, as distributions build them, can run here.
    pub fn runs_stock_kernels(&self) -> bool {
        self.vendor != Vendor::Pvm
    }
}

impl fmt::Display for Host {
    /// "SVM (kvm_amd), emulated by QEMU TCG".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vendor)?;
        if let Some(module) = self.vendor.module() {
            write!(f, " ({module})")?;
        }
        match &self.cpu.platform {
            Platform::Metal => Ok(()),
            Platform::Emulated => f.write_str(", emulated by QEMU TCG"),
            Platform::Virtual { hypervisor } => write!(f, ", inside a VM ({hypervisor})"),
        }
    }
}

fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// Opens `/dev/kvm`.
///
/// # Errors
/// Which of the many reasons it is that KVM cannot be used, found out only once it has failed.
pub fn open() -> Result<Kvm, Unavailable> {
    let kvm = Kvm::new().map_err(|error| Unavailable::from_open(error.errno()))?;
    // Version 12 is the only one there has been since Linux 2.6.22; the API demands that others are refused.
    match kvm.get_api_version() {
        12 => Ok(kvm),
        // The node is no KVM and does not know the request.
        ..0 => Err(Unavailable::NotKvm),
        version => Err(Unavailable::ApiVersion(version)),
    }
}

/// Creates a VM, which is where another hypervisor's hold on the CPU shows.
///
/// # Errors
/// [`Unavailable::Busy`] where the CPU's virtualization is in use by another hypervisor; else the kernel's refusal.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, Unavailable> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            // Creation forks kernel threads and gives up when a signal is pending.
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) if error.errno() == libc::EBUSY => return Err(Unavailable::Busy),
            Err(error) => return Err(Unavailable::Create(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vmx: bool, svm: bool) -> Cpu {
        Cpu { vmx, svm, platform: Platform::Metal }
    }

    #[test]
    fn the_cpu_decides_between_two_built_in_modules() {
        let built_in = |module: &str| module != "kvm_pvm";
        assert_eq!(Vendor::detect(&cpu(true, false), built_in), Vendor::Vmx);
        assert_eq!(Vendor::detect(&cpu(false, true), built_in), Vendor::Svm);
        assert_eq!(Vendor::detect(&cpu(false, false), built_in), Vendor::Unknown);
    }

    #[test]
    fn pvm_is_found_with_and_without_hardware_virtualization() {
        let pvm = |module: &str| module == "kvm_pvm";
        assert_eq!(Vendor::detect(&cpu(false, false), pvm), Vendor::Pvm);
        assert_eq!(Vendor::detect(&cpu(true, false), pvm), Vendor::Pvm);
    }

    #[test]
    fn only_pvm_changes_the_guest_command_line() {
        for vendor in [Vendor::Vmx, Vendor::Svm, Vendor::Unknown] {
            assert_eq!(Host { vendor, cpu: cpu(true, true) }.guest_command_line(), "");
        }
        let pvm = Host { vendor: Vendor::Pvm, cpu: cpu(false, false) };
        assert!(pvm.guest_command_line().contains("clearcpuid="));
        assert!(!pvm.runs_stock_kernels());
    }

    #[test]
    fn a_host_is_described_in_one_line() {
        let emulated = Cpu { vmx: false, svm: true, platform: Platform::Emulated };
        let host = Host { vendor: Vendor::Svm, cpu: emulated };
        assert_eq!(host.to_string(), "SVM (kvm_amd), emulated by QEMU TCG");
        assert_eq!(Host { vendor: Vendor::Unknown, cpu: cpu(false, false) }.to_string(), "unknown");
    }
}
