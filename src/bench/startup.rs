// SPDX-License-Identifier: Apache-2.0
//! The benchmark of starts: makes backends ready, runs them in turns, and sums up what was seen.

use std::fs::File;
use std::path::PathBuf;

use super::backend::{Backend, Choice, Failed, Sample, Workload, Workspace};
use super::comparison::{Comparison, Earlier};
use super::counters::Tracepoints;
use super::machine::{self, Machine};
use super::measure::Stopwatch;
use super::probes::{self, Probes, WAYS};
use super::report::{Counted, Outcome, Rate, Report, Run, SCHEMA, VERSION, stages};
use super::schedule::turns;
use super::weight::SECONDS;
use crate::failure::Failure;
use crate::image::{Image, Store};
use crate::sandbox::{Overrides, ProcessSpec};

/// Runs of each that tell their stages.
const TRACED: usize = 5;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image as the user named it.
    pub name: String,
    /// The image.
    pub image: Image,
    /// Program instead of its entry point.
    pub entrypoint: Option<String>,
    /// Arguments behind its name.
    pub words: Vec<String>,
    /// What the two make of the image's configuration.
    pub process: ProcessSpec,
    /// Which backends.
    pub backends: Vec<Choice>,
    /// Runs of each that count; at least 1.
    pub runs: usize,
    /// Rounds before.
    pub warm_up: usize,
    /// Decides the order.
    pub seed: u64,
    /// Our own program.
    pub coracle: PathBuf,
    /// How many starts at once, besides one after the other.
    pub concurrency: Vec<usize>,
    /// Whether to drop the host's cache of files before each run.
    pub cold_caches: bool,
    /// Whether to take times alone, and neither weigh nor count.
    pub only_times: bool,
    /// Whether to look at what the benchmark's own probes add.
    pub probes: bool,
    /// Whether backends that can have a network have their default one; a server needs it.
    pub networked: bool,
    /// The port of a server that the command is: its first answer is waited for.
    pub http: Option<u16>,
    /// An earlier result to compare with.
    pub earlier: Option<Earlier>,
}

/// Measures it. `tell` hears what is being done. Whoever calls holds the image in the store, and has no other children.
///
/// # Errors
/// Nothing can be measured at all. What only some backends lack is in the report.
pub fn run(plan: &Plan, store: &Store, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
    let failed = |error| Failure::new("cannot measure", error, "free memory, descriptors and space in $TMPDIR");
    let mut stopwatch = Stopwatch::new().map_err(failed)?;
    let mut host = Machine::look();
    let workspace = Workspace::new().map_err(failed)?;
    let archive = workspace.path().join("image.tar");
    if plan.backends.iter().any(|choice| choice.kind.keeps_images()) {
        store.export(&[(plan.image.clone(), Vec::new())], File::create(&archive).map_err(failed)?)?;
    }
    let workload = Workload {
        image: plan.image.clone(),
        disk: store.rootfs(&plan.image)?,
        process: plan.process.clone(),
        entrypoint: plan.entrypoint.clone(),
        words: plan.words.clone(),
        archive,
        coracle: plan.coracle.clone(),
        networked: plan.networked,
        http: plan.http,
        at_once: plan.concurrency.iter().copied().max().unwrap_or(1),
    };
    let mut interrupted = false;
    let mut outcomes: Vec<Outcome> = plan.backends.iter().map(|choice| Outcome::of(choice.kind)).collect();
    let mut ready = Vec::new();
    for (at, choice) in plan.backends.iter().enumerate() {
        let kind = choice.kind;
        if interrupted || stopwatch.is_interrupted() {
            interrupted = true;
            outcomes[at].failed = "interrupted before its turn".to_owned();
            continue;
        }
        tell(&format!("{kind}: making it ready, with a first run"));
        match Backend::prepare(choice, &workload, &workspace, &mut stopwatch) {
            Ok(backend) => {
                outcomes[at].command.clone_from(&backend.command);
                outcomes[at].version.clone_from(&backend.version);
                outcomes[at].notes.clone_from(&backend.notes);
                ready.push((at, backend));
            }
            Err(Failed::Interrupted) => interrupted = true,
            Err(Failed::Because(why)) => {
                tell(&format!("{kind}: skipped: {why}"));
                outcomes[at].failed = why;
            }
        }
    }
    let (mut boots, mut notes) = (Vec::new(), Vec::new());
    let mut tracepoints = None;
    if !plan.only_times || plan.probes {
        match Tracepoints::find(&workspace) {
            Ok(found) => tracepoints = Some(found),
            Err(why) => notes.push(format!("System calls, exits and instructions were not counted: {why}.")),
        }
    }
    if !interrupted {
        let counter = tracepoints.as_ref().filter(|_| !plan.only_times);
        interrupted = measure(plan, &ready, counter, &mut stopwatch, &mut outcomes, &mut boots, tell);
    }
    if !interrupted {
        interrupted = measure_rates(plan, &ready, &mut stopwatch, &mut outcomes, tell);
    }
    host.look_again();
    if !interrupted && plan.probes {
        interrupted = probe(plan, &ready, tracepoints.as_ref(), &mut stopwatch, &mut outcomes, tell);
    }
    if !interrupted && !plan.only_times {
        interrupted = trace(plan, &ready, &mut stopwatch, &mut outcomes, tell);
    }
    if !interrupted && !plan.only_times {
        interrupted = weigh(plan, &ready, &workload, &workspace, &mut stopwatch, &mut outcomes, tell);
    }
    if outcomes.iter().all(|one| one.samples.iter().all(|run| run.warm_up)) {
        return Err(nothing(&outcomes, interrupted));
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
        command: plan.process.arguments.clone(),
        runs: plan.runs,
        warm_up: plan.warm_up,
        seed: plan.seed,
        host,
        backends: outcomes,
        baseline: None,
        waterfall: Vec::new(),
        comparison: None,
        cold_caches: plan.cold_caches,
        networked: plan.networked,
        http: plan.http,
        notes,
    };
    report.evaluate(&boots);
    if let Some(earlier) = &plan.earlier {
        report.comparison = Some(Comparison::of(&report, earlier));
    }
    Ok(report)
}

