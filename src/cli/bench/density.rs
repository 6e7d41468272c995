// SPDX-License-Identifier: Apache-2.0
//! `coracle bench density`: how many containers fit on this host.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::bench::density::report::{HEAD, Report};
use coracle::bench::density::{self, Plan};
use coracle::supervisor::Containers;

use super::super::create::{bytes, memory};
use super::super::registry_access::AccessArgs;
use super::super::{store, units};
use super::reports::ResultArgs;

const EXAMPLES: &str = "\
Examples:
  coracle bench density busybox
  coracle bench density -n 1000 --memory-limit 8g --report density debian
  coracle bench density --network bridge --format json nginx nginx -g 'daemon off;'

Starts containers that do nothing until there are as many as -n says, or they take as much memory as --memory-limit says, or
the host has less left than --reserve says, or one cannot be started. PSS is the memory of all processes of a container,
with what several have divided among them; OVERHEAD is the part of it outside the guest's memory; HOST is what the host
has less, divided by their number. All are removed in the end, after Ctrl-C too.";

/// Start containers until a limit is reached, and show what each takes.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DensityArgs {
    /// No more containers than this
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    most: u16,
    /// Stop when they take so much of the host's memory together
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory_limit: Option<u64>,
    /// Stop when the host has less memory left than this
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = bytes)]
    reserve: u64,
    /// Memory of each microVM
    #[arg(short, long, value_name = "SIZE", default_value = "128m", value_parser = memory)]
    memory: u64,
    /// The network of each
    #[arg(long, value_name = "NETWORK", default_value = "none")]
    network: String,
    /// Started at the same time [default: one for each CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    at_once: Option<u8>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// The image
    image: String,
    /// What each runs instead of `sleep`, which has to go on until it is ended
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Measures, and prints what was found.
///
/// # Errors
/// Nothing could be measured, or the report cannot be written.
pub fn run(args: &DensityArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot measure how many containers of image {} fit", args.image);
    args.result.prepare()?;
    let store = store::open(&what)?;
    let _held = store.hold_content().map_err(store::explain(&what))?;
    args.result.obtain(&store, &args.image, &args.access)?;
    let command =
        if args.command.is_empty() { ["sleep", "1000000"].map(str::to_owned).to_vec() } else { args.command.clone() };
    let plan = Plan {
        image: args.image.clone(),
        command,
        flags: vec!["--network".into(), args.network.clone(), "--memory".into(), format!("{}m", args.memory)],
        most: args.most.into(),
        at_once: args.at_once.map_or_else(density::cpus, |number| Ok(number.into()))?,
        limit: args.memory_limit,
        reserve: args.reserve,
        coracle: env::current_exe()?,
    };
    let report = density::run(&plan, &Containers::open(store.root())?, &mut args.result.tell())?;
    let csv = ("runs.csv", report.csv());
    args.result.publish(&report, report.interrupted, csv, || report.page(), |out| table(&report, out))
}

fn table(report: &Report, mut out: &mut dyn Write) -> io::Result<()> {
    let host = &report.host;
    writeln!(out, "Image   {}, {}", report.image, report.command.join(" "))?;
    writeln!(out, "Host    {}", host.line())?;
    writeln!(
        out,
        "Load    {:.2} before, {:.2} after; {} started at once",
        host.load_before, host.load_after, report.at_once
    )?;
    writeln!(out, "Ended   {}\n", report.stopped)?;
    let rows: Vec<_> = report.steps.iter().map(|step| step.cells().to_vec()).collect();
    units::table(&mut out, &HEAD, &rows)
}
