// SPDX-License-Identifier: Apache-2.0
//! `coracle system`: what images take of this host, and giving it back.

use std::io::{self, BufRead, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::image::{Digest, ImageRecord, Problem};
use coracle::supervisor::{Containers, Snapshots};
use serde_json::json;

use super::{Format, store, units};

/// Show and free what is kept on this host.
#[derive(Debug, Args)]
pub struct SystemArgs {
    #[command(subcommand)]
    verb: SystemVerb,
}

#[derive(Debug, Subcommand)]
enum SystemVerb {
    /// Show what takes how much.
    Df(DfArgs),
    /// Remove images without a name, and content that no image uses.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct DfArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Args)]
struct PruneArgs {
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
        SystemVerb::Df(args) => df(args)?,
        SystemVerb::Prune(args) => prune(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn df(args: &DfArgs) -> anyhow::Result<()> {
    let what = "cannot show what takes how much";
    let usage = store::open(what)?.usage().map_err(store::explain(what))?;
    let kinds = [("Images", &usage.blobs), ("Disks", &usage.disks), ("Unfinished pulls", &usage.parts)];
    let mut out = io::stdout().lock();
    if args.format == Format::Json {
        for (kind, part) in kinds {
            let (size, reclaimable) = (units::size(part.bytes), units::size(part.unused_bytes));
            writeln!(
                out,
                "{}",
                json!({ "Type": kind, "TotalCount": part.count, "Size": size, "Reclaimable": reclaimable })
            )?;
        }
        return Ok(());
    }
    let row = |(kind, part): &(&str, &coracle::image::Part)| {
        vec![(*kind).to_owned(), part.count.to_string(), units::size(part.bytes), units::size(part.unused_bytes)]
    };
    let rows: Vec<_> = kinds.iter().map(row).collect();
    units::table(&mut out, &["TYPE", "TOTAL", "SIZE", "RECLAIMABLE"], &rows)?;
    Ok(())
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    let what = "cannot remove what no image uses";
    let store = store::open(what)?;
    let all = ["all images without a name", "all content that no image uses, unfinished pulls too"];
    if !args.force && !confirmed(what, "coracle system prune --force", &all)? {
        return Ok(());
    }
    let containers = Containers::open(store.root())?;
    let snapshots = Snapshots::beside(&containers)?.all()?.into_iter().map(|one| one.config.image.manifest);
    let used: Vec<_> = containers.all()?.iter().map(|one| one.config.image.manifest).chain(snapshots).collect();
    let dangling = store.change(|index| {
        let is_dangling = |manifest: &Digest, record: &ImageRecord| {
            record.names.is_empty() && record.sources.is_empty() && !used.contains(manifest)
        };
        let gone = index.images.iter().filter(|(manifest, record)| is_dangling(manifest, record));
        let gone: Vec<_> = gone.map(|(_, record)| record.id).collect();
        index.images.retain(|manifest, record| !is_dangling(manifest, record));
        Ok::<_, Problem>(gone)
    });
    let dangling = dangling.map_err(store::explain(what))?;
    let Some(pruned) = store.prune().map_err(store::explain(what))? else {
        let why = "another process is bringing an image, and what it has brought is not in use yet";
        return Err(Failure::new(what, why, "the same when that is done").into());
    };
    let mut out = io::stdout().lock();
    if !dangling.is_empty() {
        writeln!(out, "Deleted Images:")?;
        dangling.iter().try_for_each(|id| writeln!(out, "deleted: {id}"))?;
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", units::size(pruned.bytes))?;
    Ok(())
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
