// SPDX-License-Identifier: Apache-2.0
//! All that a snapshot holds besides the guest's memory.

use serde::{Deserialize, Serialize};

use super::SnapshotError;
use super::difference::Base;
use super::host_print::HostPrint;
use super::memory::MemoryPrint;
use crate::vmm::arch::state::{VcpuState, VmState};
use crate::vmm::config::{ConsoleKind, MAX_CPUS, MachineConfig};
use crate::vmm::devices::legacy::SerialState;
use crate::vmm::devices::virtio::state::TransportState;

/// The state of a VM.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Version of Coracle that took it, for people.
    pub software: String,
    /// When it was taken, in seconds since 1970.
    pub taken_at: u64,
    /// Where it can be restored.
    pub host: HostPrint,
    /// The host's time stamp counter.
    pub host_tsc: u64,
    /// What the VM is made of.
    pub config: MachineConfig,
    /// The kernel's command line, for people.
    pub command_line: String,
    /// The memory file that goes with it.
    pub memory: MemoryPrint,
    /// What that lacks; `None` where it is whole.
    pub base: Option<Base>,
    /// KVM's own devices.
    pub vm: VmState,
    /// vCPUs, by number.
    pub vcpus: Vec<VcpuState>,
    /// Virtio devices, in bus order.
    pub devices: Vec<TransportState>,
    /// The serial port, where there is one.
    pub serial: Option<SerialState>,
}

impl State {
    /// Checks that its parts fit each other, as those that this release writes always do.
    ///
    /// # Errors
    /// [`SnapshotError::Nonsense`].
    pub fn check(&self) -> Result<(), SnapshotError> {
        let wrong = |what| Err(SnapshotError::Nonsense(what));
        let cpus = usize::try_from(self.config.cpus).unwrap_or(usize::MAX);
        if !(1..=MAX_CPUS).contains(&self.config.cpus) || self.vcpus.len() != cpus {
            return wrong("it has another number of vCPUs than it says");
        }
        if self.config.memory_mib.checked_mul(1 << 20) != Some(self.memory.size) {
            return wrong("it has another size of memory than it says");
        }
        self.base.iter().try_for_each(|base| base.check(self.memory.size))?;
        if self.devices.len() != self.config.virtio_devices() {
            return wrong("it has another number of devices than it says");
        }
        if !self.config.fs.is_empty() {
            return wrong("it shares directories of the host's, which no snapshot can");
        }
        if self.serial.is_some() != (self.config.console == ConsoleKind::Serial) {
            return wrong("it has another console than it says");
        }
        Ok(())
    }
}
