// SPDX-License-Identifier: Apache-2.0
//! `coracle inspect`: all that is known, with Docker's field names.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::image::{Found, Problem, Store};
use serde_json::{Value, json};

use super::store;
use super::template::Template;

/// Show all that is known of images, as a JSON array.
#[derive(Debug, Args)]
#[command(after_help = "Size is that of the layers as they were transferred, compressed.")]
pub struct InspectArgs {
    /// NAME[:TAG], NAME@DIGEST, or an ID or its beginning
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// `json`, or a text with fields in it: '{{.Id}} {{json .Config.Env}}'; a line for each image
    #[arg(short, long, value_name = "TEMPLATE", value_parser = template)]
    format: Option<Template>,
}

/// Prints those that there are, in the order asked for.
///
/// # Errors
/// The first that is not here.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = store::open("cannot inspect images")?;
    let (mut found, mut failure) = (Vec::new(), None);
    for name in &args.images {
        let what = format!("cannot inspect image {name}");
        match store.find(name).and_then(|image| describe(&store, &image)) {
            Ok(description) => found.push(description),
            Err(problem) => _ = failure.get_or_insert_with(|| store::explain(&what)(problem)),
        }
    }
    match &args.format {
        None => writeln!(io::stdout(), "{:#}", Value::Array(found))?,
        Some(template) => found.iter().try_for_each(|image| writeln!(io::stdout(), "{}", template.render(image)))?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
}

fn describe(store: &Store, found: &Found) -> Result<Value, Problem> {
    let Found { image, record, .. } = found;
    let raw = store.configuration(image)?;
    let field = |name: &str| raw.get(name).cloned().unwrap_or_default();
    let text = |name: &str| raw.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(json!({
        "Id": image.id,
        "RepoTags": store::familiar(&record.names),
        "RepoDigests": store::familiar(&record.sources),
        "Created": field("created"),
        "Author": text("author"),
        "Architecture": text("architecture"),
        "Variant": text("variant"),
        "Os": text("os"),
        "Size": image.size(),
        "Config": field("config"),
        "RootFS": { "Type": "layers", "Layers": image.diff_ids() },
        "ManifestDigest": image.manifest_digest,
        "History": field("history"),
    }))
}

fn template(text: &str) -> Result<Template, String> {
    Template::parse(if text == "json" { "{{json .}}" } else { text })
}
