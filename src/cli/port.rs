// SPDX-License-Identifier: Apache-2.0
//! `coracle port`: where on the host the ports of a container are.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::network::Publish;

use super::containers;

#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name, or id or its beginning
    container: String,
    /// Only this port of the container's: PORT[/PROTOCOL]
    #[arg(value_name = "PORT")]
    port: Option<String>,
}

/// Prints them, one a line.
///
/// # Errors
/// There is no such container or port.
pub fn run(args: &PortArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot show the ports of container {}", args.container);
    let (_, state) = containers::find(&args.container, &what)?;
    let mut out = io::stdout().lock();
    let Some(text) = &args.port else {
        for port in &state.ports {
            writeln!(out, "{}/{} -> {}", port.container, port.protocol, port.host)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let wanted = Publish::exposed(text).map_err(|error| Failure::new(&what, error, "PORT, or PORT/udp"))?;
    let is_wanted = |port: &&coracle::network::Published| {
        wanted.iter().any(|one| (one.container, one.protocol) == (port.container, port.protocol))
    };
    let found: Vec<_> = state.ports.iter().filter(is_wanted).collect();
    if found.is_empty() {
        let why = format!("port {text} is not published");
        return Err(Failure::new(what, why, format!("`coracle port {}` shows those that are", args.container)).into());
    }
    found.iter().try_for_each(|port| writeln!(out, "{}", port.host))?;
    Ok(ExitCode::SUCCESS)
}
