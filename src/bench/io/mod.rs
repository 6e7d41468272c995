// SPDX-License-Identifier: Apache-2.0
//! What files, the network and a server give in a microVM, and in a container: fio, iperf3 and redis-benchmark, in
//! sandboxes that are there for as long as the benchmark goes on.

pub mod page;
mod program;
pub mod report;
mod sandbox;
pub mod workload;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use self::program::ask;
use self::report::{Backend, Cell, Report, Row, Run, SCHEMA, Sample, VERSION};
use self::sandbox::{Ground, Needs, Sandbox};
use self::workload::{Extent, Place, Tool, Workload};
use super::backend::{Failed, Kind, Workspace};
use super::interrupt::Interrupt;
use super::machine::{self, Machine};
use super::schedule::turns;
use crate::failure::Failure;
use crate::image::{Image, Store};

/// How long a run may take besides its own time: a guest that is interpreted takes most of a minute to load fio, and lays
/// out its file before.
const PATIENCE: Duration = Duration::from_secs(900);

/// How often iperf3 is started for one run.
const ATTEMPTS: u32 = 20;
/// And after which time.
const BETWEEN: Duration = Duration::from_secs(1);

/// What can be compared: what goes on, and has a network.
pub const KINDS: [Kind; 3] = [Kind::Vm, Kind::Container, Kind::Podman];

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image as the user named it.
    pub name: String,
    /// The image.
    pub image: Image,
    /// Which backends, of [`KINDS`].
    pub backends: Vec<Kind>,
    /// The one that ratios are to.
    pub baseline: Kind,
    /// Which workloads.
    pub workloads: Vec<Workload>,
    /// Runs of each that count; at least 1.
    pub runs: usize,
    /// Rounds before.
    pub warm_up: usize,
    /// How long a run is, and how large a file.
    pub extent: Extent,
    /// Bytes of memory of each sandbox.
    pub memory: u64,
    /// Decides the order.
    pub seed: u64,
    /// Our own program.
    pub coracle: PathBuf,
    /// A directory on the disk that containers are on.
    pub data: PathBuf,
}

/// Measures it. `tell` hears what is being done. Whoever calls holds the image in the store.
///
/// # Errors
/// Nothing can be measured at all. What only some backends or workloads lack is in the report.
pub fn run(plan: &Plan, store: &Store, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
    let failed = |error| Failure::new("cannot measure", error, "free memory, descriptors and space in $TMPDIR");
    let mut interrupt = Interrupt::new().map_err(failed)?;
    let mut host = Machine::look();
    let workspace = Workspace::new().map_err(failed)?;
    let volumes = TempDir::with_prefix_in("bench-io-", &plan.data).map_err(failed)?;
    let archive = workspace.path().join("image.tar");
    if plan.backends.contains(&Kind::Podman) {
        store.export(&[(plan.image.clone(), Vec::new())], File::create(&archive).map_err(failed)?)?;
    }
    let mut backends: Vec<Backend> = plan.backends.iter().copied().map(Backend::of).collect();
    let mut sandboxes = Vec::new();
    let mut interrupted =
        start(plan, &archive, volumes.path(), &workspace, &mut interrupt, &mut backends, &mut sandboxes, tell);
    let mut workloads: Vec<Row> = plan.workloads.iter().map(Row::of).collect();
    for (row, workload) in workloads.iter_mut().zip(&plan.workloads) {
        let missing = missing(workload);
        row.cells = sandboxes
            .iter()
            .map(|sandbox: &Sandbox| Cell {
                backend: sandbox.kind.name(),
                failed: missing.clone().or_else(|| lacks(workload, sandbox)).unwrap_or_default(),
                ..Cell::default()
            })
            .collect();
    }
    interrupted = interrupted || measure(plan, &sandboxes, &mut workloads, &mut interrupt, tell);
    host.look_again();
    tell("removing what was started");
    drop(sandboxes);
    let cells = || workloads.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)));
    if !cells().any(|(_, cell)| cell.samples.iter().any(|run| !run.warm_up)) {
        let reasons = backends.iter().filter(|one| !one.failed.is_empty()).map(|one| (one.name, &one.failed));
        let mut reasons: Vec<String> = reasons.map(|(name, why)| format!("{name}: {why}")).collect();
        reasons.extend(
            cells()
                .filter(|(_, cell)| !cell.failed.is_empty())
                .map(|(row, cell)| format!("{} in {}: {}", row.name, cell.backend, cell.failed)),
        );
        return Err(nothing(plan, &reasons, interrupted));
    }
    let mut report = Report {
        schema: SCHEMA,
        version: VERSION,
        started: machine::now(),
        coracle: env!("CARGO_PKG_VERSION"),
        complete: false,
        interrupted,
        image: plan.name.clone(),
        image_id: plan.image.id.to_string(),
        runs: plan.runs,
        warm_up: plan.warm_up,
        seconds: plan.extent.seconds,
        size: plan.extent.size,
        direct: plan.extent.direct,
        memory: plan.memory,
        seed: plan.seed,
        host,
        baseline: plan.baseline.name(),
        backends,
        workloads,
        notes: Vec::new(),
    };
    report.evaluate();
    Ok(report)
}

