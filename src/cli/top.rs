// SPDX-License-Identifier: Apache-2.0
//! `coracle top`: the processes of a container.

use std::io;
use std::process::ExitCode;

use clap::Args;
use coracle::sandbox::Agent;
use coracle::supervisor::Container;

use super::{containers, units};

#[derive(Debug, Args)]
pub struct TopArgs {
    /// Name, or id or its beginning
    container: String,
}

/// Prints them, with the container's own process ids.
///
/// # Errors
/// It does not run.
pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot show the processes of container {}", args.container);
    let (_, state) = containers::up(&args.container, &what)?;
    let mut processes = Agent::connect(&Container::vsock(&state))?.processes()?;
    processes.sort_by_key(|process| process.pid);
    let clock = |ms: u64| format!("{:02}:{:02}:{:02}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let rows: Vec<Vec<String>> = processes
        .iter()
        .map(|process| {
            vec![
                process.user.as_str().to_owned(),
                process.pid.to_string(),
                process.parent.to_string(),
                process.terminal.map_or_else(|| "?".to_owned(), |number| format!("pts/{number}")),
                clock(process.age_ms),
                clock(process.cpu_ms),
                // What a hostile guest says is not for our terminal to obey.
                units::printable(process.command.as_str()),
            ]
        })
        .collect();
    units::table(&mut io::stdout().lock(), &["USER", "PID", "PPID", "TTY", "ELAPSED", "TIME", "COMMAND"], &rows)?;
    Ok(ExitCode::SUCCESS)
}
