// SPDX-License-Identifier: Apache-2.0
//! `coracle attach`: to the program of a container that runs.

use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgAction, Args};
use coracle::supervisor::wire::Request;

use super::containers;
use super::session::{self, Signals, Wiring};

#[derive(Debug, Args)]
#[command(after_help = "Ctrl-P Ctrl-Q leaves a program with a terminal running.")]
pub struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    sig_proxy: bool,
    /// Name, or id or its beginning
    container: String,
}

/// Ends with the program, and its exit status.
///
/// # Errors
/// It does not run.
pub fn run(args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot attach to container {}", args.container);
    let (container, connection) = containers::connect(&args.container, &what)?;
    let config = &container.config;
    let input = config.interactive && !args.no_stdin;
    session::check_terminal(config.terminal, input, &what)?;
    let signals = Signals::take().context("cannot catch signals")?;
    connection.ask(Request::Attach { input, output: true, size: None }, &what)?;
    let wiring = Wiring { input, stdout: true, stderr: true, terminal: config.terminal, signals: args.sig_proxy };
    session::finish(session::run(&container, &connection, wiring, Some(signals), || (), &what)?)
}
