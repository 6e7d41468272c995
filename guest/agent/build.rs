// SPDX-License-Identifier: Apache-2.0
//! Links the program without the C start files and libraries: it has its own entry point.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=link.ld");
    // A copy: a target directory may be that of several working copies, of which one has gone.
    let script = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?).join("link.ld");
    fs::write(&script, include_str!("link.ld"))?;
    let arguments = [
        "-nostdlib",
        "-nostartfiles",
        "-static",
        // At a fixed address nothing is relocated at start, so no page is written (and faulted in) before it is used.
        "-no-pie",
        &format!("-Wl,-T,{}", script.display()),
        "-Wl,--gc-sections",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
    ];
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    Ok(())
}
