// SPDX-License-Identifier: Apache-2.0
//! `coracle pull`: an image from a registry.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Platform, PullOptions, Reference, Source};

use super::pull_progress::ProgressArgs;
use super::registry_access::AccessArgs;
use super::store;

const EXAMPLES: &str = "\
Examples:
  coracle pull nginx                                     from the default registry, tag `latest`
  coracle pull registry.example.org:5000/team/app:1.2
  coracle pull app@sha256:0123...                        exactly this content
  coracle pull --platform linux/arm64 nginx
  coracle pull oci:layout:latest                         from a directory, prints the image's ID
  coracle pull --tls-verify=false host.example.org:5000/app

CORACLE_DEFAULT_REGISTRY=HOST[:PORT] names another default registry. CORACLE_DATA=DIR keeps images elsewhere.
What had come when a pull broke off is kept: the same again goes on from there.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PullArgs {
    /// NAME[:TAG][@DIGEST], with the registry before the name where it is not the default one; or oci:DIR[:NAME],
    /// oci-archive:FILE[:NAME], docker-archive:FILE[:NAME]
    image: String,
    /// The image for this platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    access: AccessArgs,
}

/// Pulls, and prints the image's full name on stdout, or its ID where it may have none.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &PullArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot pull image {}", args.image);
    let platform = args.platform.clone().unwrap_or_else(Platform::native);
    if let Some(source) = Source::parse(&args.image) {
        let store = store::open(&what)?;
        let image = store.import(&source, &platform).map_err(Failure::from)?.image;
        store.rootfs(&image).map_err(Failure::from)?;
        writeln!(io::stdout(), "{}", image.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reference: Reference = args.image.parse().map_err(store::explain(&what))?;
    let store = store::open(&what)?;
    let options = PullOptions { platform, access: args.access.access() };
    let progress = args.progress.start();
    let result = store.pull(&reference, &options, &progress);
    progress.finish();
    // What makes it bootable is done now, and not when someone waits for it to run.
    store.rootfs(&result.map_err(Failure::from)?).map_err(Failure::from)?;
    writeln!(io::stdout(), "{reference}")?;
    Ok(ExitCode::SUCCESS)
}
