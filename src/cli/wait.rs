// SPDX-License-Identifier: Apache-2.0
//! `coracle wait`: for containers to end.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::Connection;
use coracle::supervisor::wire::Request;

use super::{containers, error};

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Waits for one after the other.
///
/// # Errors
/// Our own output fails.
pub fn run(args: &WaitArgs) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in &args.containers {
        match wait(name, &format!("cannot wait for container {name}")) {
            Ok(exit) => writeln!(io::stdout(), "{exit}")?,
            Err(failure) => {
                error::report(&failure);
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn wait(name: &str, what: &str) -> anyhow::Result<u8> {
    let (container, state) = containers::find(name, what)?;
    if !state.is_looked_after() {
        return Ok(state.exit.status);
    }
    let connection = Connection::open(&container, &state, what)?;
    connection.ask(Request::FOLLOW, what)?;
    Ok(connection.end(what)?.status)
}
