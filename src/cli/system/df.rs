// SPDX-License-Identifier: Apache-2.0
//! `coracle system df`: what takes how much of this host.

use std::io::{self, Write};

use clap::Args;
use coracle::image::Part;
use coracle::supervisor::{Container, Containers, Volumes};
use serde_json::json;

use crate::cli::template::Lines;
use crate::cli::{images, ps, store, units};

/// Show what takes how much.
#[derive(Debug, Args)]
pub struct DfArgs {
    /// Each image, container and volume
    #[arg(short, long, conflicts_with = "format")]
    verbose: bool,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.Type}} {{.Size}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
}

/// A kind of thing.
struct Row {
    kind: &'static str,
    count: usize,
    /// How many are in use; `None` where that is no question.
    active: Option<usize>,
    bytes: u64,
    unused_bytes: u64,
}

impl Row {
    fn cells(&self) -> [String; 5] {
        let share = (self.unused_bytes * 100).checked_div(self.bytes).map(|share| format!(" ({share}%)"));
        [
            self.kind.to_owned(),
            self.count.to_string(),
            self.active.map_or_else(|| "-".to_owned(), |active| active.to_string()),
            units::size(self.bytes),
            units::size(self.unused_bytes) + share.as_deref().unwrap_or_default(),
        ]
    }
}

/// Prints it.
///
/// # Errors
/// The store, containers or volumes cannot be read.
pub fn run(args: &DfArgs) -> anyhow::Result<()> {
    let what = "cannot show what takes how much";
    let store = store::open(what)?;
    let containers = Containers::open(store.root())?;
    let volumes = Volumes::beside(&containers)?;
    if args.verbose {
        return verbose(&store, &containers, &volumes);
    }
    let usage = store.usage().map_err(store::explain(what))?;
    let all = containers.all()?;
    let index = store.index().map_err(store::explain(what))?;
    let used = |manifest| all.iter().any(|one| one.config.image.manifest == manifest);
    let images = index.images.keys().filter(|manifest| used(**manifest)).count();
    let rows = [
        of_store("Images", &usage.blobs, Some(images)),
        of_store("Disks", &usage.disks, None),
        of_store("Unfinished pulls", &usage.parts, None),
        of_containers(&all),
        of_volumes(&volumes, &all)?,
    ];
    let mut out = io::stdout().lock();
    let Lines::Template(template) = &args.format else {
        let cells: Vec<_> = rows.iter().map(|row| row.cells().to_vec()).collect();
        return Ok(units::table(&mut out, &["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &cells)?);
    };
    for row in &rows {
        let [kind, count, active, size, reclaimable] = row.cells();
        let line = json!({
            "Type": kind, "TotalCount": count, "Active": active, "Size": size, "Reclaimable": reclaimable,
        });
        writeln!(out, "{}", template.render(&line))?;
    }
    Ok(())
}

fn of_store(kind: &'static str, part: &Part, active: Option<usize>) -> Row {
    Row { kind, count: part.count, active, bytes: part.bytes, unused_bytes: part.unused_bytes }
}

fn of_containers(all: &[Container]) -> Row {
    // One that cannot be read is being removed.
    let looked_after = |one: &Container| one.state().map_or(true, |state| state.is_looked_after());
    let mut row = Row { kind: "Containers", count: all.len(), active: Some(0), bytes: 0, unused_bytes: 0 };
    for one in all {
        let bytes = one.bytes();
        row.bytes += bytes;
        match looked_after(one) {
            true => row.active = row.active.map(|active| active + 1),
            false => row.unused_bytes += bytes,
        }
    }
    row
}

fn of_volumes(volumes: &Volumes, users: &[Container]) -> anyhow::Result<Row> {
    let all = volumes.all()?;
    let mut row = Row { kind: "Local Volumes", count: all.len(), active: Some(0), bytes: 0, unused_bytes: 0 };
    for volume in all {
        let bytes = volumes.size(&volume.name);
        row.bytes += bytes;
        match users.iter().any(|one| one.config.uses_volume(&volume.name)) {
            true => row.active = row.active.map(|active| active + 1),
            false => row.unused_bytes += bytes,
        }
    }
    Ok(row)
}

fn verbose(store: &coracle::image::Store, containers: &Containers, volumes: &Volumes) -> anyhow::Result<()> {
    let all = containers.all()?;
    let mut out = io::stdout().lock();
    writeln!(out, "Images space usage:\n")?;
    let users = |manifest| all.iter().filter(|one| one.config.image.manifest == manifest).count();
    let rows: Vec<_> = images::rows(store)?.iter().map(|row| row.with_users(users(row.manifest()))).collect();
    units::table(&mut out, &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "CONTAINERS"], &rows)?;
    writeln!(out, "\nContainers space usage:\n")?;
    let mut rows = Vec::new();
    for one in &all {
        let row = ps::row(one, &one.state()?, false);
        let text = |name: &str| row.get(name).and_then(|cell| cell.as_str()).unwrap_or_default().to_owned();
        let mounted = one.config.mounts.iter().filter(|mount| mount.volume().is_some()).count();
        let [id, image, command] = ["ID", "Image", "Command"].map(text);
        let [created, status, name] = ["RunningFor", "Status", "Names"].map(text);
        rows.push(vec![id, image, command, mounted.to_string(), units::size(one.bytes()), created, status, name]);
    }
    let head = ["CONTAINER ID", "IMAGE", "COMMAND", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"];
    units::table(&mut out, &head, &rows)?;
    writeln!(out, "\nLocal Volumes space usage:\n")?;
    let row = |name: String| {
        let links = all.iter().filter(|one| one.config.uses_volume(&name)).count().to_string();
        let size = units::size(volumes.size(&name));
        vec![name, links, size]
    };
    let rows: Vec<_> = volumes.all()?.into_iter().map(|volume| row(volume.name)).collect();
    Ok(units::table(&mut out, &["VOLUME NAME", "LINKS", "SIZE"], &rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_freed_is_told_as_docker_tells_it() {
        let row = |bytes, unused_bytes| Row { kind: "Containers", count: 3, active: Some(1), bytes, unused_bytes };
        assert_eq!(row(3000, 1000).cells(), ["Containers", "3", "1", "3kB", "1kB (33%)"]);
        assert_eq!(row(0, 0).cells(), ["Containers", "3", "1", "0B", "0B"]);
    }
}
