// SPDX-License-Identifier: Apache-2.0
//! The C functions that compiled code may call. In assembly, lest the compiler turn them into calls of themselves.

use core::arch::asm;

/// Copies `count` bytes between places that do not overlap.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear on entry (System V ABI §3.2.1).
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes between places that may overlap.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: `to` does not lie within the source, so that copying upwards reads each byte before it is overwritten.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: the caller vouches for both ranges; here count > 0. The direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.add(count - 1) => _,
            inout("rsi") from.add(count - 1) => _, options(nostack));
    }
    to
}

/// Fills `count` bytes.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the direction flag is clear on entry.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte.to_le_bytes()[0],
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    let difference: i32;
    // SAFETY: the caller vouches for both ranges.
    unsafe {
        asm!(
            "xor eax, eax",
            "xor edx, edx",
            "2:",
            "cmp rdx, rcx",
            "je 3f",
            "movzx eax, byte ptr [rdi + rdx]",
            "movzx r8d, byte ptr [rsi + rdx]",
            "inc rdx",
            "sub eax, r8d",
            "jz 2b",
            "3:",
            in("rdi") left, in("rsi") right, in("rcx") count, out("rdx") _, out("r8") _, out("eax") difference,
            options(nostack, readonly)
        );
    }
    difference
}

/// As [`memcmp`], of which only zero or not is used.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, count) }
}

/// Length of a C string.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(string: *const u8) -> usize {
    let end: usize;
    // SAFETY: the caller vouches for a terminating zero; the direction flag is clear on entry.
    unsafe {
        asm!("repne scasb", inout("rcx") usize::MAX => _, inout("rdi") string => end, in("al") 0u8,
            options(nostack, readonly));
    }
    end - string.addr() - 1
}
