// SPDX-License-Identifier: Apache-2.0
//! `coracle rmi`: removes names, and images that have no other.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Found, Problem, Reference, Store};
use coracle::supervisor::{Containers, Snapshots};

use super::store;

const DETAILS: &str = "\
An image goes when its last name does, or when it is removed by its ID. Its content goes as well,
as far as no other image has it.";

#[derive(Debug, Args)]
#[command(after_help = DETAILS)]
pub struct RmiArgs {
    /// NAME[:TAG], NAME@DIGEST, or an ID or its beginning
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Also remove an image by its ID that has names in several repositories; no complaint about what is not here
    #[arg(short, long)]
    force: bool,
}

/// Removes each, and prints what was done on stdout.
///
/// # Errors
/// The first that could not be removed; those after it are removed nevertheless.
pub fn run(args: &RmiArgs) -> anyhow::Result<ExitCode> {
    let store = store::open("cannot remove images")?;
    let results: Vec<_> = args.images.iter().map(|name| remove(&store, name, args.force)).collect();
    store.remove_unused().map_err(store::explain("cannot remove what no image uses"))?;
    results.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(ExitCode::SUCCESS)
}

fn remove(store: &Store, text: &str, force: bool) -> anyhow::Result<()> {
    let what = format!("cannot remove image {text}");
    let found = match store.find(text) {
        Err(Problem::NotHere) if force => return Ok(()),
        found => found.map_err(store::explain(&what))?,
    };
    check_unused(store, &found, text, force)?;
    let gone = names_to_remove(&found, force).map_err(store::explain::<Problem>(&what))?;
    let manifest = &found.image.manifest_digest;
    let is_last = found.record.names.iter().all(|name| gone.contains(name));
    for name in &gone {
        store.forget(manifest, Some(name)).map_err(store::explain(&what))?;
        writeln!(io::stdout(), "Untagged: {}", store::familiar([name]).concat())?;
    }
    if is_last {
        store.forget(manifest, None).map_err(store::explain(&what))?;
        writeln!(io::stdout(), "Deleted: {}", found.image.id)?;
    }
    // The same image packed in another way has the same ID.
    match found.name {
        None => remove(store, text, true),
        Some(_) => Ok(()),
    }
}

/// A container cannot be started without its image, nor can one from a snapshot.
fn check_unused(store: &Store, found: &Found, text: &str, force: bool) -> anyhow::Result<()> {
    let keeps_a_name = found.name.is_some() && found.record.names.len() > 1;
    let containers = Containers::open(store.root())?;
    for container in containers.all()? {
        let is_up = container.state()?.is_looked_after();
        if container.config.image.manifest == found.image.manifest_digest && (is_up || !force) && !keeps_a_name {
            let name = &container.config.name;
            let why = format!("container {name} is made of it{}", if is_up { ", and runs" } else { "" });
            let next = format!("`coracle rm {}{name}` first", if is_up { "-f " } else { "" });
            return Err(Failure::new(format!("cannot remove image {text}"), why, next).into());
        }
    }
    for snapshot in Snapshots::beside(&containers)?.all()? {
        if snapshot.config.image.manifest == found.image.manifest_digest && !force && !keeps_a_name {
            let why = format!("snapshot {} is of a container that is made of it", snapshot.name);
            let next = format!("`coracle snapshot rm {}` first", snapshot.name);
            return Err(Failure::new(format!("cannot remove image {text}"), why, next).into());
        }
    }
    Ok(())
}

/// Which of its names the image loses.
fn names_to_remove(found: &Found, force: bool) -> Result<Vec<String>, Problem> {
    let record = &found.record;
    let repository = |name: &String| store::read(name).map(|reference| reference.name().to_string());
    match found.name.as_ref() {
        Some(name) if name.digest().is_none() => {
            let full = name.to_string();
            let is_other = |other: &&String| **other != full;
            let stays =
                record.names.iter().filter(is_other).any(|other| repository(other) == Some(name.name().to_string()));
            // Where it came from goes with the last tag of that repository.
            let sources = record.sources.iter().filter(|_| !stays).filter(|source| in_repository(source, name));
            Ok(std::iter::once(&full).chain(sources).cloned().collect())
        }
        _ => {
            let mut repositories: Vec<_> = record.names.iter().map(repository).collect();
            repositories.dedup();
            if repositories.len() > 1 && !force {
                let names = store::familiar(&record.names).join(", ");
                return Err(Problem::InUse(format!("it has names in several repositories: {names}")));
            }
            Ok(record.names.iter().chain(&record.sources).cloned().collect())
        }
    }
}

fn in_repository(source: &str, name: &Reference) -> bool {
    store::read(source).is_some_and(|source| source.name() == name.name())
}
