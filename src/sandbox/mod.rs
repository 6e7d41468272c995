// SPDX-License-Identifier: Apache-2.0
//! Where a container runs: so far in a microVM of its own.

pub mod agent;
pub mod capabilities;
pub mod microvm;
pub mod spec;

pub use agent::{Agent, Handle, NotRun, ProcessStart, Running};
pub use microvm::{Devices, MicroVm, Shape, Stopper};
pub use spec::{Overrides, ProcessSpec};
