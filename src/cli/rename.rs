// SPDX-License-Identifier: Apache-2.0
//! `coracle rename`: another name for a container.

use std::process::ExitCode;

use clap::Args;

use super::containers;

#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name, or id or its beginning
    container: String,
    /// The new name
    name: String,
}

/// Renames it.
///
/// # Errors
/// There is no such container, or the name is taken.
pub fn run(args: &RenameArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot rename container {}", args.container);
    let containers = containers::open(&what)?;
    let mut container = containers.find(&args.container, &what)?;
    containers.rename(&mut container, &args.name)?;
    Ok(ExitCode::SUCCESS)
}
