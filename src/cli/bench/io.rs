// SPDX-License-Identifier: Apache-2.0
//! `coracle bench io`: what files, the network and a server give in a VM, and in a container.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::Style;
use clap::Args;
use coracle::bench::backend::Kind;
use coracle::bench::io::report::{HEAD, Report};
use coracle::bench::io::workload::{ALL, Extent, Workload};
use coracle::bench::io::{self as bench, KINDS, Plan, page};
use coracle::bench::schedule;
use coracle::failure::Failure;

use super::super::create::{bytes, memory};
use super::super::registry_access::AccessArgs;
use super::super::{store, units};
use super::reports::{ResultArgs, write_notes};
use super::table::bar;

const EXAMPLES: &str = "\
Examples:
  sudo coracle bench io oci:io
  sudo coracle bench io --only layer,redis-get -n 10 --report io oci:io
  sudo coracle bench io --backends vm,podman --baseline podman --format json oci:io

fio reads and writes a file on the root's writable layer and on a volume: from end to end in pieces of 128 KiB, and 4 KiB
anywhere. iperf3 sends through one TCP connection to the host and from it. redis-benchmark sets and gets through a
published port. The image has to have fio, iperf3 and redis-server, the host iperf3 and redis-benchmark; what is not there
is left out, and the report says so. One sandbox of each kind runs all the while; runs take turns. Ctrl-C keeps what has
been measured.

Exit status: 0 where something was measured; 125 where nothing was; 130 after Ctrl-C.";

/// Measure files, network and servers in a microVM and in containers.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct IoArgs {
    /// What to compare [default: all]: vm, container, podman
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = kind)]
    backends: Vec<Kind>,
    /// The backend that ratios are to
    #[arg(long, value_name = "BACKEND", default_value = "container", value_parser = kind)]
    baseline: Kind,
    /// Workloads, or groups of them (layer, volume, net, redis), instead of all; `--list` has their names
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = workload)]
    only: Vec<String>,
    /// List the workloads, and end
    #[arg(long)]
    list: bool,
    /// Runs of each that count
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Runs of each before them that do not
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u16,
    /// How long a run is
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: u16,
    /// Size of fio's file
    #[arg(long, value_name = "SIZE", default_value = "32m", value_parser = bytes)]
    size: u64,
    /// Open files with O_DIRECT, past the cache of the kernel that has them
    #[arg(long)]
    direct: bool,
    /// Memory of each sandbox, which has one CPU
    #[arg(short, long, value_name = "SIZE", default_value = "256m", value_parser = memory)]
    memory: u64,
    /// Draw the order of runs from this number, as an earlier result names it
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// The image
    #[arg(required_unless_present = "list", default_value = "", hide_default_value = true)]
    image: String,
}

fn kind(text: &str) -> Result<Kind, String> {
    let found = KINDS.into_iter().find(|kind| kind.name() == text);
    found.ok_or_else(|| format!("it is one of {}", KINDS.map(Kind::name).join(", ")))
}

fn workload(text: &str) -> Result<String, String> {
    match ALL.iter().any(|one| one.is_of(text)) {
        true => Ok(text.to_owned()),
        false => Err("there is no such workload: --list has them".to_owned()),
    }
}

/// Measures, and prints what was found.
///
/// # Errors
/// Nothing could be measured, or the report cannot be written.
pub fn run(args: &IoArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        let rows: Vec<_> = ALL.iter().map(|one| vec![one.name.to_owned(), one.what.to_owned()]).collect();
        units::table(&mut io::stdout().lock(), &["WORKLOAD", "WHAT"], &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("cannot measure with image {}", args.image);
    let mut backends = if args.backends.is_empty() { KINDS.to_vec() } else { args.backends.clone() };
    backends.sort_by_key(|kind| KINDS.iter().position(|other| other == kind));
    backends.dedup();
    if args.size < 1 << 20 || args.size >= args.memory << 20 {
        let why = format!("a file of {} bytes is not between a MiB and the memory of the sandboxes", args.size);
        return Err(Failure::new(what, why, "--size 32m --memory 256m").into());
    }
    args.result.prepare()?;
    let store = store::open(&what)?;
    let _held = store.hold_content().map_err(store::explain(&what))?;
    let image = args.result.obtain(&store, &args.image, &args.access)?;
    let chosen = |one: &&Workload| args.only.is_empty() || args.only.iter().any(|name| one.is_of(name));
    let plan = Plan {
        name: args.image.clone(),
        image,
        backends,
        baseline: args.baseline,
        workloads: ALL.iter().filter(chosen).copied().collect(),
        runs: args.runs.into(),
        warm_up: args.warm_up.into(),
        extent: Extent { seconds: args.seconds, size: args.size, direct: args.direct },
        memory: args.memory << 20,
        seed: args.seed.map_or_else(schedule::any_seed, Ok)?,
        coracle: env::current_exe()?,
        data: store.root().to_owned(),
    };
    let report = bench::run(&plan, &store, &mut args.result.tell())?;
    let csv = ("runs.csv", report.csv());
    args.result.publish(&report, report.interrupted, csv, || page::page(&report), |out| table(&report, out))
}

/// Styles are written always: the stream drops them where the terminal or `NO_COLOR` asks for that.
fn table(report: &Report, mut out: &mut dyn Write) -> io::Result<()> {
    let bold = Style::new().bold();
    writeln!(out, "{bold}Image{bold:#}    {}", report.image)?;
    writeln!(out, "{bold}Host{bold:#}     {}", report.host.line())?;
    writeln!(out, "{bold}Runs{bold:#}     {}; {}\n", report.frame(), report.state())?;
    let against = format!("TO {}", report.baseline.to_uppercase());
    let [head @ .., _] = HEAD;
    let head = [&head[..], &[&against, ""]].concat();
    let mut rows = Vec::new();
    for row in report.workloads.iter().filter(|row| row.has_figures()) {
        let rates = || row.cells.iter().filter_map(|cell| Some((cell, cell.summary.as_ref()?.median_ns)));
        let most = rates().map(|(_, rate)| rate).max().unwrap_or(1);
        rows.extend(rates().map(|(cell, rate)| [&cell.texts(row)[..], &[bar(rate, most)]].concat()));
    }
    units::table(&mut out, &head, &rows)?;
    writeln!(out)?;
    write_notes(&report.notes, out)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: IoArgs,
    }

    #[test]
    fn wrong_words_are_refused() {
        let parse = |words: &[&str]| Words::try_parse_from([&["x"], words].concat()).map(|words| words.args);
        for words in [
            &[][..],
            &["-n", "0", "i"],
            &["--seconds", "0", "i"],
            &["--backends", "vmm", "i"],
            &["--baseline", "docker", "i"],
            &["--only", "disk", "i"],
            &["--only", "", "i"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        let args = parse(&["--backends", "podman,vm", "--only", "layer,redis-get", "i"]).unwrap();
        assert_eq!((args.backends, args.only.len()), (vec![Kind::Podman, Kind::Vm], 2));
        assert!(parse(&["--list"]).is_ok());
    }
}
