// SPDX-License-Identifier: Apache-2.0
//! `coracle completion`: made from the same definition as the parser.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

#[derive(Debug, Args)]
#[command(after_help = "Example: coracle completion bash | sudo tee /etc/bash_completion.d/coracle >/dev/null")]
pub struct CompletionArgs {
    /// The shell to complete for.
    shell: Shell,
}

/// Prints the script to stdout.
pub fn run(args: CompletionArgs) -> anyhow::Result<ExitCode> {
    // The generator panics where it cannot write (`coracle completion bash | head`): it gets a buffer.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "coracle", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
