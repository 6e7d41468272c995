// SPDX-License-Identifier: Apache-2.0
//! `coracle images`: what is in the store.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use coracle::image::{Digest, Image, ImageRecord, Reference, Store};
use jiff::Timestamp;
use serde_json::json;

use super::template::Lines;
use super::{store, units};

#[derive(Debug, Args)]
#[command(after_help = "SIZE is that of the layers as they were transferred, compressed.")]
pub struct ImagesArgs {
    /// Only those of this repository, or with this tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
    /// Images without a name too; they are shown anyway
    #[arg(short, long)]
    all: bool,
    /// The digest under which the registry has it
    #[arg(long)]
    digests: bool,
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// IDs only
    #[arg(short, long)]
    quiet: bool,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.Repository}} {{.ID}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
}

/// One line: an image under one of its names.
pub struct Row {
    repository: String,
    tag: String,
    digest: String,
    image: Image,
    created: Option<Timestamp>,
}

const NONE: &str = "<none>";
const WHAT: &str = "cannot list the images";

impl Row {
    /// Digest of the image's manifest.
    pub fn manifest(&self) -> Digest {
        self.image.manifest_digest
    }

    /// Its cells in a table, and how many containers use it.
    pub fn with_users(&self, users: usize) -> Vec<String> {
        let (name, size) = ([self.repository.clone(), self.tag.clone()], units::size(self.image.size()));
        name.into_iter().chain([self.image.id.short(), self.age(), size, users.to_string()]).collect()
    }

    fn age(&self) -> String {
        let seconds = self.created.map(|created| Timestamp::now().as_second() - created.as_second());
        seconds.map_or_else(|| "N/A".to_owned(), units::ago)
    }
}

/// Lists them on stdout, the newest first.
///
/// # Errors
/// The store cannot be read.
pub fn run(args: &ImagesArgs) -> anyhow::Result<ExitCode> {
    let mut rows = rows(&store::open(WHAT)?)?;
    if let Some(wanted) = &args.repository {
        let reference: Reference = wanted.parse().map_err(store::explain(&format!("cannot list {wanted}")))?;
        let has_tag = wanted.rsplit('/').next().is_some_and(|last| last.contains(':'));
        rows.retain(|row| {
            row.repository == reference.name().familiar() && (!has_tag || reference.tag() == Some(&row.tag))
        });
    }
    print(args, &rows, &mut io::stdout().lock()).context("cannot print the images")?;
    Ok(ExitCode::SUCCESS)
}

/// A line for each image under each of its names, the newest first.
///
/// # Errors
/// The store cannot be read.
pub fn rows(store: &Store) -> anyhow::Result<Vec<Row>> {
    let index = store.index().map_err(store::explain(WHAT))?;
    let mut rows = Vec::new();
    for (manifest, record) in &index.images {
        match store.image(manifest) {
            Ok(image) => rows.extend(rows_of(&image, record)),
            Err(problem) => log::warn!("image {} is damaged: {problem}", record.id.short()),
        }
    }
    rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag))));
    Ok(rows)
}

fn rows_of(image: &Image, record: &ImageRecord) -> Vec<Row> {
    let created = image.config.created().as_ref().and_then(|text| text.parse().ok());
    let read = |text: &String| store::read(text);
    let sources: Vec<Reference> = record.sources.iter().filter_map(read).collect();
    let row = |reference: &Reference, tag: &str| Row {
        repository: reference.name().familiar(),
        tag: tag.to_owned(),
        digest: store::digest_in(record, reference).map_or_else(|| NONE.to_owned(), |digest| digest.to_string()),
        image: image.clone(),
        created,
    };
    let names: Vec<Reference> = record.names.iter().filter_map(read).collect();
    if !names.is_empty() {
        return names.iter().map(|name| row(name, name.tag().unwrap_or(NONE))).collect();
    }
    if !sources.is_empty() {
        return sources.iter().map(|source| row(source, NONE)).collect();
    }
    let none = || NONE.to_owned();
    vec![Row { repository: none(), tag: none(), digest: none(), image: image.clone(), created }]
}

fn print(args: &ImagesArgs, rows: &[Row], out: &mut impl Write) -> io::Result<()> {
    let id = |row: &Row| if args.no_trunc { row.image.id.to_string() } else { row.image.id.short() };
    if args.quiet {
        let mut seen: Vec<String> = Vec::new();
        for row in rows {
            let id = id(row);
            if !seen.contains(&id) {
                writeln!(out, "{id}")?;
                seen.push(id);
            }
        }
        return Ok(());
    }
    if let Lines::Template(template) = &args.format {
        for row in rows {
            let line = json!({
                "Repository": row.repository,
                "Tag": row.tag,
                "Digest": row.digest,
                "ID": id(row),
                "CreatedAt": row.created.map_or_else(String::new, |created| created.to_string()),
                "CreatedSince": row.age(),
                "Size": units::size(row.image.size()),
            });
            writeln!(out, "{}", template.render(&line))?;
        }
        return Ok(());
    }
    let cells = |row: &Row| {
        let mut cells = vec![row.repository.clone(), row.tag.clone()];
        cells.extend(args.digests.then(|| row.digest.clone()));
        cells.extend([id(row), row.age(), units::size(row.image.size())]);
        cells
    };
    let head: &[&str] = match args.digests {
        true => &["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"],
        false => &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"],
    };
    units::table(out, head, &rows.iter().map(cells).collect::<Vec<_>>())
}
