// SPDX-License-Identifier: Apache-2.0
//! The `coracle-vmm` process: one microVM.
fn main() {}
