// SPDX-License-Identifier: Apache-2.0
//! The program that `coracle bench isolation` runs in sandboxes, and on the host.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    coracle::bench::isolation::inside::main(&words)
}