/// All turns; whether the user wanted no more of them.
fn measure(
    plan: &Plan,
    ready: &[(usize, Backend)],
    tracepoints: Option<&Tracepoints>,
    stopwatch: &mut Stopwatch,
    outcomes: &mut [Outcome],
    boots: &mut Vec<Sample>,
    tell: &mut dyn FnMut(&str),
) -> bool {
    let mut told = usize::MAX;
    for turn in turns(ready.len(), plan.warm_up, plan.runs, tracepoints.is_some(), plan.seed) {
        let (at, backend) = &ready[turn.backend];
        let outcome = &mut outcomes[*at];
        if !outcome.failed.is_empty() {
            continue;
        }
        if told != turn.round {
            told = turn.round;
            let kind = if turn.warm_up { "warm-up " } else { "" };
            tell(&format!("{kind}round {} of {}", turn.round + 1, plan.warm_up + plan.runs));
        }
        if plan.cold_caches
            && let Err(error) = drop_caches()
        {
            outcome.failed = format!("cannot drop the host's cache of files: {error}");
            continue;
        }
        let counting = tracepoints.filter(|_| turn.counted).map(Tracepoints::begin);
        match backend.sample(stopwatch) {
            Ok(sample) if turn.counted => {
                let counts = counting.map(|counting| counting.end()).unwrap_or_default();
                outcome.counted.push(Counted::of(turn.round, &sample, counts));
            }
            Ok(sample) => {
                outcome.samples.push(Run {
                    round: turn.round,
                    warm_up: turn.warm_up,
                    ready_ns: sample.ready_ns,
                    first_byte_ns: sample.first_byte_ns,
                    exit_ns: sample.exit_ns,
                    cpu_ns: sample.cpu_ns,
                    read_bytes: sample.read_bytes,
                });
                if !sample.marks.is_empty() && !turn.warm_up {
                    boots.push(sample);
                }
            }
            Err(Failed::Interrupted) => return true,
            Err(Failed::Because(why)) => {
                tell(&format!("{}: no more of it: {why}", backend.choice.kind));
                outcome.failed = why;
            }
        }
        if stopwatch.is_interrupted() {
            return true;
        }
    }
    false
}

/// Runs with each probe and without, in turns; whether the user wanted no more of them.
fn probe(
    plan: &Plan,
    ready: &[(usize, Backend)],
    tracepoints: Option<&Tracepoints>,
    stopwatch: &mut Stopwatch,
    outcomes: &mut [Outcome],
    tell: &mut dyn FnMut(&str),
) -> bool {
    let ready: Vec<_> = ready.iter().filter(|(at, one)| one.ends() && outcomes[*at].failed.is_empty()).collect();
    let mut seen = vec![Vec::new(); ready.len()];
    let mut told = usize::MAX;
    for turn in turns(ready.len() * WAYS.len(), 0, plan.runs, false, plan.seed.wrapping_add(1)) {
        if told != turn.round {
            told = turn.round;
            tell(&format!("with probes and without: round {} of {}", turn.round + 1, plan.runs));
        }
        let (which, way) = (turn.backend / WAYS.len(), WAYS[turn.backend % WAYS.len()]);
        match probes::look(&ready[which].1, way, tracepoints, stopwatch) {
            Ok(one) => seen[which].extend(one),
            Err(Failed::Interrupted) => return true,
            Err(Failed::Because(why)) => {
                outcomes[ready[which].0].notes.push(format!("a probe was not looked at: {why}"))
            }
        }
        if stopwatch.is_interrupted() {
            return true;
        }
    }
    for ((at, _), seen) in ready.into_iter().zip(seen) {
        outcomes[*at].probes = Some(Probes::of(&seen, plan.seed));
    }
    false
}

