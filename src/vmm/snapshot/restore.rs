// SPDX-License-Identifier: Apache-2.0
//! From two files to a microVM whose vCPUs wait to be let go on.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::config::RestoreConfig;
use super::difference::Whole;
use super::error::SnapshotError;
use super::format::{self, HEADER, MAX_STATE};
use super::host_print::HostPrint;
use super::{State, memory};
use crate::failure::Failure;
use crate::vmm::arch::state::VcpuState;
use crate::vmm::attach::Attached;
use crate::vmm::host::{Host, Vendor, time_stamp};
use crate::vmm::layout::{EVENT_GSI, VMGENID};
use crate::vmm::machine::{self, Machine, Wired};
use crate::vmm::memory::Ram;
use crate::vmm::stages::{Stage, Stages};

/// Puts the VM of a snapshot together, up to where its vCPUs can go on. It has another generation ID than any VM before.
///
/// # Errors
/// What is wrong with the snapshot, or cannot be had, why, and what to try.
pub fn restore(request: &RestoreConfig, stages: Arc<Stages>, news: Arc<EventFd>) -> Result<Machine, Failure> {
    let about = |error: SnapshotError| error.about(&request.restore);
    let mut state = read(&request.restore).map_err(about)?;
    let file = File::open(&request.memory).map_err(|error| {
        let what = format!("cannot open memory file {}", request.memory.display());
        Failure::new(what, error, "the memory file that was written with this state")
    })?;
    memory::check(&file, &state.memory).map_err(about)?;
    let config = request.apply(&mut state).map_err(about)?;
    config.check()?;
    let (ram, origin) = map(file, request, &state).map_err(about)?;
    let host = Host::detect();
    let mut attached = Attached::open(&config, &stages)?;
    let cpus = u8::try_from(config.cpus).unwrap_or(u8::MAX);
    let wired = machine::wire(machine::create_vm(&stages)?, &host, &mut attached, &ram, cpus, &stages)?;
    put(&state, &host, &attached, &wired).map_err(about)?;
    renew_generation(&ram, &wired)?;
    stages.mark(Stage::Restored);
    let mut machine = machine::assemble(config, None, state.command_line, host, attached, wired, ram, stages, news)?;
    machine.origin = Some(origin);
    Ok(machine)
}

/// The guest's memory, and the file that holds all of it, or what `file` does not.
fn map(file: File, request: &RestoreConfig, state: &State) -> Result<(Arc<Ram>, Whole), SnapshotError> {
    let size = state.memory.size;
    match &state.base {
        None => {
            let whole = Whole { path: std::path::absolute(&request.memory)?, print: state.memory.clone() };
            Ok((memory::map(file, size)?, whole))
        }
        Some(base) => {
            let path = request.base.as_ref().unwrap_or(&base.whole.path);
            let ram = memory::map(base.open(path)?, size)?;
            base.lay_over(&ram, &file)?;
            Ok((ram, Whole { path: path.clone(), ..base.whole.clone() }))
        }
    }
}

/// Reads and checks a state file.
///
/// # Errors
/// All that the file alone tells.
pub fn read(path: &Path) -> Result<State, SnapshotError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_STATE + HEADER as u64 + 1).read_to_end(&mut bytes)?;
    let state = format::decode(&bytes)?;
    state.check()?;
    Ok(state)
}

/// Gives the new VM the old one's state: vCPUs before interrupt controllers, and those before devices, which may
/// interrupt.
fn put(state: &State, host: &Host, attached: &Attached, wired: &Wired) -> Result<(), SnapshotError> {
    let here = HostPrint::new(host, wired.vm.supported_cpuid());
    if here != state.host {
        return Err(SnapshotError::Host { then: state.host.to_string(), now: here.to_string() });
    }
    // PVM cannot shift the counter that a guest's programs read, and Linux keeps its time by that.
    if host.vendor == Vendor::Pvm && time_stamp() < state.host_tsc {
        return Err(SnapshotError::Restarted);
    }
    let put = |(vcpu, state): (&VcpuFd, &VcpuState)| state.put(vcpu);
    wired.vcpus.iter().zip(&state.vcpus).try_for_each(put)?;
    wired.vm.set_state(&state.vm)?;
    for (number, (transport, saved)) in wired.transports.iter().zip(&state.devices).enumerate() {
        let failed = |source| SnapshotError::Device { number, name: transport.metrics().0, source };
        transport.restore(saved).map_err(failed)?;
    }
    if let (Some((serial, _)), Some(saved)) = (&attached.serial, &state.serial) {
        serial.restore(saved)?;
    }
    Ok(())
}

/// A guest that knows of generation IDs sees by it that it is a clone, and is told to look.
fn renew_generation(ram: &Ram, wired: &Wired) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new("cannot identify the microVM", error, "another snapshot");
    let id = machine::generation_id()?;
    ram.write_obj(id.to_le_bytes(), GuestAddress(VMGENID)).map_err(|error| failed(&error))?;
    // A kernel without ACPI has this interrupt masked.
    wired.vm.pulse(EVENT_GSI).map_err(|error| failed(&error))
}
