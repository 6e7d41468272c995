// SPDX-License-Identifier: Apache-2.0
//! KVM: the one thing without which nothing runs.

use coracle::vmm::host::{self, Host, Platform, Unavailable, Vendor, capabilities};

use super::Check;

const NO_VM: &str = "no microVM can run";

/// Opens KVM, creates (and drops) a VM, and asks for the capabilities.
pub fn checks(host: &Host) -> Vec<Check> {
    let kvm = match host::open() {
        Ok(kvm) => kvm,
        Err(reason) => return vec![lacking("device", &reason)],
    };
    let created = match host::create_vm(&kvm) {
        Ok(_) => Check::ok("create a VM", "works"),
        Err(reason) => lacking("create a VM", &reason),
    };
    let mut checks =
        vec![Check::ok("device", format!("{} opens, API version 12", host::DEVICE)), vendor(host), created];
    checks.extend(capability_checks(&capabilities::probe(&kvm)));
    checks
}

fn lacking(name: &'static str, reason: &Unavailable) -> Check {
    Check::missing(name, reason.to_string(), NO_VM, reason.remedy())
}

fn vendor(host: &Host) -> Check {
    let found = host.to_string();
    match (host.vendor, &host.cpu.platform) {
        (Vendor::Pvm, _) => Check::warning(
            "vendor",
            found,
            "the guest kernel is interpreted, some 1000 times slower than on VMX or SVM (guest programs are not); \
             only the bundled guest kernel runs",
            "a host with VMX or SVM",
        ),
        (Vendor::Unknown, _) => Check::warning(
            "vendor",
            "a KVM module that is neither kvm_intel, kvm_amd nor kvm_pvm",
            "Coracle is not tested on it",
            "a host with VMX or SVM",
        ),
        (_, Platform::Emulated) => Check::warning(
            "vendor",
            found,
            "everything is some 20 times slower, VM and container alike: good for tests, not for use",
            "a host with VMX or SVM",
        ),
        (_, Platform::Metal | Platform::Virtual { .. }) => Check::ok("vendor", found),
    }
}

fn capability_checks(answers: &[capabilities::Answer]) -> Vec<Check> {
    let present = answers.iter().filter(|answer| answer.is_present()).count();
    let summary = Check::ok("capabilities", format!("{present} of the {} that are used", answers.len()));
    let lacks = answers.iter().filter(|answer| !answer.is_present()).map(|answer| {
        let capability = answer.capability;
        let found = format!("KVM_CAP_{} is missing", capability.name);
        if capability.required {
            Check::missing("capability", found, format!("{NO_VM}: needed for {}", capability.purpose), "a newer kernel")
        } else {
            Check::warning("capability", found, format!("none of: {}", capability.purpose), "a newer kernel or CPU")
        }
    });
    std::iter::once(summary).chain(lacks).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_missing_capability_is_fatal_only_if_required() {
        let answers: Vec<_> =
            capabilities::USED.iter().map(|capability| capabilities::Answer { capability, value: 0 }).collect();
        let checks = capability_checks(&answers);
        let required = capabilities::USED.iter().filter(|c| c.required).count();
        assert_eq!(checks.iter().filter(|c| c.status == Status::Missing).count(), required);
        assert_eq!(checks.len(), capabilities::USED.len() + 1);
    }
}
