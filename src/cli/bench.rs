// SPDX-License-Identifier: Apache-2.0
//! `coracle bench`: what a microVM costs against a container, on this host and with the user's own image.

mod density;
mod io;
mod isolation;
mod reports;
mod table;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use coracle::bench::backend::{Choice, Kind};
use coracle::bench::comparison::Earlier;
use coracle::bench::startup::{self, Plan};
use coracle::bench::{html, schedule};
use coracle::failure::Failure;
use coracle::sandbox::{Overrides, ProcessSpec};

use self::reports::ResultArgs;
use super::registry_access::AccessArgs;
use super::store;

/// What is run where the user names nothing: a program that most images have, and that writes one line.
const DEFAULT_PROGRAM: &str = "echo";
const DEFAULT_WORD: &str = "ready";
/// Most starts at once.
const MOST_AT_ONCE: i64 = 256;

const EXAMPLES: &str = "\
Examples:
  coracle bench startup busybox
  coracle bench startup -n 30 --report startup debian bash -c 'echo hello'
  coracle bench startup --backends vm,podman --format json oci:layout
  coracle bench startup --concurrency 1,2,4,8 --report startup busybox
  coracle bench startup --network default busybox
  coracle bench startup --backends vm,crun=/opt/crun/bin/crun busybox
  coracle bench startup --http 80 nginx
  coracle bench startup --baseline startup/result.json busybox

Timed from just before the launcher is spawned to the first byte on its standard output, and to its end. The command
must end by itself with status 0. Backends that are not installed, or do not work here, are left out, and the report
says why. container, crun and runc need root's rights, to mount the image. Ctrl-C keeps what has been measured.

Exit status: 0 where something was measured; 125 where nothing was; 130 after Ctrl-C.";

#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Time starts of the same command from the same image.
    Startup(Box<StartupArgs>),
    /// Look for what of the host a tenant can find, reach and disturb.
    Isolation(isolation::IsolationArgs),
    /// Start containers until a limit is reached, and show what each takes.
    Density(Box<density::DensityArgs>),
    /// Measure files, network and servers in a microVM and in containers.
    Io(Box<io::IoArgs>),
}

/// The network of what is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Network {
    /// None
    #[default]
    None,
    /// What each has where nothing is said of it: an address of a bridge
    Default,
}

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct StartupArgs {
    /// The image; then all words that follow are the command
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// What to compare [default: all]: vm, vm-cold, container, crun, runc, podman, microsandbox, vmm, qemu-microvm; with
    /// `=PROGRAM` behind it, another program than that of $PATH
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    backends: Vec<Choice>,
    /// Runs of each that count
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Runs of each before them that do not
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: u16,
    /// So many starts at once as well, such as 1,2,4,8: for the rate of starts
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=MOST_AT_ONCE))]
    concurrency: Vec<u16>,
    /// The command is a server on this port: wait for its first answer with status 200, and end it then
    #[arg(long, value_name = "PORT", conflicts_with = "concurrency", value_parser = clap::value_parser!(u16).range(1..))]
    http: Option<u16>,
    /// Network of what can have one, which crun and runc cannot
    #[arg(long, value_enum, default_value_t, conflicts_with = "http")]
    network: Network,
    /// Compare with an earlier result, as `--format json` or `--report` wrote it
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Have the host forget what it has read of files before each run; for root
    #[arg(long)]
    cold: bool,
    /// Take times alone: neither look at memory, nor count system calls, exits and instructions
    #[arg(long)]
    only_times: bool,
    /// Look at what the benchmark's own probes add, as well: the same runs with each of them and without
    #[arg(long, conflicts_with = "http")]
    probes: bool,
    /// Draw the order of runs from this number, as an earlier result names it
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    #[command(flatten)]
    result: ResultArgs,
    #[command(flatten)]
    access: AccessArgs,
    /// The image, and the command instead of `echo ready`
    #[arg(
        value_name = "IMAGE [COMMAND]",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "image"
    )]
    words: Vec<String>,
}

/// Measures, and prints what was found.
///
/// # Errors
/// Nothing could be measured, or the report cannot be written.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match &args.what {
        What::Startup(args) => startup(args),
        What::Isolation(args) => isolation::run(args),
        What::Density(args) => density::run(args),
        What::Io(args) => io::run(args),
    }
}

