// SPDX-License-Identifier: Apache-2.0
//! Takes a snapshot of a microVM that stands still; it can go on afterwards.

use std::fs::File;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::difference::Base;
use super::host_print::HostPrint;
use super::{State, format, memory};
use crate::vmm::arch::state::StateError;
use crate::vmm::clock::{monotonic_ns, utc_seconds};
use crate::vmm::config::MachineConfig;
use crate::vmm::host::time_stamp;
use crate::vmm::jail::Jail;
use crate::vmm::machine::Machine;
use crate::vmm::vm::VmError;

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// A file cannot be written.
    #[error("cannot write its {file}: {source}")]
    Write {
        /// Which one.
        file: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// KVM does not tell.
    #[error(transparent)]
    State(#[from] StateError),
    /// KVM does not tell.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// It shares a directory of the host's.
    #[error("it shares directories of the host's, and what virtiofsd knows of them cannot be kept")]
    Shared,
    /// It was not restored.
    #[error("it was booted from its kernel, and there is no snapshot that it could differ from")]
    NoBase,
    /// It cannot be written down.
    #[error("a path of the microVM is not UTF-8")]
    Encode,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Bytes of the state file.
    pub state_bytes: u64,
    /// Bytes of the memory file that are not a hole.
    pub memory_bytes: u64,
    /// Microseconds that it took.
    pub took_us: u64,
}

/// How much of the memory a snapshot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// All that is not zero.
    #[default]
    Whole,
    /// What differs from the snapshot that the VM was started from.
    Difference,
}

/// Writes a VM whose vCPUs stand still into two empty files.
///
/// Devices come to rest first, since that may interrupt the guest; then what interrupts go through, in the same order:
/// I/O APIC, local APICs. An interrupt that is on its way even then is raised again by the restore.
///
/// # Errors
/// See [`TakeError`].
pub fn take(machine: &Machine, state_file: &File, memory_file: &File, scope: Scope) -> Result<Taken, TakeError> {
    let start = monotonic_ns();
    if !machine.config().fs.is_empty() {
        return Err(TakeError::Shared);
    }
    let devices = machine.transports.iter().map(|transport| transport.rest()).collect();
    let serial = machine.serial.as_ref().map(|serial| serial.state());
    let vm = machine.vm().state()?;
    let vcpus = machine.vcpus.states(machine.vm().msr_list()?)?;
    let write = |file| move |source| TakeError::Write { file, source };
    let (base, memory) = match scope {
        Scope::Whole => (None, memory::write(machine.ram(), memory_file).map_err(write("memory"))?),
        Scope::Difference => {
            let whole = machine.origin.clone().ok_or(TakeError::NoBase)?;
            let written = Base::write_difference(whole, machine.ram(), memory_file).map_err(write("memory"))?;
            (Some(written.0), written.1)
        }
    };
    let state = State {
        software: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at: utc_seconds(),
        host: HostPrint::new(machine.host(), machine.vm().supported_cpuid()),
        host_tsc: time_stamp(),
        config: lasting(machine.config()),
        command_line: machine.command_line().to_owned(),
        memory,
        base,
        vm,
        vcpus,
        devices,
        serial,
    };
    let bytes = format::encode(&state).map_err(|_| TakeError::Encode)?;
    let mut file = state_file;
    file.write_all(&bytes).map_err(write("state"))?;
    let took_us = (monotonic_ns() - start) / 1000;
    Ok(Taken { state_bytes: bytes.len() as u64, memory_bytes: state.memory.data, took_us })
}

/// What of a VM's configuration is true of its clones.
fn lasting(config: &MachineConfig) -> MachineConfig {
    MachineConfig {
        log_file: None,
        launched_ns: None,
        sample_interval_us: None,
        control: None,
        jail: Jail::Full,
        ..config.clone()
    }
}
