// SPDX-License-Identifier: Apache-2.0
//! What a microVM is made of, as its owner says it: the first line on the control socket.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::boot::ProtocolChoice;
use super::devices::virtio::block::BlockConfig;
use super::devices::virtio::fs::FsConfig;
use super::devices::virtio::net::NetConfig;
use super::devices::virtio::pmem::PmemConfig;
use super::devices::virtio::vsock::VsockConfig;
use super::jail::Jail;
use crate::failure::Failure;

/// Most vCPUs of a VM; the bundled guest kernel is built for as many.
pub const MAX_CPUS: u32 = 8;

/// Which device is the guest's console; its bytes go over the VMM's standard input and output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConsoleKind {
    /// A 16550 serial port, which every kernel can write to from its first message on.
    #[default]
    Serial,
    /// A virtio console: faster, knows the terminal's size, comes up later in the boot.
    Virtio,
    /// No console.
    None,
}

impl ConsoleKind {
    /// The kernel's name for it, as in `console=`.
    pub fn kernel_name(self) -> Option<&'static str> {
        match self {
            ConsoleKind::Serial => Some("ttyS0"),
            ConsoleKind::Virtio => Some("hvc0"),
            ConsoleKind::None => None,
        }
    }
}

/// A microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// ELF `vmlinux` or `bzImage`.
    pub kernel: PathBuf,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: ProtocolChoice,
    /// Initial RAM file system.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Added to the kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// Whether the command line starts with what the console, this host and the devices need.
    #[serde(default = "yes")]
    pub default_command_line: bool,
    /// Number of vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Guest RAM in MiB.
    pub memory_mib: u64,
    /// The console.
    #[serde(default)]
    pub console: ConsoleKind,
    /// Where the console's output goes as well, at a bounded rate.
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// Block devices: `/dev/vda` and on.
    #[serde(default)]
    pub disks: Vec<BlockConfig>,
    /// Network cards.
    #[serde(default)]
    pub nets: Vec<NetConfig>,
    /// Sockets between host and guest.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Read-only persistent memory: `/dev/pmem0` and on.
    #[serde(default)]
    pub pmem: Vec<PmemConfig>,
    /// Directories of the host's.
    #[serde(default)]
    pub fs: Vec<FsConfig>,
    /// Whether there is an entropy device.
    #[serde(default = "yes")]
    pub rng: bool,
    /// Whether there is a balloon, which gives memory back that the guest has freed.
    #[serde(default = "yes")]
    pub balloon: bool,
    /// `CLOCK_MONOTONIC` in nanoseconds when the VMM was launched; times count from there.
    #[serde(default)]
    pub launched_ns: Option<u64>,
    /// Whether vCPUs are asked where they are, every this many microseconds.
    #[serde(default)]
    pub sample_interval_us: Option<u64>,
    /// Where others than the owner can connect to the control socket.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// How the process is locked up.
    #[serde(default)]
    pub jail: Jail,
}

fn yes() -> bool {
    true
}

impl MachineConfig {
    /// Checks what can be told without touching anything.
    ///
    /// # Errors
    /// A count of vCPUs or a size of memory that cannot be.
    pub fn check(&self) -> Result<(), Failure> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            let what = format!("cannot give the guest {} vCPUs", self.cpus);
            let why = format!("a microVM has 1 to {MAX_CPUS}");
            return Err(Failure::new(what, why, format!("`--cpus` with a number from 1 to {MAX_CPUS}")));
        }
        let (least, most) = (super::memory::MIN_MEMORY >> 20, host_memory_mib());
        if self.memory_mib < least || self.memory_mib > most {
            let what = format!("cannot give the guest {} MiB of memory", self.memory_mib);
            let why = format!("a guest needs at least {least} MiB, and this host has {most} MiB");
            return Err(Failure::new(what, why, "another `--memory`; 128M is enough for most"));
        }
        let (devices, places) = (self.virtio_devices(), super::layout::VIRTIO_GSIS.len());
        if devices > places {
            let why = format!("they are {devices}, and there are {places} interrupt lines");
            return Err(Failure::new(
                "cannot attach all devices",
                why,
                "fewer disks, network cards and shared directories",
            ));
        }
        Ok(())
    }

    /// Number of virtio devices.
    pub fn virtio_devices(&self) -> usize {
        let one = |there: bool| usize::from(there);
        let console = self.console == ConsoleKind::Virtio;
        let single = one(self.vsock.is_some()) + one(self.rng) + one(self.balloon) + one(console);
        self.disks.len() + self.nets.len() + self.pmem.len() + self.fs.len() + single
    }
}

/// All memory of this host, in MiB.
fn host_memory_mib() -> u64 {
    // SAFETY: `sysinfo` is plain integers, for which zeroes are a value.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: `info` is a valid place for the result; with one the call cannot fail.
    unsafe { libc::sysinfo(&raw mut info) };
    (info.totalram * u64::from(info.mem_unit)) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cpus: u32, memory_mib: u64) -> MachineConfig {
        let text = format!(r#"{{"kernel": "vmlinux", "cpus": {cpus}, "memory_mib": {memory_mib}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn impossible_shapes_are_refused() {
        assert_eq!(config(8, 128).check(), Ok(()));
        for (cpus, memory, word) in [(0, 128, "vCPUs"), (1000, 128, "vCPUs"), (1, 0, "memory"), (1, 1, "memory")] {
            assert!(config(cpus, memory).check().unwrap_err().what.contains(word));
        }
        assert!(config(1, 1 << 40).check().unwrap_err().why.contains("this host has"));
        let mut crowded = config(1, 128);
        let pmem = || serde_json::from_str(r#"{"path": "image"}"#).unwrap();
        crowded.pmem = std::iter::repeat_with(pmem).take(super::super::layout::VIRTIO_GSIS.len()).collect();
        assert!(crowded.check().unwrap_err().why.contains("interrupt lines"));
    }

    #[test]
    fn unknown_fields_are_refused() {
        let text = r#"{"kernel": "vmlinux", "cpus": 1, "memory_mib": 128, "turbo": true}"#;
        assert!(serde_json::from_str::<MachineConfig>(text).is_err());
    }
}