fn startup(args: &StartupArgs) -> anyhow::Result<ExitCode> {
    let (name, command) = split(args);
    let what = format!("cannot measure how image {name} starts");
    args.result.prepare()?;
    let earlier = args.baseline.as_deref().map(|path| earlier(path, &what)).transpose()?;
    if args.cold && !rustix::process::geteuid().is_root() {
        let why = "only root can have the host forget what it has read";
        return Err(Failure::new(what, why, "as root, or without --cold").into());
    }
    let store = store::open(&what)?;
    let _held = store.hold_content().map_err(store::explain(&what))?;
    let image = args.result.obtain(&store, name, &args.access)?;
    let (entrypoint, words) = match command {
        // A server is what the image says.
        [] if args.http.is_some() => (None, Vec::new()),
        [] => (Some(DEFAULT_PROGRAM.to_owned()), vec![DEFAULT_WORD.to_owned()]),
        words => (None, words.to_vec()),
    };
    let overrides = Overrides { command: words.clone(), entrypoint: entrypoint.clone(), ..Overrides::default() };
    let process = ProcessSpec::new(&image.config, &overrides, "bench")?;
    let mut backends = args.backends.clone();
    if backends.is_empty() {
        backends = Kind::ALL.map(Choice::from).into();
    }
    backends.sort_by_key(|choice| Kind::ALL.iter().position(|other| *other == choice.kind));
    backends.dedup();
    if let Some((one, _)) = backends.iter().zip(backends.iter().skip(1)).find(|(one, other)| one.kind == other.kind) {
        let why = format!("{} is named with two programs, and a report has one of each kind", one.kind);
        return Err(Failure::new(what, why, "one after the other, the second with --baseline").into());
    }
    let plan = Plan {
        name: name.to_owned(),
        image,
        entrypoint,
        words,
        process,
        backends,
        runs: args.runs.into(),
        warm_up: args.warm_up.into(),
        seed: args.seed.map_or_else(schedule::any_seed, Ok)?,
        coracle: env::current_exe()?,
        concurrency: args.concurrency.iter().map(|&at_once| at_once.into()).collect(),
        cold_caches: args.cold,
        only_times: args.only_times,
        probes: args.probes,
        // A server is reached by it.
        networked: args.http.is_some() || args.network == Network::Default,
        http: args.http,
        earlier,
    };
    let report = startup::run(&plan, &store, &mut args.result.tell())?;
    args.result.publish(
        &report,
        report.interrupted,
        ("runs.csv", report.csv()),
        || html::page(&report),
        |mut out| table::write(&report, &mut out),
    )
}

/// An earlier result.
fn earlier(path: &std::path::Path, what: &str) -> Result<Earlier, Failure> {
    let file = || format!("cannot compare with {}", path.display());
    let next = "a result.json that `bench startup --report DIR` wrote";
    let text = std::fs::read(path).map_err(|error| Failure::new(what, format!("{}: {error}", file()), next))?;
    Earlier::read(&text).map_err(|error| Failure::new(what, format!("{}: {error}", file()), next))
}

/// The image and the command.
fn split(args: &StartupArgs) -> (&str, &[String]) {
    match (&args.image, &args.words[..]) {
        (Some(image), words) => (image, words),
        (None, [image, words @ ..]) => (image, words),
        // clap asks for one of the two.
        (None, []) => ("", &[]),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        args: StartupArgs,
    }

    fn parse(words: &[&str]) -> Result<StartupArgs, clap::Error> {
        Words::try_parse_from([&["x"], words].concat()).map(|words| words.args)
    }

    #[test]
    fn the_image_is_the_first_word_or_a_flag() {
        let args = parse(&["-n", "3", "busybox", "sh", "-c", "echo"]).unwrap();
        assert_eq!((split(&args).0, split(&args).1.join(" ")), ("busybox", "sh -c echo".to_owned()));
        let args = parse(&["--image", "busybox", "sh", "-n"]).unwrap();
        assert_eq!((split(&args).0, split(&args).1.join(" ")), ("busybox", "sh -n".to_owned()));
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            &[][..],
            &["-n", "0", "i"],
            &["-n", "-1", "i"],
            &["--backends", "vm,docker", "i"],
            &["--backends", "vm=/bin/coracle", "i"],
            &["--format", "xml", "i"],
            &["--concurrency", "0", "i"],
            &["--network", "bridge", "i"],
            &["--network", "none", "--http", "80", "i"],
            &["--concurrency", "1,x", "i"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
        let choices = parse(&["--backends", "crun=/opt/crun,vm", "i"]).unwrap().backends;
        assert_eq!(choices, [Choice { kind: Kind::Crun, program: "/opt/crun".to_owned() }, Kind::Vm.into()]);
    }
}
