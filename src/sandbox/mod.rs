// SPDX-License-Identifier: Apache-2.0
//! Where a container runs: so far in a microVM of its own.

pub mod microvm;
pub mod spec;

pub use microvm::{Interrupt, MicroVm, Shape};
pub use spec::{Overrides, ProcessSpec};
