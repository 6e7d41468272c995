// SPDX-License-Identifier: Apache-2.0
//! What programs rely on, whatever runs the guest's kernel.

mod common;

use std::fs::File;

use common::{Guest, host};

/// Assembles a program of `tests/guest`; gives it as the image of a disk.
fn assembled(name: &str, folder: &std::path::Path) -> String {
    let source = format!("{}/tests/guest/{name}.s", env!("CARGO_MANIFEST_DIR"));
    let program = folder.join(name).display().to_string();
    host("cc", &["-nostdlib", "-static", "-s", "-Wl,--nmagic,--build-id=none", "-o", &program, &source]);
    let file = File::options().write(true).open(&program).unwrap();
    file.set_len(file.metadata().unwrap().len().next_multiple_of(512)).unwrap();
    program
}

// On PVM the bundled kernel, which is emulated there, has no instruction that saves registers wider than SSE's.
#[test]
fn main_path_vector_registers_belong_to_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Guest::shell(&["--disk", &assembled("registers", folder.path())]);
    guest.sh("cat /dev/vda > /registers; chmod +x /registers");
    // The program asks the CPU for AVX, and the kernel that is to keep its registers must have the same answer.
    let cpu = guest.sh("cat /proc/cpuinfo");
    let status = if [" xsave ", " avx "].iter().all(|flag| cpu.contains(flag)) { 0 } else { 2 };
    assert_eq!(guest.try_sh("/registers").0, status);
    assert_eq!(guest.power_off(), 0);
}
