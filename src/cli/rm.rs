// SPDX-License-Identifier: Apache-2.0
//! `coracle rm` and `coracle container prune`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::supervisor::{Connection, Container, Containers, State, Volumes};

use super::{containers, stop};

/// SIGKILL.
const KILL: u8 = 9;

#[derive(Debug, Args)]
pub struct RmArgs {
    /// End those that run; no complaint about those that are not there
    #[arg(short, long)]
    force: bool,
    /// Remove the volumes too that were made for them
    #[arg(short, long)]
    volumes: bool,
    /// Names, or ids or their beginnings
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Removes each, and prints its name.
///
/// # Errors
/// Our own output fails.
pub fn run(args: &RmArgs) -> anyhow::Result<ExitCode> {
    let known = containers::open("cannot remove containers")?;
    // One that cannot be told from others is complained about below.
    let gone = |name: &String| args.force && matches!(known.look_up(name, ""), Ok(None));
    let there: Vec<String> = args.containers.iter().filter(|name| !gone(name)).cloned().collect();
    containers::each(&there, "remove", |name, what| {
        let (container, state) = containers::find(name, what)?;
        remove(&container, &state, args.force, what)?;
        if args.volumes {
            let containers = containers::open(what)?;
            Volumes::beside(&containers)?.remove_anonymous(&container.config, &containers)?;
        }
        Ok(())
    })
}

fn remove(container: &Container, state: &State, force: bool, what: &str) -> anyhow::Result<()> {
    if state.is_looked_after() {
        if !force {
            let why =
                if state.status.is_up() { format!("it is {}", state.status.word()) } else { "it starts".to_owned() };
            let name = &container.config.name;
            return Err(
                Failure::new(what, why, format!("`coracle stop {name}` first, or `coracle rm -f {name}`")).into()
            );
        }
        // A monitor that does not answer any more is about to go.
        if let Ok(connection) = Connection::open(container, state, what) {
            let _ = stop::stop(&connection, KILL, Some(0), what);
        }
    }
    // One that is being started is not there to be removed.
    let _held = match container.config.remove && !container.directory().exists() {
        true => return Ok(()),
        false => container.claim()?,
    };
    Ok(container.remove()?)
}

/// Remove all containers that do not run.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Removes them, and prints their ids.
///
/// # Errors
/// One cannot be removed.
pub fn run_prune(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let what = "cannot remove containers";
    if !args.force && !super::system::confirmed(what, "coracle container prune --force", &["all stopped containers"])? {
        return Ok(ExitCode::SUCCESS);
    }
    let (gone, _) = remove_stopped(&containers::open(what)?)?;
    if !gone.is_empty() {
        writeln!(io::stdout(), "Deleted Containers:")?;
        gone.iter().try_for_each(|id| writeln!(io::stdout(), "{id}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes all that do not run; gives their ids, and how many bytes they took.
///
/// # Errors
/// One cannot be removed.
pub fn remove_stopped(containers: &Containers) -> Result<(Vec<String>, u64), Failure> {
    let (mut gone, mut bytes) = (Vec::new(), 0);
    for container in containers.all()? {
        if !container.state()?.is_looked_after() && !container.has_monitor()? {
            bytes += container.bytes();
            container.remove()?;
            gone.push(container.config.id);
        }
    }
    Ok((gone, bytes))
}
