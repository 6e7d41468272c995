// SPDX-License-Identifier: Apache-2.0
//! Snapshots of microVMs without a container: two files in a directory.

use std::path::Path;

use coracle::failure::Failure;
use coracle::vmm::control::{Client, Request};
use coracle::vmm::snapshot::{self, NewSnapshot, Scope, Taken};
use serde_json::{Value, json};

/// The directory appears when the snapshot is whole, and on disk.
///
/// # Errors
/// There is something of that name, no room, or no microVM.
pub fn create(control: &Path, directory: &Path, memory: Scope, stop: bool) -> Result<(), Failure> {
    let what = || format!("cannot take snapshot {}", directory.display());
    let refused = |why: &dyn std::fmt::Display, advice: &str| Failure::new(what(), why, advice);
    if directory.exists() {
        return Err(refused(&"it exists already", "another name, or remove it"));
    }
    let no_room =
        |error: std::io::Error| refused(&error, "a directory that you may write to, with room for the guest's memory");
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = NewSnapshot::begin(parent).map_err(no_room)?;

    let socket = "the socket that was given to `coracle boot --control`";
    let mut vmm = Client::connect(control).map_err(|error| refused(&error, socket))?;
    if stop {
        vmm.ask(&Request::Pause).map_err(|why| refused(&why, "`coracle boot` anew"))?;
    }
    let taken = vmm
        .ask_with(&Request::Snapshot { memory }, new.files())
        .and_then(|taken| serde_json::from_value::<Taken>(taken).map_err(|error| error.to_string()))
        .and_then(|taken| new.sync().map(|()| taken).map_err(|error| error.to_string()))
        .and_then(|taken| snapshot::check_base(new.path()).map(|()| taken).map_err(|error| error.to_string()));
    if stop {
        // Only now, so that a guest whose snapshot failed goes on. One that ends may not answer any more.
        let _ = vmm.ask(if taken.is_ok() { &Request::Stop } else { &Request::Resume });
    }
    let taken = taken.map_err(|why| {
        refused(&why, "room on that file system, and a microVM that runs; --diff needs what it was started from")
    })?;
    new.publish(directory).map_err(no_room)?;
    let Taken { state_bytes, memory_bytes, took_us } = taken;
    let milliseconds = took_us / 1000;
    eprintln!("coracle: {} MiB of memory and {state_bytes} bytes of state in {milliseconds} ms", memory_bytes >> 20);
    Ok(())
}

/// What a snapshot is of.
///
/// # Errors
/// It is none, or damaged.
pub fn inspect(directory: &Path) -> Result<Value, Failure> {
    let path = snapshot::state_file(directory);
    let state = snapshot::read(&path).map_err(|error| error.about(&path))?;
    Ok(json!({
        "Version": state.software,
        "TakenAt": state.taken_at,
        "Host": state.host.to_string(),
        "Config": state.config,
        "CommandLine": state.command_line,
        "MemoryBytes": state.memory.size,
        "DataBytes": state.memory.data,
        "Base": state.base.as_ref().map(|base| &base.whole.path),
        "Devices": state.devices.len(),
    }))
}
