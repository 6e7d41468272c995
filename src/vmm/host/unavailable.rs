// SPDX-License-Identifier: Apache-2.0
//! Why KVM cannot be used, and the command that mends it.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use crate::failure::Failure;

use super::{Cpu, DEVICE, Platform};

/// Which of the reasons it is. `Display` says why; [`Unavailable::remedy`] says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The CPU could, but nothing has loaded the module.
    #[error("{DEVICE} does not exist: the kernel module {module} is not loaded")]
    NotLoaded {
        /// The module that fits this CPU.
        module: &'static str,
    },
    /// The CPU could, but its firmware does not let it.
    #[error("{DEVICE} does not exist: the firmware (BIOS/UEFI) has switched {feature} off")]
    FirmwareOff {
        /// What the firmware's setup calls it.
        feature: &'static str,
    },
    /// The CPU cannot.
    #[error("{DEVICE} does not exist: this CPU reports neither Intel VT-x nor AMD-V")]
    NoVirtualization,
    /// This is a VM, and its hypervisor hides the feature.
    #[error("{DEVICE} does not exist: this is a virtual machine ({hypervisor}) with nested virtualization off")]
    NestedOff {
        /// Who runs this VM.
        hypervisor: String,
    },
    /// KVM is loaded, but the node is missing: a container, or a bare chroot.
    #[error("KVM is loaded, but there is no device node {DEVICE} here, as in a container that was not given it")]
    NoNode,
    /// The path is something else.
    #[error("{DEVICE} is not KVM's device node")]
    NotKvm,
    /// The node's mode does not admit this user.
    #[error("permission denied: {DEVICE} belongs to group {group:?} with mode {mode:03o}")]
    Permission {
        /// The node's group, by name or number.
        group: String,
        /// The node's permission bits.
        mode: u32,
    },
    /// The node's mode would admit, but something above it does not: a device cgroup or a security module.
    #[error("{DEVICE} may not be opened here: a container's device rules or a security module forbid it")]
    Forbidden,
    /// Another hypervisor holds the CPU's virtualization.
    #[error("the CPU's virtualization is in use by another hypervisor (VirtualBox, VMware or the like)")]
    Busy,
    /// A KVM that cannot be talked to.
    #[error("{DEVICE} speaks KVM API version {0}, and only 12 is known")]
    ApiVersion(i32),
    /// Opening failed otherwise.
    #[error("{DEVICE} cannot be opened: {0}")]
    Open(io::Error),
    /// `KVM_CREATE_VM` failed otherwise.
    #[error("KVM refuses to create a VM: {0}")]
    Create(io::Error),
}

impl Unavailable {
    /// Finds the reason behind the `errno` that opening the node gave.
    pub(super) fn from_open(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => Self::absent(),
            libc::EACCES => match fs::metadata(DEVICE) {
                Ok(node) => Unavailable::Permission { group: group_name(node.gid()), mode: node.mode() & 0o777 },
                Err(_) => Unavailable::Forbidden,
            },
            libc::EPERM => Unavailable::Forbidden,
            errno => match fs::metadata(DEVICE) {
                Ok(node) if !node.file_type().is_char_device() => Unavailable::NotKvm,
                _ => Unavailable::Open(io::Error::from_raw_os_error(errno)),
            },
        }
    }

    fn absent() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // The misc device registers only once a vendor module has found its CPU usable.
        let registered = fs::read_to_string("/proc/misc").is_ok_and(|misc| has_word(&misc, "kvm"));
        Self::explain_absence(&Cpu::detect(), registered, &cpuinfo)
    }

    fn explain_absence(cpu: &Cpu, registered: bool, cpuinfo: &str) -> Self {
        if registered {
            return Unavailable::NoNode;
        }
        // The kernel takes the flag out of /proc/cpuinfo where the firmware has locked the feature; CPUID keeps it.
        match (cpu.vmx, cpu.svm, &cpu.platform) {
            (true, _, Platform::Metal) if !has_word(cpuinfo, "vmx") => {
                Unavailable::FirmwareOff { feature: "Intel VT-x" }
            }
            (_, true, Platform::Metal) if !has_word(cpuinfo, "svm") => Unavailable::FirmwareOff { feature: "AMD SVM" },
            (true, _, _) => Unavailable::NotLoaded { module: "kvm_intel" },
            (_, true, _) => Unavailable::NotLoaded { module: "kvm_amd" },
            (false, false, Platform::Metal) => Unavailable::NoVirtualization,
            (false, false, Platform::Virtual { hypervisor }) => {
                Unavailable::NestedOff { hypervisor: hypervisor.clone() }
            }
            (false, false, Platform::Emulated) => Unavailable::NestedOff { hypervisor: "QEMU TCG".to_owned() },
        }
    }

    /// What to do about it, as a command where one mends it.
    pub fn remedy(&self) -> String {
        match self {
            Unavailable::NotLoaded { module } => format!("sudo modprobe {module}"),
            Unavailable::FirmwareOff { feature } => {
                format!("enable {feature} in the firmware's setup, then switch the machine off and on")
            }
            Unavailable::NoVirtualization => "use a machine with Intel VT-x or AMD-V".to_owned(),
            Unavailable::NestedOff { hypervisor } => nested_remedy(hypervisor),
            Unavailable::NoNode => {
                "in a container: run it with --device /dev/kvm; else: sudo mknod -m 660 /dev/kvm c 10 232".to_owned()
            }
            Unavailable::NotKvm => "sudo rm /dev/kvm && sudo udevadm trigger --name-match=kvm --action=add".to_owned(),
            // Membership of group root would give far more than KVM.
            Unavailable::Permission { group, mode } if group == "root" || mode & 0o060 != 0o060 => {
                "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && sudo usermod -aG kvm $USER, then log in again"
                    .to_owned()
            }
            Unavailable::Permission { group, .. } => format!("sudo usermod -aG {group} $USER, then log in again"),
            Unavailable::Forbidden => "run the container with --device /dev/kvm".to_owned(),
            Unavailable::Busy => "stop the other hypervisor's virtual machines, or unload its kernel module".to_owned(),
            Unavailable::ApiVersion(_) => "run Linux 5.10 or later".to_owned(),
            Unavailable::Open(_) | Unavailable::Create(_) => {
                "read the kernel's log: sudo dmesg | grep -i kvm".to_owned()
            }
        }
    }
}

