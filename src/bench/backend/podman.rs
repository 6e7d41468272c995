// SPDX-License-Identifier: Apache-2.0
//! `podman run`, with storage of its own in the workspace: the user's is left alone.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Resource, getrlimit};

use super::super::measure::Until;
use super::{Backend, Choice, Run, Workload, Workspace};

/// What podman needs on a host without systemd.
const WITHOUT_SYSTEMD: ([&str; 2], &str) =
    (["--cgroup-manager=cgroupfs", "--events-backend=file"], "--log-driver=k8s-file");
/// Processes that a container may have where podman may not give it as many as it wants to.
const PROCESSES: u64 = 1000;

/// In podman's default network, as it makes it where nobody has made another (containers.conf(5), `default_subnet`).
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 88, 255, 250);

/// A way to run it: words before `run`, words behind it, and what is to be said of it.
pub type Way = (Vec<String>, Vec<String>, &'static str);

/// As it is; where that fails, without systemd; where that fails, without control groups and with the limits that this
/// process has.
pub fn ways() -> [Way; 3] {
    let (globals, log) = WITHOUT_SYSTEMD;
    let globals = globals.map(str::to_owned).to_vec();
    let own = |resource| getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let (files, processes) = (own(Resource::Nofile), own(Resource::Nproc).min(PROCESSES));
    let bare = [
        log.to_owned(),
        "--cgroups=disabled".to_owned(),
        format!("--ulimit=nofile={files}:{files}"),
        format!("--ulimit=nproc={processes}:{processes}"),
    ];
    [
        (Vec::new(), Vec::new(), ""),
        (globals.clone(), vec![log.to_owned()], "without systemd"),
        (globals, bare.into(), "without control groups and with lower limits, as this host lets it have no others"),
    ]
}

/// Gives it storage in the workspace, and the image: the program and its words before a verb, its version, and the id
/// that the image has there.
pub fn prepared(
    choice: &Choice,
    archive: &Path,
    workspace: &Workspace,
) -> Result<(Vec<String>, String, String), String> {
    let version = choice.version()?;
    let storage = workspace.path().join("podman");
    let mut globals = vec![choice.program.clone()];
    for (flag, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
        globals.extend([flag.to_owned(), storage.join(name).display().to_string()]);
    }
    let image = load(&globals, archive)?;
    Ok((globals, version, image))
}

/// The ways to run it.
pub fn candidates(choice: &Choice, workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let (globals, version, image) = prepared(choice, &workload.archive, workspace)?;
    let candidate = |(more, flags, note): Way| {
        let mut command = globals.clone();
        command.extend(more);
        command.extend(["run", "--rm", "--pull=never"].map(str::to_owned));
        let mut until = Until::Exit;
        let network = if workload.networked { "podman" } else { "none" };
        command.extend(["--network", network].map(str::to_owned));
        if let Some(port) = workload.http {
            command.extend(["--ip".to_owned(), ADDRESS.to_string()]);
            until = Until::Http((ADDRESS, port).into());
        }
        command.extend(flags);
        command.extend(workload.entrypoint.iter().flat_map(|program| ["--entrypoint".to_owned(), program.clone()]));
        command.push(image.clone());
        command.extend(workload.words.iter().cloned());
        let mut notes = vec!["it alone has a seccomp filter, which is its default".to_owned()];
        notes.extend((!note.is_empty()).then(|| note.to_owned()));
        let run = Run::Program { root: None, until };
        Backend { choice: choice.clone(), command, version: version.clone(), notes, beside: Vec::new(), way: 0, run }
    };
    Ok(ways().into_iter().map(candidate).collect())
}

/// Brings it the image; gives the id that it has there.
fn load(globals: &[String], archive: &Path) -> Result<String, String> {
    let mut pull = Command::new(&globals[0]);
    pull.args(&globals[1..]).args(["pull", "-q"]).arg(format!("oci-archive:{}", archive.display()));
    let output = pull.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match (output.status.success(), said(&output.stdout).lines().last()) {
        (true, Some(id)) => Ok(id.to_owned()),
        _ => Err(format!("it cannot take the image: {}", said(&output.stderr).lines().last().unwrap_or(""))),
    }
}
