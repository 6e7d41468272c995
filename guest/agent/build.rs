// SPDX-License-Identifier: Apache-2.0
//! Links the program without the C start files and libraries: it has its own entry point.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    let arguments = [
        "-nostdlib",
        "-nostartfiles",
        "-static",
        // At a fixed address nothing is relocated at start, so no page is written (and faulted in) before it is used.
        "-no-pie",
        concat!("-Wl,-T,", env!("CARGO_MANIFEST_DIR"), "/link.ld"),
        "-Wl,--gc-sections",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