/// Starts one of each; whether the user wanted no more of it.
#[allow(clippy::too_many_arguments, reason = "all of it is needed, by this alone")]
fn start(
    plan: &Plan,
    archive: &Path,
    volumes: &Path,
    workspace: &Workspace,
    interrupt: &mut Interrupt,
    backends: &mut [Backend],
    sandboxes: &mut Vec<Sandbox>,
    tell: &mut dyn FnMut(&str),
) -> bool {
    let has = |wanted: fn(Tool) -> bool| plan.workloads.iter().any(|one| wanted(one.tool) && missing(one).is_none());
    let ground = Ground {
        image: &plan.image.id.hex(),
        archive,
        coracle: &plan.coracle,
        volumes,
        memory: plan.memory,
        needs: Needs {
            volume: has(|tool| matches!(tool, Tool::Fio(Place::Volume, ..))),
            iperf: has(|tool| matches!(tool, Tool::Iperf { .. })),
            redis: has(|tool| matches!(tool, Tool::Redis(_))),
        },
    };
    for (at, &kind) in plan.backends.iter().enumerate() {
        tell(&format!("{kind}: starting it"));
        match Sandbox::start(kind, &ground, workspace, interrupt) {
            Ok(sandbox) => {
                backends[at].command.clone_from(&sandbox.command);
                backends[at].version.clone_from(&sandbox.version);
                backends[at].notes.clone_from(&sandbox.notes);
                sandboxes.push(sandbox);
            }
            Err(Failed::Interrupted) => return true,
            Err(Failed::Because(why)) => {
                tell(&format!("{kind}: skipped: {why}"));
                backends[at].failed = why;
            }
        }
    }
    false
}

/// All turns; whether the user wanted no more of them.
fn measure(
    plan: &Plan,
    sandboxes: &[Sandbox],
    workloads: &mut [Row],
    interrupt: &mut Interrupt,
    tell: &mut dyn FnMut(&str),
) -> bool {
    let all = plan.workloads.len() * sandboxes.len();
    for turn in turns(all, plan.warm_up, plan.runs, false, plan.seed) {
        let (sandbox, workload) = (&sandboxes[turn.backend % sandboxes.len()], turn.backend / sandboxes.len());
        let tool = plan.workloads[workload].tool;
        let cell = &mut workloads[workload].cells[turn.backend % sandboxes.len()];
        if !cell.failed.is_empty() {
            continue;
        }
        let kind = if turn.warm_up { "warm-up " } else { "" };
        let (round, rounds) = (turn.round + 1, plan.warm_up + plan.runs);
        tell(&format!("{kind}round {round} of {rounds}: {} in {}", plan.workloads[workload].name, sandbox.kind));
        let before = cell.samples.last().map(|run| run.sample);
        let words = match words(tool, sandbox, plan.extent, before.as_ref()) {
            Ok(words) => words,
            Err(why) => {
                cell.failed = why;
                continue;
            }
        };
        match measured(tool, &words, plan.extent.seconds, interrupt) {
            Ok(sample) => cell.samples.push(Run::of(turn.round, turn.warm_up, sample)),
            Err(Failed::Interrupted) => return true,
            Err(Failed::Because(why)) => cell.failed = why,
        }
        if !cell.failed.is_empty() {
            tell(&format!("{} in {}: no more of it: {}", plan.workloads[workload].name, sandbox.kind, cell.failed));
        }
        cell.command = words;
    }
    false
}

/// Runs it once; a server that is not done with the one before, as in a guest that is interpreted, is asked again.
fn measured(tool: Tool, words: &[String], seconds: u16, interrupt: &mut Interrupt) -> Result<Sample, Failed> {
    let limit = PATIENCE + 2 * Duration::from_secs(seconds.into());
    let mut attempt = 0;
    loop {
        attempt += 1;
        let why = match ask(words, limit, interrupt) {
            Ok(text) => match workload::parse(tool, &text) {
                Some(sample) => return Ok(sample),
                None => workload::error(&text).unwrap_or_else(|| "its result cannot be read".to_owned()),
            },
            Err(Failed::Because(why)) => why,
            Err(Failed::Interrupted) => return Err(Failed::Interrupted),
        };
        if attempt == ATTEMPTS || !matches!(tool, Tool::Iperf { .. }) {
            return Err(Failed::Because(why));
        }
        thread::sleep(BETWEEN);
    }
}

fn words(tool: Tool, sandbox: &Sandbox, extent: Extent, before: Option<&Sample>) -> Result<Vec<String>, String> {
    match tool {
        Tool::Fio(place, does, block) => Ok(sandbox.exec(&workload::fio(place, does, block, extent))),
        Tool::Iperf { to_host } => Ok(workload::iperf(sandbox.iperf.clone()?, to_host, extent.seconds)),
        Tool::Redis(command) => Ok(workload::redis(sandbox.redis.clone()?, command, extent.seconds, before)),
    }
}

/// What the host lacks for a workload.
fn missing(workload: &Workload) -> Option<String> {
    let (program, package) = workload.on_host()?;
    let is_there = machine::version(program).is_some();
    (!is_there).then(|| format!("{program} is not on the host: apt-get install {package}"))
}

/// What a sandbox lacks.
fn lacks(workload: &Workload, sandbox: &Sandbox) -> Option<String> {
    match workload.tool {
        Tool::Fio(Place::Layer, ..) => None,
        Tool::Fio(Place::Volume, ..) => sandbox.volume.clone().err().map(|why| format!("it has no volume: {why}")),
        Tool::Iperf { .. } => sandbox.iperf.clone().err(),
        Tool::Redis(_) => sandbox.redis.clone().err(),
    }
}

fn nothing(plan: &Plan, reasons: &[String], interrupted: bool) -> Failure {
    let what = format!("cannot measure with image {}", plan.name);
    if interrupted {
        return Failure::new(
            what,
            "it was interrupted before the first run that counts",
            "let it run longer, or --warm-up 0",
        );
    }
    let why = match reasons {
        [] => "nothing was to be measured".to_owned(),
        [first, rest @ ..] if !rest.is_empty() => format!("{first}, and {} more", rest.len()),
        [first, ..] => first.clone(),
    };
    let advice = "an image with fio, iperf3 and redis-server, as `scripts/test-images io` makes one; `coracle doctor`";
    Failure::new(what, why, advice)
}
