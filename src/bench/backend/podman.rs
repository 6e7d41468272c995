// SPDX-License-Identifier: Apache-2.0
//! `podman run`, with storage of its own in the workspace: the user's is left alone.

use std::process::{Command, Stdio};

use super::super::machine::version;
use super::super::measure::Until;
use super::{Backend, Kind, Run, Workload, Workspace};

/// As it is; where that fails, without systemd; where that fails, without control groups.
const WAYS: [(&[&str], &[&str], &str); 3] = [
    (&[], &[], ""),
    (&["--cgroup-manager=cgroupfs", "--events-backend=file"], &["--log-driver=k8s-file"], "without systemd"),
    (
        &["--cgroup-manager=cgroupfs", "--events-backend=file"],
        &["--log-driver=k8s-file", "--cgroups=disabled"],
        "without control groups, which do not work for it here",
    ),
];

/// The ways to run it.
pub fn candidates(workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let version = version("podman").ok_or("it is not installed: apt-get install podman")?;
    let storage = workspace.path().join("podman");
    let mut globals = vec!["podman".to_owned()];
    for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        globals.extend([flag.to_owned(), storage.join(name).display().to_string()]);
    }
    let image = load(&globals, workload)?;
    let candidate = |(more, flags, note): (&[&str], &[&str], &str)| {
        let mut command = globals.clone();
        command.extend(more.iter().map(|word| (*word).to_owned()));
        command.extend(["run", "--rm", "--network", "none", "--pull=never"].map(str::to_owned));
        command.extend(flags.iter().map(|word| (*word).to_owned()));
        command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
        command.push(image.clone());
        command.extend(workload.words.iter().cloned());
        let mut notes = vec!["it alone has a seccomp filter, which is its default".to_owned()];
        notes.extend((!note.is_empty()).then(|| note.to_owned()));
        let run = Run::Program { root: None, until: Until::Exit };
        Backend { kind: Kind::Podman, command, version: version.clone(), notes, run }
    };
    Ok(WAYS.into_iter().map(candidate).collect())
}

/// Brings it the image; gives the id that it has there.
fn load(globals: &[String], workload: &Workload) -> Result<String, String> {
    let mut pull = Command::new("podman");
    pull.args(&globals[1..]).args(["pull", "-q"]).arg(format!("oci-archive:{}", workload.archive.display()));
    let output = pull.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match (output.status.success(), said(&output.stdout).lines().last()) {
        (true, Some(id)) => Ok(id.to_owned()),
        _ => Err(format!("it cannot take the image: {}", said(&output.stderr).lines().last().unwrap_or(""))),
    }
}
