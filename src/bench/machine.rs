// SPDX-License-Identifier: Apache-2.0
//! The state of the machine that figures were taken on.

use std::fs;
use std::process::{Command, Stdio};
use std::thread::available_parallelism;

use jiff::Timestamp;
use serde::Serialize;

use crate::vmm::host::{Host, Platform, Vendor};

/// What figures depend on.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// `VMX`, `SVM`, `PVM` or `unknown`; `emulated` after it where an emulator runs all of it.
    pub kind: String,
    /// How guests are run here, in words.
    pub description: String,
    /// What that does to the figures.
    pub meaning: &'static str,
    /// The CPU as it calls itself.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Frequency governor of the first; empty where there is none.
    pub governor: String,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Whether control groups are of version 2.
    pub cgroup2: bool,
    /// Load of the last minute before the first run.
    pub load_before: f64,
    /// And after the last.
    pub load_after: f64,
}

/// The time, in UTC, to the second.
pub fn now() -> String {
    Timestamp::now().round(jiff::Unit::Second).unwrap_or_default().to_string()
}

impl Machine {
    /// What a page says of it: what it is, and its load.
    pub fn facts(&self) -> [String; 2] {
        let Self { description, cpu, cpus, kernel, load_before, load_after, .. } = self;
        [
            format!("{description}; {cpu}; {cpus} CPUs; {} MiB; Linux {kernel}", self.memory_kib / 1024),
            format!("load {load_before:.2} before, {load_after:.2} after"),
        ]
    }

    /// The same on a line of a terminal.
    pub fn line(&self) -> String {
        format!("{} · {} · {} CPUs · Linux {}", self.description, self.cpu, self.cpus, self.kernel)
    }

    /// Looks at this one.
    pub fn look() -> Self {
        let host = Host::detect();
        let emulated = if host.cpu.platform == Platform::Emulated { " emulated" } else { "" };
        let load = load();
        Self {
            kind: format!("{}{emulated}", host.vendor),
            description: host.to_string(),
            meaning: meaning(&host),
            cpu: line_of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            cpus: available_parallelism().map_or(1, usize::from),
            governor: word("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_kib: line_of("/proc/meminfo", "MemTotal")
                .and_then(|text| text.split(' ').next()?.parse().ok())
                .unwrap_or(0),
            kernel: word("/proc/sys/kernel/osrelease"),
            cgroup2: has_cgroup2(),
            load_before: load,
            load_after: load,
        }
    }

    /// Looks at the load again.
    pub fn look_again(&mut self) {
        self.load_after = load();
    }

    /// What is to be said where it was busy.
    pub fn busy(&self) -> Option<String> {
        let (load, cpus) = (self.load_before, self.cpus);
        self.is_busy()
            .then(|| format!("The machine was busy: the load was {load:.1} on {cpus} CPUs before the first run."))
    }

    /// Whether others used more than a quarter of the machine: what runs here adds one or two to the load itself.
    #[allow(clippy::cast_precision_loss, reason = "a number of CPUs")]
    pub fn is_busy(&self) -> bool {
        self.load_before > 0.25 * self.cpus as f64
    }
}

/// Whether control groups of version 2 are where version 1 is elsewhere, with their controllers.
pub fn has_cgroup2() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false)
}

/// The first line that a program prints of its version; `None` where it is not installed.
pub fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.lines().next().unwrap_or("").trim().to_owned())
}

fn meaning(host: &Host) -> &'static str {
    match (&host.cpu.platform, host.vendor) {
        (Platform::Emulated, _) => {
            "Every instruction of this host is translated by QEMU: both VM and container take some twenty times as long as \
             on metal, and entering and leaving a guest costs more than that. Ratios are rough; times are not those of any \
             real machine."
        }
        (_, Vendor::Pvm) => {
            "PVM interprets the guest's kernel, some 4 million instructions a second, while containers use the host's \
             kernel at full speed: VMs are hundreds of times slower here than on VMX or SVM, and the ratio of VM to \
             container says nothing about those."
        }
        (Platform::Virtual { .. }, _) => {
            "This host is itself a VM: guests run nested, where each exit costs several times as much as on metal; \
             containers lose little by it."
        }
        (Platform::Metal, Vendor::Vmx | Vendor::Svm) => {
            "Guests run on the CPU's own virtualization, on metal: times are those that users of such a machine have."
        }
        (Platform::Metal, Vendor::Unknown) => "KVM is not there, or not known: there are no figures of VMs.",
    }
}

fn load() -> f64 {
    word("/proc/loadavg").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0)
}

fn word(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn line_of(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::host::Cpu;

    #[test]
    fn each_kind_of_host_has_a_meaning_of_its_own() {
        let host = |vendor, platform| Host { vendor, cpu: Cpu { vmx: false, svm: true, platform } };
        let meanings = [
            meaning(&host(Vendor::Svm, Platform::Emulated)),
            meaning(&host(Vendor::Pvm, Platform::Virtual { hypervisor: "KVM".to_owned() })),
            meaning(&host(Vendor::Svm, Platform::Virtual { hypervisor: "KVM".to_owned() })),
            meaning(&host(Vendor::Svm, Platform::Metal)),
        ];
        for (at, one) in meanings.iter().enumerate() {
            assert_eq!(meanings.iter().position(|other| other == one), Some(at));
        }
    }

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::look();
        assert!(machine.cpus > 0 && machine.memory_kib > 0, "{machine:?}");
        assert!(machine.kernel.contains('.') && !machine.description.is_empty(), "{machine:?}");
        assert_eq!(version("no-such-program-as-this"), None);
    }
}
