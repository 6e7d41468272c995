// SPDX-License-Identifier: Apache-2.0
//! `coracle history`: the steps that made an image.

use std::io;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::{store, units};

#[derive(Debug, Args)]
#[command(after_help = "SIZE is that of the step's layer as it was transferred, compressed.")]
pub struct HistoryArgs {
    /// NAME[:TAG], NAME@DIGEST, or an ID or its beginning
    image: String,
    /// Whole commands and IDs
    #[arg(long)]
    no_trunc: bool,
}

/// As much of a command as Docker shows.
const COMMAND_CHARACTERS: usize = 45;

/// Lists the steps on stdout, the last one first.
///
/// # Errors
/// There is no such image.
pub fn run(args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot show the history of {}", args.image);
    let image = store::open(&what)?.find(&args.image).map_err(store::explain(&what))?.image;
    let mut sizes = image.layers.iter().map(|layer| layer.size());
    let mut rows = Vec::new();
    for step in image.config.history().iter().flatten() {
        let size = if step.empty_layer() == Some(true) { 0 } else { sizes.next().unwrap_or(0) };
        let created: Option<Timestamp> = step.created().as_ref().and_then(|text| text.parse().ok());
        let since = created.map(|created| Timestamp::now().as_second() - created.as_second());
        let command = units::printable(step.created_by().as_deref().unwrap_or_default());
        rows.push(vec![
            "<missing>".to_owned(),
            since.map_or_else(|| "N/A".to_owned(), units::ago),
            if args.no_trunc { command } else { shortened(&command) },
            units::size(size),
            units::printable(step.comment().as_deref().unwrap_or_default()),
        ]);
    }
    rows.reverse();
    if let Some(cell) = rows.first_mut().and_then(|row| row.first_mut()) {
        *cell = if args.no_trunc { image.id.to_string() } else { image.id.short() };
    }
    units::table(&mut io::stdout().lock(), &["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn shortened(text: &str) -> String {
    match text.chars().count() {
        ..=COMMAND_CHARACTERS => text.to_owned(),
        _ => text.chars().take(COMMAND_CHARACTERS - 1).chain(['…']).collect(),
    }
}
