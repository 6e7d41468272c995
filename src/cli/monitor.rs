// SPDX-License-Identifier: Apache-2.0
//! `coracle monitor`: not for people. Coracle starts itself so to look after a container.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::monitor::{self, Beforehand};

#[derive(Debug, Args)]
pub struct MonitorArgs {
    /// The container's directory
    directory: PathBuf,
    /// Descriptor of the connection of who asked for it
    #[arg(value_parser = clap::value_parser!(i32).range(3..))]
    client: i32,
    /// Where it is to wait for another container like this one, once this one has ended
    spare: Option<PathBuf>,
}

/// Runs until the container has ended.
///
/// # Errors
/// For the monitor's log.
pub fn run(args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    // SAFETY: whoever started us left this descriptor open for us alone. Where it is not open, the first read says so.
    let client = unsafe { OwnedFd::from_raw_fd(args.client) };
    if let Some(offer) = monitor::run(&args.directory, client, Beforehand::new(args.spare.clone()))? {
        offer.become_spare()?;
    }
    Ok(ExitCode::SUCCESS)
}
