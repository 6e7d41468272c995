// SPDX-License-Identifier: Apache-2.0
//! `coracle system`: what images, containers and volumes take of this host, and giving it back.

mod df;

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::image::{Digest, ImageRecord, Problem, Store};
use coracle::network;
use coracle::supervisor::{Containers, Snapshots, spare};

use super::{rm, store, units, volume};

#[derive(Debug, Args)]
pub struct SystemArgs {
    #[command(subcommand)]
    verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
enum SystemVerb {
    /// Show what takes how much.
    Df(df::DfArgs),
    /// Remove containers, networks and images that are not in use.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Images that have a name too, unless a container uses them
    #[arg(short, long)]
    all: bool,
    /// Volumes too that nobody has named
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

/// Does what the verb says.
///
/// # Errors
/// The store cannot be read or written.
pub fn run(args: &SystemArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        SystemVerb::Df(args) => df::run(args)?,
        SystemVerb::Prune(args) => prune(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    let what = "cannot remove what is not in use";
    let store = store::open(what)?;
    let images = match args.all {
        true => "all images that no container uses",
        false => "all images without a name",
    };
    let mut all = vec!["all stopped containers", "all networks that no container is attached to"];
    all.extend(args.volumes.then_some("all unnamed volumes that no container uses"));
    all.extend([images, "all content that no image uses, unfinished pulls too"]);
    if !args.force && !confirmed(what, "coracle system prune --force", &all)? {
        return Ok(());
    }
    let containers = Containers::open(store.root())?;
    let (mut bytes, mut out) = (0, io::stdout().lock());
    let mut tell = |kind: &str, names: &[String]| -> io::Result<()> {
        if !names.is_empty() {
            writeln!(out, "Deleted {kind}:")?;
            names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
            writeln!(out)?;
        }
        Ok(())
    };
    // What uses others goes first.
    let (gone, freed) = rm::remove_stopped(&containers)?;
    bytes += freed;
    tell("Containers", &gone)?;
    spare::dismiss(|_| true);
    let gone = network::prune(&network::Store::open()?, |_| true)?;
    tell("Networks", &gone.into_iter().map(|removed| removed.name).collect::<Vec<_>>())?;
    if args.volumes {
        let (gone, freed) = volume::remove_unused(&containers, |volume| volume.anonymous)?;
        bytes += freed;
        tell("Volumes", &gone)?;
    }
    let (gone, freed) = remove_images(&store, &containers, args.all, what)?;
    bytes += freed;
    tell("Images", &gone)?;
    writeln!(out, "Total reclaimed space: {}", units::size(bytes))?;
    Ok(())
}

/// Removes images without a name, or all, that no container uses, and content that no image uses; gives a line for each
/// image, and how much was freed.
fn remove_images(
    store: &Store,
    containers: &Containers,
    named: bool,
    what: &str,
) -> anyhow::Result<(Vec<String>, u64)> {
    let snapshots = Snapshots::beside(containers)?.all()?.into_iter().map(|one| one.config.image.manifest);
    let used: Vec<_> = containers.all()?.iter().map(|one| one.config.image.manifest).chain(snapshots).collect();
    let gone = store.change(|index| {
        let goes = |manifest: &Digest, record: &ImageRecord| {
            !used.contains(manifest) && (named || (record.names.is_empty() && record.sources.is_empty()))
        };
        let mut gone = Vec::new();
        for (_, record) in index.images.iter().filter(|(manifest, record)| goes(manifest, record)) {
            gone.extend(store::familiar(&record.names).into_iter().map(|name| format!("untagged: {name}")));
            gone.push(format!("deleted: {}", record.id));
        }
        index.images.retain(|manifest, record| !goes(manifest, record));
        Ok::<_, Problem>(gone)
    });
    let gone = gone.map_err(store::explain(what))?;
    let Some(pruned) = store.prune().map_err(store::explain(what))? else {
        let why = "another process is bringing an image, and what it has brought is not in use yet";
        return Err(Failure::new(what, why, "the same when that is done").into());
    };
    Ok((gone, pruned.bytes))
}

/// Asks whether all this may go.
///
/// # Errors
/// There is no terminal to ask on; `unasked` is the command that does not ask.
pub fn confirmed(what: &str, unasked: &str, all: &[&str]) -> anyhow::Result<bool> {
    let all: String = all.iter().map(|one| format!("  - {one}\n")).collect();
    asked(what, unasked, &format!(":\n{all}"))
}

/// As [`confirmed`]; `all` ends the sentence that the warning begins.
///
/// # Errors
/// As there.
pub fn asked(what: &str, unasked: &str, all: &str) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(what, "there is no terminal to ask on", format!("`{unasked}`")).into());
    }
    eprint!("WARNING! This will remove{all}\nAre you sure you want to continue? [y/N] ");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).context("cannot read the terminal")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
