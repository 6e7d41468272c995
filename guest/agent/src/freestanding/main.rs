// SPDX-License-Identifier: Apache-2.0
//! `/init` of a Coracle guest: the program around the library, without std and without libc.
//!
//! Everything that a usual program does before `main` (relocation, thread-local storage, IRELATIVE calls, stack
//! guards, signal stacks) costs the guest's kernel page faults and system calls, and everything linked in costs it
//! copies while it unpacks the initramfs. None of it is needed here.
#![no_std]
#![no_main]

mod heap;
mod mem;
mod panic;
mod start;

use core::ffi::CStr;

/// Called by `_start` with what the kernel put on the stack.
fn main(environment: impl Iterator<Item = &'static CStr>) -> ! {
    coracle_agent::init(environment)
}
