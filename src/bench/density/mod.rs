// SPDX-License-Identifier: Apache-2.0
//! How many containers fit: clones are started until a limit is reached, and all of them have to answer.

pub mod report;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use self::report::{Report, SCHEMA, Started, Step, VERSION};
use super::machine::{self, Machine};
use super::measure::nanoseconds;
use crate::failure::Failure;
use crate::sandbox::Agent;
use crate::signals;
use crate::supervisor::footprint::Footprint;
use crate::supervisor::{Container, Containers};

/// What a container of a benchmark is marked with, and with which process it belongs to.
const LABEL: &str = "coracle.bench.density";
/// How many containers there are when all are looked at, unless a limit comes first; then twice as many, and so on.
const FIRST_STEP: usize = 10;
/// Containers removed by one command.
const REMOVED: usize = 50;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image as the user named it.
    pub image: String,
    /// What each runs: something that does not end.
    pub command: Vec<String>,
    /// Words for `coracle run` between.
    pub flags: Vec<String>,
    /// No more containers than this.
    pub most: usize,
    /// Started at the same time.
    pub at_once: usize,
    /// Bytes that they may take together; `None` for as much as there is.
    pub limit: Option<u64>,
    /// Bytes of the host's memory that stay free.
    pub reserve: u64,
    /// Our own program.
    pub coracle: PathBuf,
}

/// Starts containers until a limit is reached, and removes them. `tell` hears what is being done.
///
/// # Errors
/// Not even one can be started, or something of this process's own fails. What is running then is removed as well.
pub fn run(plan: &Plan, containers: &Containers, tell: &mut dyn FnMut(&str)) -> Result<Report, Failure> {
    let failed = |error| Failure::new("cannot measure", error, "free memory and descriptors");
    // To be caught before threads are.
    let signals = signals::readable(&[libc::SIGINT, libc::SIGTERM, libc::SIGHUP]).map_err(failed)?;
    let mut bench = Bench {
        plan,
        containers,
        signals,
        mark: format!("{LABEL}={}", std::process::id()),
        started: Vec::new(),
        before: available(),
        stopped: None,
        interrupted: false,
    };
    let mut host = Machine::look();
    // The first makes the template, and is no clone of one that was there.
    tell("a first one, which makes what the others are clones of");
    let first = bench.start_one().map(drop);
    let outcome = bench.remove(tell).and(first);
    outcome.map_err(|why| {
        Failure::new(format!("cannot run image {}", plan.image), why, "`coracle run` with the same words")
    })?;
    bench.before = available();
    let steps = bench.fill(tell);
    tell(&format!("removing {}", bench.started.len()));
    let removed = bench.remove(tell);
    host.look_again();
    if let Err(why) = removed {
        tell(&format!("not all could be removed: {why}"));
    }
    let Bench { started, stopped, interrupted, before, .. } = bench;
    Ok(Report {
        schema: SCHEMA,
        version: VERSION,
        began: machine::now(),
        coracle: env!("CARGO_PKG_VERSION"),
        image: plan.image.clone(),
        command: plan.command.clone(),
        flags: plan.flags.clone(),
        at_once: plan.at_once,
        interrupted,
        stopped: stopped.unwrap_or_default(),
        available_before: before,
        host,
        started,
        steps,
    })
}

struct Bench<'a> {
    plan: &'a Plan,
    containers: &'a Containers,
    signals: OwnedFd,
    mark: String,
    started: Vec<Started>,
    /// Bytes that the host had left.
    before: u64,
    /// Why there are no more.
    stopped: Option<String>,
    interrupted: bool,
}

