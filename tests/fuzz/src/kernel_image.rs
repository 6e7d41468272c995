// SPDX-License-Identifier: Apache-2.0
//! Kernel files: ELF, bzImage and everything that is neither.
#![no_main]

use std::path::Path;

use coracle::vmm::boot::{KernelImage, ProtocolChoice};
use coracle::vmm::memory;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: Vec<u8>| {
    let Ok(kernel) = KernelImage::from_bytes(bytes, Path::new("fuzzed"), ProtocolChoice::Auto) else { return };
    let _ = kernel.symbols();
    let _ = kernel.description();
    let ram = memory::allocate(64 << 20).expect("memory");
    let _ = kernel.load(&ram);
});
