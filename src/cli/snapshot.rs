// SPDX-License-Identifier: Apache-2.0
//! `coracle snapshot`: containers, and microVMs, that stand still on the disk.

mod vm;

use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use coracle::failure::Failure;
use coracle::supervisor::wire::Request;
use coracle::supervisor::{Snapshot, Snapshots};
use coracle::vmm::snapshot::{self as vmm, MEMORY_FILE, STATE_FILE, Scope};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Format, containers, run, units};

const EXAMPLES: &str = "\
Examples:
  coracle run -d --name db redis
  coracle snapshot create db ready
  coracle run -d --from ready -p 6379
  coracle run --rm --from ready
  coracle snapshot create --diff CLONE later

A snapshot has all of the container's memory, its processes with all secrets that they hold, and what it has written. It
does not have volumes and paths of the host, with which a container cannot be in a snapshot, nor published ports, programs
that `exec` started, nor what it wrote to its log. Each container that is made from it has a name, an address, a clock and
random numbers of its own before its programs go on.

Of a microVM, without a container:
  coracle boot vmlinux --initrd i.cpio --vsock v.sock --control c.sock
  coracle snapshot create --stop c.sock ready
  coracle boot --restore ready --vsock v1.sock";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a snapshot of a running container, or of a microVM that was booted with --control.
    Create(CreateArgs),
    /// Start a container that goes on from a snapshot: `run --detach --from`.
    Restore(RestoreArgs),
    /// List snapshots of containers.
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Show what snapshots are of, as a JSON array.
    Inspect(InspectArgs),
    /// Remove snapshots of containers; containers that were made from them go on.
    Rm(RmArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The container; or a microVM's control socket
    #[arg(value_name = "CONTAINER|SOCKET")]
    of: String,
    /// Name of the snapshot, that of the container unless it is given; of a microVM the directory to be made
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// End the microVM afterwards, before its guest goes on
    #[arg(long)]
    stop: bool,
    /// Write only the memory that differs from the snapshot that it was started from, which is needed for as long as this
    /// one is
    #[arg(long)]
    diff: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The snapshot
    snapshot: String,
    /// Flags of `coracle run`, such as --name, --rm and -p
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAG")]
    flags: Vec<String>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// How to print them
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
    /// Print their names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Names of containers' snapshots, or directories of microVMs'
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Names of snapshots
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,
}

/// Does what the verb says.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Create(args) => create(args)?,
        Verb::Restore(args) => return restore(args),
        Verb::Ls(args) => list(args)?,
        Verb::Inspect(args) => {
            let all: Vec<_> = args.snapshots.iter().map(|name| inspect(name)).collect::<Result<_, _>>()?;
            writeln!(io::stdout(), "{:#}", Value::Array(all))?;
        }
        Verb::Rm(args) => {
            let snapshots = open("cannot remove snapshots")?;
            for name in &args.snapshots {
                snapshots.remove(name)?;
                writeln!(io::stdout(), "{name}")?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(what: &str) -> Result<Snapshots, Failure> {
    Snapshots::beside(&containers::open(what)?)
}

fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let is_socket = std::fs::metadata(&args.of).is_ok_and(|found| found.file_type().is_socket());
    let memory = if args.diff { Scope::Difference } else { Scope::Whole };
    // No container's name has a slash in it.
    if is_socket || args.of.contains('/') {
        let Some(directory) = &args.name else {
            let why = "a microVM has no name that its snapshot could have";
            return Err(Failure::new("cannot take a snapshot", why, "a directory to be made, after the socket").into());
        };
        return Ok(vm::create(args.of.as_ref(), directory.as_ref(), memory, args.stop)?);
    }
    let what = format!("cannot take a snapshot of container {}", args.of);
    if args.stop {
        return Err(Failure::new(what, "--stop is for microVMs", "the same without it, and `coracle stop` next").into());
    }
    let (container, connection) = containers::connect(&args.of, &what)?;
    let name = args.name.clone().unwrap_or_else(|| container.config.name.clone());
    connection.request(Request::Snapshot { name: name.clone(), memory }, &what)?;
    writeln!(io::stdout(), "{name}")?;
    Ok(())
}

/// For clap: the words of `run`.
#[derive(Debug, Parser)]
struct Run {
    #[command(flatten)]
    args: run::RunArgs,
}

fn restore(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let words = ["coracle run", "--detach", "--from", &args.snapshot];
    let words = words.into_iter().chain(args.flags.iter().map(String::as_str));
    run::run(&Run::try_parse_from(words).unwrap_or_else(|error| super::refuse(&error)).args)
}

fn list(args: &LsArgs) -> anyhow::Result<()> {
    let snapshots = open("cannot list snapshots")?;
    let (all, mut out) = (snapshots.all()?, io::stdout().lock());
    if args.quiet {
        all.iter().try_for_each(|one| writeln!(out, "{}", one.name))?;
        return Ok(());
    }
    if args.format == Format::Json {
        let all: Vec<_> = all.iter().map(|one| describe(&snapshots, one)).collect();
        writeln!(out, "{}", Value::Array(all))?;
        return Ok(());
    }
    let row = |one: &Snapshot| {
        let age = Timestamp::now().duration_since(one.created).as_secs();
        vec![
            one.name.clone(),
            one.config.name.clone(),
            one.config.image.name.clone(),
            units::ago(age),
            format!("{}MiB", one.config.shape.memory_mib),
            units::size(size(&snapshots, one)),
            one.base.as_ref().map_or_else(String::new, |base| base.snapshot.clone()),
        ]
    };
    let rows: Vec<_> = all.iter().map(row).collect();
    units::table(&mut out, &["SNAPSHOT", "CONTAINER", "IMAGE", "CREATED", "MEMORY", "SIZE", "BASE"], &rows)?;
    Ok(())
}

/// Bytes that it takes on the disk.
fn size(snapshots: &Snapshots, one: &Snapshot) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(snapshots.place(&one.name)).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.blocks() * 512).sum()
}

fn describe(snapshots: &Snapshots, one: &Snapshot) -> Value {
    let place = snapshots.place(&one.name);
    json!({
        "Name": one.name,
        "Id": one.id,
        "Created": one.created.to_string(),
        "Container": { "Id": one.config.id, "Name": one.config.name },
        "Image": { "Name": one.config.image.name, "Id": one.config.image.id },
        "Arguments": one.config.process.arguments,
        "Cpus": one.config.shape.cpus,
        "Memory": one.config.shape.memory_mib << 20,
        "Network": one.config.network.as_ref().map(|network| &network.name),
        "HasDisk": one.disk.is_some(),
        "Base": one.base.as_ref().map(|base| &base.snapshot),
        "Size": size(snapshots, one),
        "State": place.join(STATE_FILE),
        "MemoryFile": place.join(MEMORY_FILE),
    })
}

/// A directory is one if it is written as one.
fn inspect(name: &str) -> Result<Value, Failure> {
    if PathBuf::from(name).components().count() > 1 || std::path::Path::new(name).exists() {
        return vm::inspect(name.as_ref());
    }
    let what = format!("cannot inspect snapshot {name}");
    let snapshots = open(&what)?;
    let found = snapshots.find(name, &what)?;
    let path = vmm::state_file(&snapshots.place(name));
    let state = vmm::read(&path).map_err(|error| error.about(&path))?;
    let mut facts = describe(&snapshots, &found);
    if let Some(facts) = facts.as_object_mut() {
        facts.insert("Host".into(), state.host.to_string().into());
        facts.insert("DataBytes".into(), state.memory.data.into());
    }
    Ok(facts)
}