impl Bench<'_> {
    /// Starts them step by step, and looks at all of them after each.
    fn fill(&mut self, tell: &mut dyn FnMut(&str)) -> Vec<Step> {
        let (mut steps, mut next) = (Vec::new(), FIRST_STEP);
        while self.stopped.is_none() {
            let (from, wanted) = (self.started.len(), next.min(self.plan.most));
            let begin = Instant::now();
            self.start_up_to(wanted);
            let took = nanoseconds(begin.elapsed());
            if self.started.len() > from {
                tell(&format!("{} run; looking at all of them", self.started.len()));
                steps.push(self.look(from, took));
            }
            if self.started.len() >= self.plan.most {
                self.stopped.get_or_insert_with(|| "there are as many as were asked for".to_owned());
            }
            next *= 2;
        }
        steps
    }

    /// Starts more, so many at a time, until there are as many or there is a reason to stop.
    fn start_up_to(&mut self, wanted: usize) {
        let (from, began) = (self.started.len(), AtomicUsize::new(self.started.len()));
        let (found, stopped) = (Mutex::new(Vec::new()), Mutex::new(None));
        let this = &*self;
        let lock = |why: String| _ = stopped.lock().expect("no thread panics while it holds this").get_or_insert(why);
        thread::scope(|scope| {
            for _ in 0..this.plan.at_once {
                scope.spawn(|| {
                    while stopped.lock().expect("no thread panics while it holds this").is_none() {
                        if began.fetch_add(1, Ordering::Relaxed) >= wanted {
                            break;
                        }
                        if let Some(why) = this.reason_to_stop() {
                            return lock(why);
                        }
                        match this.start_one() {
                            Ok(one) => found.lock().expect("no thread panics while it holds this").push(one),
                            Err(why) => return lock(format!("one could not be started: {why}")),
                        }
                    }
                });
            }
        });
        self.started.extend(found.into_inner().expect("no thread has panicked"));
        self.stopped = stopped.into_inner().expect("no thread has panicked");
        self.interrupted = self.stopped.as_deref() == Some(INTERRUPTED);
        self.started
            .get_mut(from..)
            .unwrap_or_default()
            .iter_mut()
            .zip(from..)
            .for_each(|(one, number)| one.number = number);
    }

    fn reason_to_stop(&self) -> Option<String> {
        let left = available();
        let taken = self.before.saturating_sub(left);
        match self.plan.limit {
            _ if signals::take(&self.signals).is_some() => Some(INTERRUPTED.to_owned()),
            _ if left < self.plan.reserve => Some(format!("the host has {} MiB left", left >> 20)),
            Some(limit) if taken > limit => Some(format!("they take {} MiB of the host's memory", taken >> 20)),
            _ => None,
        }
    }

    /// From just before `coracle run` is started to where it says that the program runs.
    fn start_one(&self) -> Result<Started, String> {
        let plan = self.plan;
        let mut command = Command::new(&plan.coracle);
        command
            .args(["run", "--detach", "--rm", "--no-spare", "--log-driver", "none", "--label", &self.mark])
            .args(&plan.flags);
        command.arg(&plan.image).args(&plan.command).stdin(Stdio::null());
        let start = Instant::now();
        let output = command.output().map_err(|error| error.to_string())?;
        let ready_ns = nanoseconds(start.elapsed());
        match output.status.success() {
            true => Ok(Started { number: 0, ready_ns }),
            false => {
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                let part =
                    |name: &str| text.lines().find_map(|line| line.trim_start().strip_prefix(name)).unwrap_or_default();
                match (part("coracle: "), part("why: ")) {
                    ("", _) => Err(format!("`coracle run` ended with {}", output.status)),
                    (what, why) => Err(format!("{what}: {why}")),
                }
            }
        }
    }

    fn own(&self) -> Vec<Container> {
        let mine =
            |one: &Container| one.config.labels.get(LABEL).is_some_and(|id| self.mark == format!("{LABEL}={id}"));
        self.containers.all().unwrap_or_default().into_iter().filter(mine).collect()
    }

    /// What all take, and whether all answer.
    fn look(&self, from: usize, took_ns: u64) -> Step {
        let all: Vec<_> =
            self.own().iter().filter_map(|one| one.state().ok()).filter(|state| state.status.is_up()).collect();
        let left = available();
        let footprint: Footprint = all.iter().map(|state| Footprint::of(state.pid)).sum();
        // The guest's agent, asked over its own socket.
        let answers = |state| Agent::connect(&Container::vsock(state)).and_then(|mut agent| agent.usage()).is_ok();
        let answering = all.iter().filter(|state| answers(state)).count();
        let ready: Vec<u64> = self.started.iter().skip(from).map(|one| one.ready_ns).collect();
        Step::new(self.started.len(), &ready, took_ns, answering, footprint, self.before.saturating_sub(left))
    }

    fn remove(&self, tell: &mut dyn FnMut(&str)) -> Result<(), String> {
        let ids: Vec<_> = self.own().into_iter().map(|one| one.config.id).collect();
        let mut outcome = Ok(());
        for (part, done) in ids.chunks(REMOVED).zip((0..).step_by(REMOVED)) {
            if done > 0 {
                tell(&format!("{done} are removed"));
            }
            let removed = Command::new(&self.plan.coracle).args(["rm", "-f"]).args(part).stdin(Stdio::null()).output();
            let removed = removed.map_err(|error| error.to_string());
            outcome = outcome.and(removed.and_then(|output| match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            }));
        }
        outcome
    }
}

const INTERRUPTED: &str = "the user wanted no more";

/// Bytes that programs could still get without anything being written out (proc(5), `MemAvailable`).
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|text| text.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) << 10
}

/// Number of CPUs that this process may use.
///
/// # Errors
/// The kernel's.
pub fn cpus() -> io::Result<usize> {
    thread::available_parallelism().map(usize::from)
}