impl From<Unavailable> for Failure {
    fn from(reason: Unavailable) -> Self {
        Failure::new("cannot use KVM on this host", &reason, reason.remedy())
    }
}

fn nested_remedy(hypervisor: &str) -> String {
    let how = match hypervisor {
        "KVM" => "on its host: sudo modprobe kvm_intel nested=1 (or kvm_amd), and the CPU as host-passthrough",
        "Hyper-V" => "on its host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true",
        "VMware" => "in its settings: Processors, Virtualize Intel VT-x/EPT or AMD-V/RVI (vhv.enable = \"TRUE\")",
        "VirtualBox" => "on its host: VBoxManage modifyvm NAME --nested-hw-virt on",
        _ => "ask its owner for nested virtualization, or for an instance type that has it",
    };
    format!("{how}; or scripts/svm-host to try Coracle on an emulated host")
}

fn has_word(text: &str, word: &str) -> bool {
    text.split_whitespace().any(|w| w == word)
}

/// Name of a group, from `/etc/group` only: name services would pull a resolver into a static binary.
fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    find_group(&groups, gid).map_or_else(|| gid.to_string(), str::to_owned)
}

fn find_group(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absence(vmx: bool, svm: bool, platform: Platform, cpuinfo: &str) -> Unavailable {
        Unavailable::explain_absence(&Cpu { vmx, svm, platform }, false, cpuinfo)
    }

    #[test]
    fn a_missing_module_names_the_one_that_fits_the_cpu() {
        let intel = absence(true, false, Platform::Metal, "flags : fpu vmx");
        assert_eq!(intel.remedy(), "sudo modprobe kvm_intel");
        assert_eq!(absence(false, true, Platform::Metal, "flags : svm").remedy(), "sudo modprobe kvm_amd");
    }

    #[test]
    fn a_flag_that_the_kernel_dropped_points_at_the_firmware() {
        let why = absence(true, false, Platform::Metal, "flags : fpu").to_string();
        assert!(why.contains("firmware") && why.contains("VT-x"), "{why}");
    }

    #[test]
    fn no_flag_means_an_old_cpu_on_metal_and_nesting_switched_off_in_a_vm() {
        assert!(matches!(absence(false, false, Platform::Metal, ""), Unavailable::NoVirtualization));
        let nested = absence(false, false, Platform::Virtual { hypervisor: "Hyper-V".to_owned() }, "");
        assert!(nested.to_string().contains("nested virtualization off"));
        assert!(nested.remedy().contains("ExposeVirtualizationExtensions"));
    }

    #[test]
    fn a_registered_driver_without_a_node_is_not_blamed_on_the_cpu() {
        let cpu = Cpu { vmx: false, svm: false, platform: Platform::Metal };
        assert!(matches!(Unavailable::explain_absence(&cpu, true, ""), Unavailable::NoNode));
    }

    #[test]
    fn nobody_is_told_to_join_group_root() {
        let denied = |group: &str, mode| Unavailable::Permission { group: group.to_owned(), mode }.remedy();
        assert_eq!(denied("kvm", 0o660), "sudo usermod -aG kvm $USER, then log in again");
        assert!(denied("root", 0o660).contains("chgrp kvm"));
        assert!(denied("kvm", 0o600).contains("chmod 660"));
    }

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:104:me,you\nbroken\n";
        assert_eq!(find_group(groups, 104), Some("kvm"));
        assert_eq!(find_group(groups, 7), None);
    }
}
