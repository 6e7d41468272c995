// SPDX-License-Identifier: Apache-2.0
//! Coracle: every container in its own small virtual machine.
pub mod vmm;
