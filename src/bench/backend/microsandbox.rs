// SPDX-License-Identifier: Apache-2.0
//! microsandbox's `msb run`: another that boots a microVM for each container, with its own kernel (libkrun).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{XattrFlags, setxattr};

use super::super::measure::Until;
use super::{Backend, Choice, Run, Workload, Workspace};
use crate::sandbox::container::rootfs;

/// The image's name there.
const IMAGE: &str = "coracle-bench:1";
/// Bytes that its storage may grow to.
const STORAGE: u64 = 4 << 30;

/// The one way to run it.
pub fn candidates(choice: &Choice, workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let version = choice.version()?;
    let storage = storage(workspace).map_err(|error| format!("there is no storage for it: {error}"))?;
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    // It has no flag for its storage. env(1) is replaced by it: a ms at most.
    let home = format!("MSB_HOME={}", storage.display());
    let globals = words(&["env", &home, &choice.program]);
    load(&globals, &workload.archive)?;
    let mut command = [globals, words(&["run", "--quiet", "--no-tty", "--no-stdin", "--pull", "never"])].concat();
    command.extend((!workload.networked).then(|| "--no-net".to_owned()));
    command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
    command.push(IMAGE.to_owned());
    if !workload.words.is_empty() {
        command.push("--".to_owned());
        command.extend(workload.words.iter().cloned());
    }
    let notes = words(&[
        "its guest has the kernel, the memory and the CPUs that it gives by default",
        "its storage lies in memory where the host lets it, which is in its favour",
    ]);
    let run = Run::Program { root: None, until: Until::Exit };
    Ok(vec![Backend { choice: choice.clone(), command, version, notes, beside: Vec::new(), way: 0, run }])
}

/// A directory with extended attributes of users, which it asks for. Not all of tmpfs have them: Linux does since 6.6.
fn storage(workspace: &Workspace) -> io::Result<PathBuf> {
    let storage = workspace.path().join("microsandbox");
    if storage.exists() {
        return Ok(storage);
    }
    workspace.make("microsandbox")?;
    if setxattr(&storage, "user.coracle", b"", XattrFlags::empty()).is_ok() {
        return Ok(storage);
    }
    let made = workspace.can_mount().map_err(io::Error::other).and_then(|()| {
        let disk = workspace.path().join("microsandbox.ext4");
        File::create(&disk)?.set_len(STORAGE)?;
        let output = Command::new("mkfs.ext4").arg("-q").arg(&disk).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        rootfs::mount_written(&disk, &storage)
    });
    if made.is_err() {
        // So that it is tried again, and fails, the next time as well.
        let _ = fs::remove_dir(&storage);
    }
    made.map(|()| storage)
}

/// Brings it the image.
fn load(globals: &[String], archive: &Path) -> Result<(), String> {
    let mut load = Command::new(&globals[0]);
    load.args(&globals[1..]).args(["load", "--quiet", "--tag", IMAGE, "--input"]).arg(archive);
    let output = load.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or_else(|| format!("it cannot take the image: {said}"))
}
