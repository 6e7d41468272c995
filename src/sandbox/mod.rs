// SPDX-License-Identifier: Apache-2.0
//! Where a container runs: so far in a microVM of its own.

pub mod agent;
pub mod capabilities;
pub mod image_template;
pub mod microvm;
pub mod spec;
pub mod template;

pub use agent::{Agent, Handle, NotRun, ProcessStart, Running};
pub use image_template::Prepared;
pub use microvm::{Devices, MicroVm, Shape, Stopper, Templates};
pub use spec::{Overrides, ProcessSpec};
