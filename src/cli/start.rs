// SPDX-License-Identifier: Apache-2.0
//! `coracle start`: runs the program of containers that were made or have ended.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use coracle::supervisor::Connection;
use coracle::supervisor::wire::{Reply, Request};

use super::containers;
use super::session::{self, Signals, Wiring};

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Show the program's output, pass signals on, and end with it
    #[arg(short, long)]
    attach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Starts each, and prints its name.
///
/// # Errors
/// Our own output fails, or the one to be attached to does not start.
pub fn run(args: &StartArgs) -> anyhow::Result<ExitCode> {
    match (args.attach || args.interactive, &args.containers[..]) {
        (false, _) => containers::each(&args.containers, "start", start),
        (true, [name]) => attached(args, name),
        (true, _) => {
            let why = "there is one terminal, and there are several containers";
            Err(coracle::failure::Failure::new("cannot attach to containers", why, "one at a time").into())
        }
    }
}

/// Starts one, and waits until it runs.
///
/// # Errors
/// It does not.
pub fn start(name: &str, what: &str) -> anyhow::Result<()> {
    let (container, state) = containers::find(name, what)?;
    if state.status.is_up() {
        return Ok(());
    }
    match Connection::start(&container, &Request::FOLLOW, false)?.reply(what)? {
        Reply::Failed { failure, .. } => Err(failure.into()),
        _ => Ok(()),
    }
}

fn attached(args: &StartArgs, name: &str) -> anyhow::Result<ExitCode> {
    let what = format!("cannot start container {name}");
    let (container, state) = containers::find(name, &what)?;
    let config = &container.config;
    let input = args.interactive && config.interactive;
    session::check_terminal(config.terminal, input, &what)?;
    let signals = Signals::take().context("cannot catch signals")?;
    let request = Request::Attach { input, output: true, size: session::size() };
    let connection = match state.status.is_up() {
        true => {
            let connection = Connection::open(&container, &state, &what)?;
            connection.ask(request, &what)?;
            connection
        }
        false => Connection::start(&container, &request, false)?,
    };
    let wiring = Wiring { input, stdout: true, stderr: true, terminal: config.terminal, signals: true };
    session::finish(session::run(&container, &connection, wiring, Some(signals), || (), &what)?)
}
