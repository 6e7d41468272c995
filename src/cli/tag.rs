// SPDX-License-Identifier: Apache-2.0
//! `coracle tag`: another name for an image.

use std::process::ExitCode;

use clap::Args;
use coracle::image::{Problem, Reference};

use super::store;

#[derive(Debug, Args)]
pub struct TagArgs {
    /// NAME[:TAG], NAME@DIGEST, or an ID or its beginning
    source: String,
    /// The new name, with the registry before it where it is not the default one
    #[arg(value_name = "NAME[:TAG]")]
    target: String,
}

/// Adds the name, taking it from the image that had it.
///
/// # Errors
/// There is no such image, or the name cannot be one.
pub fn run(args: &TagArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot name image {} {}", args.source, args.target);
    let target: Reference = args.target.parse().map_err(store::explain(&what))?;
    if target.digest().is_some() {
        let reason = "a name with a digest is given by content alone".to_owned();
        return Err(store::explain(&what)(Problem::Malformed { what: "new name", reason }).into());
    }
    let store = store::open(&what)?;
    let found = store.find(&args.source).map_err(store::explain(&what))?;
    let (manifest, id) = (found.image.manifest_digest, found.image.id);
    let change = store.change(|index| {
        // Someone may have removed it meanwhile.
        index.images.contains_key(&manifest).then(|| index.add(manifest, id, &[target])).ok_or(Problem::NotHere)
    });
    change.map_err(store::explain(&what))?;
    Ok(ExitCode::SUCCESS)
}
