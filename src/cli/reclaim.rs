// SPDX-License-Identifier: Apache-2.0
//! `coracle reclaim`: memory back for the host, now.

use std::process::ExitCode;

use clap::Args;
use coracle::sandbox::Agent;
use coracle::supervisor::Container;

use super::containers;

/// Have the guests of containers give the host what they only cache.
#[derive(Debug, Args)]
#[command(
    after_help = "What a guest has read of its disks it keeps in case it is read again. It gives that up, and within some \
                  seconds the host has the memory: `coracle stats`, RESIDENT. Monitors ask for it by themselves where the \
                  host is short of memory and a container idle."
)]
pub struct ReclaimArgs {
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Asks each, and prints its name.
///
/// # Errors
/// Our own output fails.
pub fn run(args: &ReclaimArgs) -> anyhow::Result<ExitCode> {
    containers::each(&args.containers, "reclaim memory of", |name, what| {
        let (_, state) = containers::up(name, what)?;
        Ok(Agent::connect(&Container::vsock(&state))?.reclaim()?)
    })
}
