// SPDX-License-Identifier: Apache-2.0
//! The `coracle` command.
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    coracle::logging::start();
    cli::main()
}
