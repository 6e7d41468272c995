// SPDX-License-Identifier: Apache-2.0
//! The entry point (System V ABI, AMD64 supplement, §3.4.1: process initialisation).

use core::ffi::{CStr, c_char};

core::arch::global_asm!(
    ".section .text._start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {enter}",
    "ud2",
    enter = sym enter,
);

/// # Safety
/// `stack` is the stack pointer that the kernel gave to a new process.
unsafe extern "C" fn enter(stack: *const usize) -> ! {
    // SAFETY: the ABI puts argc at the stack pointer, then argc pointers and a null, then the environment's pointers
    // and a null; all strings stay valid for the life of the process.
    let environment = unsafe {
        let argument_count = stack.read();
        Environment { next: stack.add(argument_count + 2).cast() }
    };
    crate::main(environment)
}

/// The environment, which is what the kernel command line says in `name=value` words without a dot.
struct Environment {
    next: *const *const c_char,
}

impl Iterator for Environment {
    type Item = &'static CStr;

    fn next(&mut self) -> Option<&'static CStr> {
        // SAFETY: `next` is within the environment or at its terminating null, beyond which it never moves; see
        // `enter`.
        unsafe {
            let string = self.next.read();
            if string.is_null() {
                return None;
            }
            self.next = self.next.add(1);
            Some(CStr::from_ptr(string))
        }
    }
}
