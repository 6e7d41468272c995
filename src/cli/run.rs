// SPDX-License-Identifier: Apache-2.0
//! `coracle run`: a container from an image, in a microVM of its own.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use coracle::failure::Failure;
use coracle::image::{Platform, PullOptions, PullPolicy};
use coracle::sandbox::{Interrupt, MicroVm, NotRun, Overrides, ProcessSpec, Shape};

use super::boot::memory_mib;
use super::pull_progress::{ProgressKind, PullProgress};
use super::registry_access::AccessArgs;
use super::{error, store};

const EXAMPLES: &str = "\
Examples:
  coracle run --rm busybox echo hello
  echo data | coracle run --rm -i busybox sha256sum
  coracle run --rm -e NAME=value -w /srv -u 1000 --memory 256M app
  coracle run --rm oci:layout:latest

Exit status: the program's own; 128 and the signal's number where one killed it; 127 if it is not in the image; 126 if
it cannot be executed; 125 if Coracle failed.";

/// Run a program from an image in a microVM of its own.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// Remove the container when it has ended (so far each is)
    #[arg(long)]
    rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Set a variable: NAME=VALUE, or NAME to pass on one's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who to run as: USER[:GROUP], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Program to run instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Name of the machine
    #[arg(long, value_name = "NAME", default_value = "container")]
    hostname: String,
    /// Number of vCPUs, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory of the microVM, in MiB or with a unit (K, M, G)
    #[arg(short, long, value_name = "SIZE", default_value = "128M", value_parser = memory_mib)]
    memory: u64,
    /// When to ask the registry for the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// The image for this platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// How to show what a pull does
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    progress: ProgressKind,
    #[command(flatten)]
    access: AccessArgs,
    /// The image: a name, an ID, or oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME]
    image: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs it, and gives its exit status.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot run image {}", args.image);
    let store = store::open(&what)?;
    // Nobody removes the image between here and where the VMM has its disk open.
    let held = store.hold_content().map_err(store::explain(&what))?;
    let platform = args.platform.clone().unwrap_or_else(Platform::native);
    let progress = PullProgress::new(args.progress);
    let image =
        store.obtain(&args.image, args.pull, &PullOptions { platform, access: args.access.access() }, &progress);
    progress.finish();
    let image = image.map_err(Failure::from)?;
    let rootfs = store.rootfs(&image).map_err(Failure::from)?;
    let overrides = Overrides {
        command: args.command.clone(),
        entrypoint: args.entrypoint.clone(),
        environment: args.env.clone(),
        directory: args.workdir.clone(),
        user: args.user.clone(),
    };
    let spec = ProcessSpec::new(&image.config, &overrides, &args.hostname)?;
    let interrupt = Interrupt::new().context("cannot catch signals")?;
    let vm = MicroVm::boot(&rootfs, Shape { cpus: args.cpus, memory_mib: args.memory }, &interrupt);
    drop(held);
    let outcome = vm.map_err(NotRun::from).and_then(|vm| vm.run(&spec, args.interactive, &interrupt));
    match outcome {
        Ok(ended) => Ok(ExitCode::from(ended.status())),
        // Whoever sent it knows what became of the container.
        Err(_) if interrupt.signal().is_some() => Ok(ExitCode::from(128 + interrupt.signal().unwrap_or(0))),
        Err(not_run) => {
            error::report(&not_run.failure.into());
            Ok(ExitCode::from(not_run.status))
        }
    }
}
