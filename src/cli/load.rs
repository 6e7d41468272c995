// SPDX-License-Identifier: Apache-2.0
//! `coracle load`: images from an archive.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Platform, Problem};

use super::store;

#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Read FILE instead of stdin
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The images for this platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Do not say which images they were
    #[arg(short, long)]
    quiet: bool,
}

/// Loads all of its images, and prints their names or IDs on stdout.
///
/// # Errors
/// The archive is damaged, or the store cannot be written.
pub fn run(args: &LoadArgs) -> anyhow::Result<ExitCode> {
    let store = store::open("cannot load images")?;
    let platform = args.platform.clone().unwrap_or_else(Platform::native);
    let loaded = match &args.input {
        None if io::stdin().is_terminal() => {
            let why = "stdin is a terminal, and an archive is not typed";
            return Err(Failure::new("cannot load images", why, "`-i FILE`, or a pipe").into());
        }
        None => store.import_stream(io::stdin().lock(), &platform),
        Some(path) => {
            let what = format!("cannot load images from {}", path.display());
            let fail = |error| store::explain::<Problem>(&what)(Problem::File { path: path.clone(), error });
            let mut first = Vec::new();
            File::open(path).map_err(fail)?.take(2).read_to_end(&mut first).map_err(fail)?;
            match first[..] {
                [0x1f, 0x8b] => store.import_stream(File::open(path).map_err(fail)?, &platform),
                _ => store.import_all(path, &platform),
            }
        }
    };
    for imported in loaded.map_err(Failure::from)? {
        store.rootfs(&imported.image).map_err(Failure::from)?;
        if args.quiet {
            continue;
        }
        for name in &imported.names {
            writeln!(io::stdout(), "Loaded image: {}", name.familiar())?;
        }
        if imported.names.is_empty() {
            writeln!(io::stdout(), "Loaded image ID: {}", imported.image.id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
