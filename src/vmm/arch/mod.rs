// SPDX-License-Identifier: Apache-2.0
//! What depends on the processor architecture. Another one gets a folder beside `x86_64` with the same names in it.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("Coracle runs on x86-64 hosts only");

mod x86_64;
pub use x86_64::{cpuid, prepare_vcpu, registers, state};
