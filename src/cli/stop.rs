// SPDX-License-Identifier: Apache-2.0
//! `coracle stop`, `restart` and `kill`.

use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::Connection;
use coracle::supervisor::wire::Request;

use super::create::signal;
use super::{containers, start};

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds that they have; -1 for as long as it takes
    #[arg(short = 't', long = "time", alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Signal to ask with
    #[arg(short, long, value_name = "SIGNAL", value_parser = signal)]
    signal: Option<u8>,
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Stops each, and prints its name.
///
/// # Errors
/// Our own output fails.
pub fn run(args: &StopArgs) -> anyhow::Result<ExitCode> {
    containers::each(&args.containers, "stop", |name, what| args.stop(name, what))
}

/// The same, and starts each again.
///
/// # Errors
/// Our own output fails.
pub fn run_restart(args: &StopArgs) -> anyhow::Result<ExitCode> {
    containers::each(&args.containers, "restart", |name, what| {
        args.stop(name, what)?;
        start::start(name, what)
    })
}

impl StopArgs {
    fn stop(&self, name: &str, what: &str) -> anyhow::Result<()> {
        let (container, state) = containers::find(name, what)?;
        if !state.is_looked_after() {
            return Ok(());
        }
        let connection = Connection::open(&container, &state, what)?;
        let grace = self.time.map_or(container.config.stop_timeout, |seconds| u64::try_from(seconds).ok());
        let signal = self.signal.unwrap_or(container.config.stop_signal);
        stop(&connection, signal, grace, what)
    }
}

/// Asks a container to end and waits until it has; `grace` in seconds.
///
/// # Errors
/// Its monitor does not answer.
pub fn stop(connection: &Connection, signal: u8, grace: Option<u64>, what: &str) -> anyhow::Result<()> {
    let grace_ms = grace.map(|seconds| seconds.saturating_mul(1000));
    connection.ask(Request::Stop { signal, grace_ms }, what)?;
    connection.end(what)?;
    Ok(())
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Its name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: u8,
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Sends it to each, and prints its name.
///
/// # Errors
/// Our own output fails.
pub fn run_kill(args: &KillArgs) -> anyhow::Result<ExitCode> {
    containers::each(&args.containers, "kill", |name, what| {
        let (_, connection) = containers::connect(name, what)?;
        Ok(connection.request(Request::Signal(args.signal), what)?)
    })
}
