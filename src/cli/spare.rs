// SPDX-License-Identifier: Apache-2.0
//! `coracle spare`: not for people. What a monitor becomes when its container has ended.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::monitor::{self, Beforehand};
use coracle::supervisor::spare;

#[derive(Debug, Args)]
pub struct SpareArgs {
    /// Its directory
    place: PathBuf,
    /// Descriptor of the lock
    #[arg(value_parser = clap::value_parser!(i32).range(3..))]
    lock: i32,
    /// Descriptor of the socket
    #[arg(value_parser = clap::value_parser!(i32).range(3..))]
    listener: i32,
}

/// Runs until a container has ended, or none has come.
///
/// # Errors
/// For the monitor's log.
pub fn run(args: &SpareArgs) -> anyhow::Result<ExitCode> {
    if let Some((container, client, spare)) = spare::wait(&args.place, args.lock, args.listener)?
        && let Some(offer) = monitor::run(&container, client, Beforehand::of(spare))?
    {
        offer.become_spare()?;
    }
    Ok(ExitCode::SUCCESS)
}
