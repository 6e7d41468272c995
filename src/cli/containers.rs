// SPDX-License-Identifier: Apache-2.0
//! What the commands on containers have in common.

use std::io::{self, Write};
use std::process::ExitCode;

use coracle::failure::Failure;
use coracle::supervisor::{Connection, Container, Containers, State, Status};

use super::{error, store};

/// The containers of this user.
pub fn open(what: &str) -> Result<Containers, Failure> {
    Containers::open(store::open(what)?.root())
}

/// The container of this name or id, and how it is.
pub fn find(name: &str, what: &str) -> Result<(Container, State), Failure> {
    let container = open(what)?.find(name, what)?;
    let state = container.state()?;
    Ok((container, state))
}

/// The container of this name or id, whose program runs.
pub fn up(name: &str, what: &str) -> Result<(Container, State), Failure> {
    let (container, state) = find(name, what)?;
    let name = &container.config.name;
    match state.status {
        Status::Running => Ok((container, state)),
        Status::Paused => Err(Failure::new(what, "it is paused", format!("`coracle unpause {name}`"))),
        Status::Created | Status::Exited => {
            let why = format!("it is {}, not running", state.status.word());
            Err(Failure::new(what, why, format!("`coracle start {name}`")))
        }
    }
}

/// The container of this name or id, which runs, and a connection to its monitor.
pub fn connect(name: &str, what: &str) -> Result<(Container, Connection), Failure> {
    let (container, state) = find(name, what)?;
    let connection = Connection::open(&container, &state, what)?;
    Ok((container, connection))
}

/// Does something to each, and prints the name of each that it was done to, as Docker does; reports the others.
///
/// # Errors
/// Our own output fails.
pub fn each(names: &[String], verb: &str, act: impl Fn(&str, &str) -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in names {
        match act(name, &format!("cannot {verb} container {name}")) {
            Ok(()) => writeln!(io::stdout(), "{name}")?,
            Err(failure) => {
                error::report(&failure);
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}
