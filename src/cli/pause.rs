// SPDX-License-Identifier: Apache-2.0
//! `coracle pause` and `unpause`.

use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::wire::Request;

use super::containers;

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stops all processes of each where they are, and prints its name.
///
/// # Errors
/// Our own output fails.
pub fn run(args: &PauseArgs) -> anyhow::Result<ExitCode> {
    ask(args, "pause", &Request::Pause)
}

/// Lets them go on.
///
/// # Errors
/// Our own output fails.
pub fn run_unpause(args: &PauseArgs) -> anyhow::Result<ExitCode> {
    ask(args, "unpause", &Request::Resume)
}

fn ask(args: &PauseArgs, verb: &str, request: &Request) -> anyhow::Result<ExitCode> {
    containers::each(&args.containers, verb, |name, what| {
        let (_, connection) = containers::connect(name, what)?;
        Ok(connection.request(request.clone(), what)?)
    })
}
