// SPDX-License-Identifier: Apache-2.0
//! Where a container runs: in a microVM of its own, or in namespaces of the host's kernel. Whoever looks after it does so
//! in the same way, through an [`Agent`].

pub mod agent;
pub mod capabilities;
pub mod container;
pub mod image_template;
pub mod microvm;
pub mod spec;
pub mod template;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use agent::{Agent, Handle, NotRun, ProcessStart, Running};
pub use container::{Ground, NamespaceContainer};
pub use image_template::Prepared;
pub use microvm::{Devices, LEAST_MEMORY_MIB, MicroVm, Shape, Templates};
pub use spec::{Overrides, ProcessSpec};

use crate::failure::Failure;

/// Where a container's agent is reached, of the directory of its sockets: in a directory of its own, the only one that its
/// VMM still sees once the guest runs.
pub fn vsock(sockets: &Path) -> PathBuf {
    sockets.join("vm/vsock")
}

/// Where its VMM is asked, of the same directory.
pub fn control(sockets: &Path) -> PathBuf {
    sockets.join("control")
}

/// What is between a container and its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A microVM.
    #[default]
    MicroVm,
    /// Namespaces and control groups.
    Container {
        /// The OCI runtime that makes them.
        runtime: PathBuf,
    },
}

impl Isolation {
    /// Whether there is no VM.
    pub fn is_container(&self) -> bool {
        matches!(self, Self::Container { .. })
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if self.is_container() { "container" } else { "vm" })
    }
}

/// A container's surroundings of either kind, which run, or are about to.
pub enum Sandbox {
    /// A VM.
    MicroVm(MicroVm),
    /// None.
    Container(NamespaceContainer),
}

/// Ends a sandbox from another thread.
#[derive(Debug)]
pub enum Stopper {
    /// Of a VM.
    MicroVm(microvm::Stopper),
    /// Of a container, by its control group.
    Container(container::cgroup::Cgroup),
}

impl Stopper {
    /// Ends it at once.
    pub fn stop(&self) {
        match self {
            Self::MicroVm(stopper) => stopper.stop(),
            Self::Container(cgroup) => cgroup.kill(),
        }
    }
}

impl Sandbox {
    /// Waits until its agent can be talked to. By then all of its files are open.
    ///
    /// # Errors
    /// It does not get that far.
    pub fn wait_ready(&self) -> Result<(), Failure> {
        match self {
            Self::MicroVm(vm) => vm.wait_ready(),
            Self::Container(_) => Ok(()),
        }
    }

    /// Starts the first process in it, once its agent answers.
    ///
    /// # Errors
    /// [`NotRun`].
    pub fn start_process(&self, start: ProcessStart) -> Result<Running, NotRun> {
        match self {
            Self::MicroVm(vm) => vm.start_process(start),
            Self::Container(container) => container.agent()?.start(start),
        }
    }

    /// Waits until its agent answers.
    ///
    /// # Errors
    /// It does not get that far.
    pub fn agent(&self) -> Result<Agent, Failure> {
        match self {
            Self::MicroVm(vm) => vm.agent(),
            Self::Container(container) => container.agent(),
        }
    }

    /// For whoever may have to end it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn stopper(&self) -> Result<Stopper, Failure> {
        match self {
            Self::MicroVm(vm) => vm.stopper().map(Stopper::MicroVm),
            Self::Container(container) => Ok(Stopper::Container(container.cgroup().clone())),
        }
    }

    /// Process number of the VMM, or of the container's first process.
    pub fn pid(&self) -> u32 {
        match self {
            Self::MicroVm(vm) => vm.pid(),
            Self::Container(container) => container.pid(),
        }
    }

    /// Ends it, and waits for that.
    pub fn stop(self) {
        match self {
            Self::MicroVm(vm) => vm.stop(),
            Self::Container(container) => container.stop(),
        }
    }

    /// It has failed: what a VMM says counts more than what was seen of it here.
    pub fn gone(&self, failure: Failure) -> Failure {
        match self {
            Self::MicroVm(vm) => vm.gone(failure.why),
            Self::Container(_) => failure,
        }
    }
}
