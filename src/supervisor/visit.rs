// SPDX-License-Identifier: Apache-2.0
//! A task of the agent's in a container, whether its program runs or not.

use std::path::PathBuf;

use coracle_protocol::{Process, Task};

use super::containers::{Container, Held, remove_sockets};
use super::describe;
use super::monitor::{make_socket_directory, shares, storage};
use super::record::State;
use crate::failure::Failure;
use crate::image::{ImageError, Store};
use crate::sandbox::{
    self, Agent, Devices, Isolation, MicroVm, NamespaceContainer, NotRun, ProcessStart, Running, Sandbox, capabilities,
};
use crate::vmm::virtiofsd::Virtiofsd;

/// A task at work. It ends with this.
pub struct Visit {
    /// The process that does it.
    pub process: Running,
    /// The VM that was started for it, where the container does not run.
    _vm: Option<Vm>,
}

/// Dropped in this order.
struct Vm {
    vm: Option<Sandbox>,
    _serving: Vec<Virtiofsd>,
    sockets: PathBuf,
    container: Container,
    /// Nobody starts or removes the container meanwhile.
    _held: Held,
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(vm) = self.vm.take() {
            drop(vm.stop());
        }
        shares::end(&self.container);
        remove_sockets(&self.sockets);
    }
}

/// Starts `task` in a container that runs, or in a VM of its own with the disks and mounts of one that does not; `stdin`
/// says whether it is to read anything.
///
/// # Errors
/// It cannot be started.
pub fn visit(container: &Container, state: &State, task: Task, stdin: bool, what: &str) -> Result<Visit, Failure> {
    let process = Process { directory: b"/".to_vec(), capabilities: capabilities::ALL, ..Process::default() };
    let start = ProcessStart { container: None, process, task, stdin, output: true };
    if state.status.is_up() {
        let process = Agent::connect(&Container::vsock(state))?.start(start).map_err(|not| not.failure)?;
        return Ok(Visit { process, _vm: None });
    }
    if container.config.storage_size.is_none() && stdin {
        let why = "it does not run, and what it writes is kept in its VM's memory only";
        return Err(Failure::new(what, why, format!("`coracle start {}` first", container.config.name)));
    }
    let held = container.claim()?;
    let sockets = make_socket_directory(container, None)?;
    let (vm, process) = boot(container, state, held, sockets, start, what).map_err(|not| not.failure)?;
    Ok(Visit { process, _vm: Some(vm) })
}

fn boot(
    container: &Container,
    state: &State,
    held: Held,
    sockets: PathBuf,
    mut start: ProcessStart,
    what: &str,
) -> Result<(Vm, Running), NotRun> {
    let config = &container.config;
    let explain = |problem| Failure::from(ImageError::new(what)(problem));
    let store = Store::open().map_err(explain)?;
    // As with a container that starts.
    let content = store.hold_content().map_err(explain)?;
    let image = store.image(&config.image.manifest).map_err(explain)?;
    let rootfs = store.rootfs(&image).map_err(Failure::from)?;
    let mut visit = Vm { vm: None, _serving: Vec::new(), sockets, container: container.clone(), _held: held };
    let shared = shares::Shares::find(container, state.started.is_none())?;
    let written = config.storage_size.map(|size| storage::disk(container.directory(), size)).transpose()?;
    let sandbox = match &config.isolation {
        Isolation::MicroVm => {
            visit._serving = shared.serve(&visit.sockets)?;
            let devices = Devices {
                rootfs,
                written,
                nets: Vec::new(),
                shares: visit._serving.iter().map(Virtiofsd::config).collect(),
                vsock: sandbox::vsock(&visit.sockets),
                control: sandbox::control(&visit.sockets),
                privileged: config.surroundings.privileged,
            };
            Sandbox::MicroVm(MicroVm::start(config.shape, &devices, config.templates(), None)?)
        }
        Isolation::Container { runtime } => {
            let ground = shared.ground(config, runtime, rootfs, written, &visit.sockets, None);
            Sandbox::Container(NamespaceContainer::start(ground)?)
        }
    };
    let agent = visit.vm.insert(sandbox).agent()?;
    drop(content);
    start.container =
        Some(coracle_protocol::Container { init: false, ..describe::container(config, None, &shared.describe()) });
    let process = agent.start(start)?;
    Ok((visit, process))
}
