// SPDX-License-Identifier: Apache-2.0
//! Coracle: every container in its own small virtual machine.
pub mod bench;
pub mod cache;
pub mod copy;
pub mod erofs;
pub mod failure;
mod file_lock;
pub mod image;
pub mod logging;
pub mod milestones;
pub mod network;
pub mod sandbox;
pub mod signals;
mod sparse;
pub mod supervisor;
pub mod vmm;
