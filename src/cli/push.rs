// SPDX-License-Identifier: Apache-2.0
//! `coracle push`: an image to a registry.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Problem, Reference};

use super::pull_progress::ProgressArgs;
use super::registry_access::AccessArgs;
use super::store;

#[derive(Debug, Args)]
pub struct PushArgs {
    /// NAME[:TAG]; `coracle tag` gives an image the name that it is to have there
    image: String,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    access: AccessArgs,
}

/// Pushes, and prints the image's full name with its digest on stdout.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &PushArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot push image {}", args.image);
    let reference: Reference = args.image.parse().map_err(store::explain(&what))?;
    let store = store::open(&what)?;
    let image = store.resolve(&reference).map_err(store::explain(&what))?;
    let image = image.ok_or(Problem::NotHere).map_err(store::explain(&what))?;
    let progress = args.progress.start();
    let pushed = store.push(&image, &reference, &args.access.access(), &progress);
    progress.finish();
    writeln!(io::stdout(), "{}@{}", reference.name(), pushed.map_err(Failure::from)?)?;
    Ok(ExitCode::SUCCESS)
}