/// Several starts at once; whether the user wanted no more of them.
fn measure_rates(
    plan: &Plan,
    ready: &[(usize, Backend)],
    stopwatch: &mut Stopwatch,
    outcomes: &mut [Outcome],
    tell: &mut dyn FnMut(&str),
) -> bool {
    for &at_once in &plan.concurrency {
        tell(&format!("{at_once} at once"));
        // In an order of its own each time, as all else.
        let order = turns(ready.len(), 0, 1, false, plan.seed.wrapping_add(at_once as u64));
        for turn in order {
            let (at, backend) = &ready[turn.backend];
            if !outcomes[*at].failed.is_empty() {
                continue;
            }
            match backend.burst(stopwatch, at_once, plan.runs.max(at_once)) {
                None => {}
                Some(Ok(burst)) => outcomes[*at].rates.push(Rate::of(at_once, &burst, plan.seed)),
                Some(Err(Failed::Interrupted)) => return true,
                Some(Err(Failed::Because(why))) => {
                    tell(&format!("{}: {at_once} at once: {why}", backend.choice.kind));
                    outcomes[*at].notes.push(format!("{at_once} at once: {why}"));
                }
            }
        }
    }
    false
}

/// Milestones of those that tell them; whether the user wanted no more.
fn trace(
    plan: &Plan,
    ready: &[(usize, Backend)],
    stopwatch: &mut Stopwatch,
    outcomes: &mut [Outcome],
    tell: &mut dyn FnMut(&str),
) -> bool {
    for (at, backend) in ready.iter().filter(|(_, backend)| backend.choice.kind.tells_milestones()) {
        let outcome = &mut outcomes[*at];
        if !outcome.failed.is_empty() {
            continue;
        }
        tell(&format!("{}: its stages", backend.choice.kind));
        let mut traces = Vec::new();
        for _ in 0..plan.runs.min(TRACED) {
            match backend.trace(stopwatch) {
                Ok(trace) => traces.push(trace),
                Err(Failed::Interrupted) => return true,
                Err(Failed::Because(why)) => outcome.notes.push(format!("its stages were not seen: {why}")),
            }
            if stopwatch.is_interrupted() {
                return true;
            }
        }
        outcome.stages = stages(&traces);
    }
    false
}

/// The memory of each, while it does nothing: a server is left alone, and instead of all else the image's `sleep` runs.
/// Whether the user wanted no more of it.
fn weigh(
    plan: &Plan,
    ready: &[(usize, Backend)],
    workload: &Workload,
    workspace: &Workspace,
    stopwatch: &mut Stopwatch,
    outcomes: &mut [Outcome],
    tell: &mut dyn FnMut(&str),
) -> bool {
    let sleeping = |seconds: u64| {
        let (words, entrypoint) = (vec![seconds.to_string()], Some("sleep".to_owned()));
        let overrides = Overrides { command: words.clone(), entrypoint: entrypoint.clone(), ..Overrides::default() };
        let process = ProcessSpec::new(&plan.image.config, &overrides, "bench");
        let process = process.map_err(|failure| Failed::Because(failure.why))?;
        Ok::<_, Failed>(Workload { words, entrypoint, process, at_once: 1, ..workload.clone() })
    };
    for (at, backend) in ready {
        let outcome = &mut outcomes[*at];
        if !outcome.failed.is_empty() {
            continue;
        }
        tell(&format!("{}: its memory", backend.choice.kind));
        let mut weight = || match plan.http {
            Some(_) => backend.weigh(stopwatch),
            None => backend.with(&sleeping(0)?, &sleeping(SECONDS)?, workspace, stopwatch)?.weigh(stopwatch),
        };
        match weight() {
            Ok(Some(weight)) => outcome.weight = Some(weight),
            Ok(None) => outcome.notes.push("it ended before its memory had been looked at".to_owned()),
            Err(Failed::Interrupted) => return true,
            Err(Failed::Because(why)) => outcome.notes.push(format!("its memory was not looked at: {why}")),
        }
        if stopwatch.is_interrupted() {
            return true;
        }
    }
    false
}

/// Has the kernel forget what it has of files (Linux `admin-guide/sysctl/vm.rst`, `drop_caches`).
fn drop_caches() -> std::io::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

fn nothing(outcomes: &[Outcome], interrupted: bool) -> Failure {
    let what = "cannot measure how this image starts";
    if interrupted {
        return Failure::new(
            what,
            "it was interrupted before the first round that counts",
            "let it run longer, or -n 3",
        );
    }
    let reasons: Vec<String> = outcomes.iter().map(|one| format!("{}: {}", one.name, one.failed)).collect();
    let advice = "a command that is in the image, `coracle bench startup IMAGE COMMAND`; `coracle doctor`";
    Failure::new(what, format!("no backend works: {}", reasons.join("; ")), advice)
}
