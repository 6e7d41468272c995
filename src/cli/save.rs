// SPDX-License-Identifier: Apache-2.0
//! `coracle save`: images into an archive.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Image, Problem, Reference, Store};

use super::store;

const EXAMPLES: &str = "\
Examples:
  coracle save -o app.tar app:v1
  coracle save app:v1 other | ssh host coracle load

The archive is an OCI image layout and what `docker load` reads, both at once.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SaveArgs {
    /// NAME[:TAG], NAME@DIGEST, or an ID or its beginning
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write to FILE instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Writes them.
///
/// # Errors
/// One is not here, or the archive cannot be written; a file that was begun is removed.
pub fn run(args: &SaveArgs) -> anyhow::Result<ExitCode> {
    let store = store::open("cannot save images")?;
    let images = args.images.iter().map(|name| find(&store, name)).collect::<Result<Vec<_>, _>>()?;
    match &args.output {
        None if io::stdout().is_terminal() => {
            let why = "stdout is a terminal, and an archive is not for reading";
            return Err(Failure::new("cannot save images", why, "`-o FILE`, or a pipe").into());
        }
        None => store.export(&images, BufWriter::new(io::stdout().lock())).map_err(Failure::from)?,
        Some(path) => {
            let what = format!("cannot save images in {}", path.display());
            let fail = |error| store::explain::<Problem>(&what)(Problem::Output { error });
            // Another name until it is complete: an archive of this name may be the only one.
            let mut new = path.clone().into_os_string();
            new.push(".new");
            let file = File::create(&new).map_err(fail)?;
            let written = store.export(&images, BufWriter::new(&file)).map_err(Failure::from);
            let finished = written.and_then(|()| file.sync_all().and_then(|()| fs::rename(&new, path)).map_err(fail));
            if finished.is_err() {
                // The failure is what to tell.
                let _ = fs::remove_file(&new);
            }
            finished?;
        }
    }
    io::stdout().flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The image, and the name that it is saved under; one that was found by its ID takes all of its names along.
fn find(store: &Store, text: &str) -> Result<(Image, Vec<Reference>), Failure> {
    let found = store.find(text).map_err(store::explain(&format!("cannot save image {text}")))?;
    let names = match found.name {
        Some(name) if name.digest().is_none() => vec![name],
        Some(_) => Vec::new(),
        None => found.record.names.iter().filter_map(|name| store::read(name)).collect(),
    };
    Ok((found.image, names))
}
