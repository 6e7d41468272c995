// SPDX-License-Identifier: Apache-2.0
//! `coracle snapshot`: microVMs that stand still, in two files.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::vmm::control::{Reply, Request};
use coracle::vmm::snapshot::{self, NewSnapshot, Taken};
use serde_json::json;

const EXAMPLES: &str = "\
Examples:
  coracle boot vmlinux --initrd i.cpio --vsock v.sock --control c.sock
  coracle snapshot create --stop c.sock ready
  coracle boot --restore ready --vsock v1.sock";

/// Take snapshots of microVMs, and look at them. `coracle boot --restore` goes on from one.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take a snapshot of a microVM that was booted with --control.
    Create(CreateArgs),
    /// Show what a snapshot is of, as JSON.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The microVM's control socket.
    #[arg(value_name = "SOCKET")]
    control: PathBuf,
    /// Directory to be made, for the snapshot's two files.
    directory: PathBuf,
    /// End the microVM afterwards, before its guest goes on.
    #[arg(long)]
    stop: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// The snapshot's directory.
    directory: PathBuf,
}

/// Does what the verb says.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &SnapshotArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Create(args) => create(args)?,
        Verb::Inspect(args) => inspect(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory appears when the snapshot is whole, and on disk.
fn create(args: &CreateArgs) -> Result<(), Failure> {
    let what = || format!("cannot take snapshot {}", args.directory.display());
    let refused = |why: &dyn std::fmt::Display, advice: &str| Failure::new(what(), why, advice);
    if args.directory.exists() {
        return Err(refused(&"it exists already", "another name, or remove it"));
    }
    let no_room =
        |error: std::io::Error| refused(&error, "a directory that you may write to, with room for the guest's memory");
    let parent = args.directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = NewSnapshot::begin(parent).map_err(no_room)?;

    let gone = |error: std::io::Error| refused(&error, "the socket that was given to `coracle boot --control`");
    let vmm = UnixStream::connect(&args.control).map_err(gone)?;
    let mut replies = BufReader::new(&vmm);
    if args.stop {
        Request::Pause.send(&vmm).map_err(gone)?;
        answer(&mut replies).map_err(|why| refused(&why, "`coracle boot` anew"))?;
    }
    Request::Snapshot.send_with(&vmm, new.files()).map_err(gone)?;
    let taken = answer(&mut replies)
        .and_then(|taken| serde_json::from_value::<Taken>(taken).map_err(|error| error.to_string()))
        .and_then(|taken| new.sync().map(|()| taken).map_err(|error| error.to_string()));
    if args.stop {
        // Only now, so that a guest whose snapshot failed goes on.
        let end = if taken.is_ok() { Request::Stop } else { Request::Resume };
        end.send(&vmm).map_err(gone)?;
    }
    let taken = taken.map_err(|why| refused(&why, "room on that file system, and a microVM that runs"))?;
    new.publish(&args.directory).map_err(no_room)?;
    let Taken { state_bytes, memory_bytes, took_us } = taken;
    let milliseconds = took_us / 1000;
    eprintln!("coracle: {} MiB of memory and {state_bytes} bytes of state in {milliseconds} ms", memory_bytes >> 20);
    Ok(())
}

fn answer(replies: &mut impl BufRead) -> Result<serde_json::Value, String> {
    let mut line = String::new();
    replies.read_line(&mut line).map_err(|error| error.to_string())?;
    match serde_json::from_str(&line) {
        Ok(Reply::Ok(value)) => Ok(value),
        Ok(Reply::Error(why)) => Err(why),
        Err(_) => Err("the VMM gave no answer".to_owned()),
    }
}

fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let path = snapshot::state_file(&args.directory);
    let state = snapshot::read(&path).map_err(|error| error.about(&path))?;
    let facts = json!([{
        "Version": state.software,
        "TakenAt": state.taken_at,
        "Host": state.host.to_string(),
        "Config": state.config,
        "CommandLine": state.command_line,
        "MemoryBytes": state.memory.size,
        "DataBytes": state.memory.data,
        "Devices": state.devices.len(),
    }]);
    println!("{facts:#}");
    Ok(())
}
