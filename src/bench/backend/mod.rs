// SPDX-License-Identifier: Apache-2.0
//! What is compared: ways to run the same command of the same image, made ready before any of them is timed.

mod guest;
mod kind;
mod microsandbox;
mod oci;
pub(super) mod podman;
mod qemu;
mod vm;
mod workspace;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

pub use self::kind::{Choice, Kind, UnknownChoice};
use self::oci::Root;
pub(super) use self::oci::mounted;
pub use self::workspace::Workspace;
use super::burst::{self, Burst, NoBurst};
use super::measure::{Observed, Outcome, Stopwatch, Until};
use super::weight::{SECONDS, Weight, weighed};
use crate::image::Image;
use crate::milestones;
use crate::sandbox::ProcessSpec;
use crate::vmm::stages::Mark;

/// How long one run may take, on the slowest of hosts.
const PATIENCE: Duration = Duration::from_secs(300);

/// What all of them run.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The image, in the store.
    pub image: Image,
    /// Its files as one disk.
    pub disk: PathBuf,
    /// The command, as image and user together say.
    pub process: ProcessSpec,
    /// Program instead of the image's entry point.
    pub entrypoint: Option<String>,
    /// What goes behind the image's name on a command line.
    pub words: Vec<String>,
    /// An archive of the image, for those that keep images of their own.
    pub archive: PathBuf,
    /// Our own program.
    pub coracle: PathBuf,
    /// Most starts at once.
    pub at_once: usize,
    /// Whether those that can have a network have their default one, rather than none.
    pub networked: bool,
    /// The port of a server that the command is, whose first answer is waited for, rather than a byte and its end. It takes
    /// a network.
    pub http: Option<u16>,
}

/// One that is ready to be timed.
pub struct Backend {
    /// Which.
    pub choice: Choice,
    /// How it is started, for who wants to do the same by hand.
    pub command: Vec<String>,
    /// What it says of its version.
    pub version: String,
    /// What else is to be known of its figures.
    pub notes: Vec<String>,
    /// More of the same, to be started beside it; for those that cannot be started twice at once as they are.
    beside: Vec<(Vec<String>, Root)>,
    /// Which of the ways to run it works, by its place.
    way: usize,
    run: Run,
}

enum Run {
    Program { root: Option<Root>, until: Until },
    Guest(Box<guest::Guest>),
}

/// What one run gave. Times are in nanoseconds.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// When it was spawned, by the monotonic clock.
    pub spawned_ns: u64,
    /// To where the agent is ready, for a boot.
    pub ready_ns: Option<u64>,
    /// To the first byte on standard output.
    pub first_byte_ns: Option<u64>,
    /// To the end, as its caller sees it.
    pub exit_ns: Option<u64>,
    /// Processor time of all of it.
    pub cpu_ns: Option<u64>,
    /// Bytes read from disks.
    pub read_bytes: Option<u64>,
    /// Stages of a boot.
    pub marks: Vec<Mark>,
    /// To where the agent says that the program runs.
    pub started_ns: Option<u64>,
}

/// How closely a run is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// At its end alone.
    End,
    /// At its output as well, as in all runs that are timed.
    Output,
    /// At the milestones that it tells, besides.
    Milestones,
}

/// Why there is no sample.
#[derive(Debug)]
pub enum Failed {
    /// The user wants no more.
    Interrupted,
    /// The reason.
    Because(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Because(error.to_string())
    }
}

impl Backend {
    /// Makes one ready, up to a first run, which shows whether it works, and as many more as it takes to be as quick as it
    /// will be from then on.
    ///
    /// # Errors
    /// Why it cannot be had here, or that the user wants no more.
    pub fn prepare(
        choice: &Choice,
        workload: &Workload,
        workspace: &Workspace,
        stopwatch: &mut Stopwatch,
    ) -> Result<Self, Failed> {
        let candidates = candidates(choice, workload, workspace);
        if workload.http.is_some() && !choice.kind.can_serve() {
            return Err(Failed::Because("it has no network here, and so cannot serve".to_owned()));
        }
        // The first way that works is the one.
        let mut reasons: Vec<String> = Vec::new();
        for (way, candidate) in candidates.map_err(Failed::Because)?.into_iter().enumerate() {
            let first = (0..choice.kind.first_runs()).try_for_each(|_| candidate.sample(stopwatch).map(drop));
            match first {
                Ok(()) => return Ok(Self { way, ..candidate }),
                Err(Failed::Interrupted) => return Err(Failed::Interrupted),
                Err(Failed::Because(why)) if reasons.contains(&why) => {}
                Err(Failed::Because(why)) => reasons.push(why),
            }
        }
        Err(Failed::Because(reasons.join("; otherwise: ")))
    }

    /// The same for another workload of the same image, once it has run with `first`.
    ///
    /// # Errors
    /// Why it cannot be had, or that the user wants no more.
    pub fn with(
        &self,
        first: &Workload,
        workload: &Workload,
        workspace: &Workspace,
        stopwatch: &mut Stopwatch,
    ) -> Result<Self, Failed> {
        Self::prepare(&self.choice, first, workspace, stopwatch)?;
        let all = candidates(&self.choice, workload, workspace).map_err(Failed::Because)?;
        let same = all.into_iter().nth(self.way);
        same.ok_or_else(|| Failed::Because("it cannot be had a second time".to_owned()))
    }

    /// Runs it once, and looks at the memory that all of it takes; `None` where it went too quickly for that.
    ///
    /// # Errors
    /// It failed, or the user wants no more.
    pub fn weigh(&self, stopwatch: &mut Stopwatch) -> Result<Option<Weight>, Failed> {
        weighed(|| {
            stopwatch.linger(Duration::from_secs(SECONDS));
            let outcome = self.sample(stopwatch);
            stopwatch.linger(Duration::ZERO);
            outcome.map(|_| match self.run {
                Run::Program { .. } => stopwatch.ended(),
                Run::Guest(_) => Instant::now(),
            })
        })
    }

    /// Starts it many times, so many at once; `None` where that makes no sense.
    ///
    /// # Errors
    /// It failed, or the user wants no more.
    pub fn burst(&self, stopwatch: &mut Stopwatch, at_once: usize, total: usize) -> Option<Result<Burst, Failed>> {
        let Run::Program { root, until: Until::Exit } = &self.run else { return None };
        let mut commands = vec![self.command.clone(); at_once];
        if let Some(root) = root {
            let beside = self.beside.get(..at_once - 1)?;
            let renewed = std::iter::once(root).chain(beside.iter().map(|(_, root)| root)).try_for_each(Root::renew);
            if let Err(error) = renewed {
                return Some(Err(error.into()));
            }
            commands.truncate(1);
            commands.extend(beside.iter().map(|(command, _)| command.clone()));
        }
        Some(burst::run(stopwatch, &commands, total).map_err(|none| match none {
            NoBurst::Interrupted => Failed::Interrupted,
            NoBurst::Because(why) => Failed::Because(why),
        }))
    }

    /// Runs it once.
    ///
    /// # Errors
    /// It failed, or the user wants no more.
    pub fn sample(&self, stopwatch: &mut Stopwatch) -> Result<Sample, Failed> {
        self.run(stopwatch, Watch::Output, None)
    }

    /// Whether it can be looked at in other ways: a program that ends by itself.
    pub fn ends(&self) -> bool {
        matches!(self.run, Run::Program { until: Until::Exit, .. })
    }

    /// Runs it once, and looks at it so closely.
    ///
    /// # Errors
    /// It failed, or the user wants no more.
    pub fn watched(&self, stopwatch: &mut Stopwatch, watch: Watch) -> Result<Sample, Failed> {
        let file = (watch == Watch::Milestones).then(NamedTempFile::new).transpose()?;
        self.run(stopwatch, watch, file.as_ref().map(NamedTempFile::path))
    }

    /// Runs it once, and gives its milestones, with nanoseconds from just before it was spawned.
    ///
    /// # Errors
    /// It failed, or the user wants no more.
    pub fn trace(&self, stopwatch: &mut Stopwatch) -> Result<Vec<(String, u64)>, Failed> {
        let mut file = NamedTempFile::new()?;
        let sample = self.run(stopwatch, Watch::Milestones, Some(file.path()))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let since = |(name, ns): (String, u64)| (name, ns.saturating_sub(sample.spawned_ns));
        let mut all: Vec<_> = milestones::parse(&text).into_iter().map(since).collect();
        if !all.is_empty() {
            all.extend(sample.first_byte_ns.map(|ns| ("first byte".to_owned(), ns)));
            all.extend(sample.exit_ns.map(|ns| ("end".to_owned(), ns)));
            all.sort_by_key(|milestone| milestone.1);
        }
        Ok(all)
    }

    fn run(&self, stopwatch: &mut Stopwatch, watch: Watch, milestones: Option<&Path>) -> Result<Sample, Failed> {
        let (root, until) = match &self.run {
            Run::Guest(guest) => return guest.sample(stopwatch),
            Run::Program { root, until } => (root, *until),
        };
        root.as_ref().map_or(Ok(()), Root::renew)?;
        let [program, arguments @ ..] = &self.command[..] else {
            return Err(Failed::Because("there is no program".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments).envs(milestones.map(|path| (milestones::VARIABLE, path)));
        let outcome = match watch {
            Watch::End => stopwatch.run_unwatched(&mut command, PATIENCE)?,
            Watch::Output | Watch::Milestones => stopwatch.run(&mut command, until, PATIENCE)?,
        };
        let seen = match outcome {
            Outcome::Done(seen) => seen,
            Outcome::Interrupted => return Err(Failed::Interrupted),
            Outcome::TimedOut => {
                let what = if until == Until::Exit { "it did not end" } else { "it was not ready" };
                return Err(Failed::Because(format!("{what} within {} s", PATIENCE.as_secs())));
            }
        };
        judge(&seen, until)?;
        let used = Sample {
            spawned_ns: seen.started_ns,
            cpu_ns: Some(seen.cpu_ns),
            read_bytes: Some(seen.read_bytes),
            ..Sample::default()
        };
        Ok(match until {
            Until::Http(_) => Sample { first_byte_ns: seen.first_byte_ns, ..used },
            Until::Byte(_) => Sample { ready_ns: seen.first_byte_ns, ..used },
            Until::Exit => Sample { first_byte_ns: seen.first_byte_ns, exit_ns: Some(seen.exit_ns), ..used },
        })
    }
}

/// The ways to run it, the best first.
fn candidates(choice: &Choice, workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    match choice.kind {
        Kind::Vm | Kind::VmCold | Kind::Container => vm::candidates(choice.kind, workload),
        Kind::Crun | Kind::Runc => oci::candidates(choice, workload, workspace),
        Kind::Podman => podman::candidates(choice, workload, workspace),
        Kind::Microsandbox => microsandbox::candidates(choice, workload, workspace),
        Kind::Vmm => guest::candidates(workload, workspace),
        Kind::QemuMicrovm => qemu::candidates(choice, workload),
    }
}

/// A run that failed is no sample.
fn judge(seen: &Observed, until: Until) -> Result<(), Failed> {
    let why = match until {
        Until::Exit if seen.status != 0 => format!("it ended with status {}", seen.status),
        Until::Byte(_) | Until::Http(_) if seen.first_byte_ns.is_none() => {
            format!("it ended ({}) before it was ready", seen.status)
        }
        _ => return Ok(()),
    };
    let said: Vec<&str> = seen.errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said: String = said.join("; ").chars().take(300).collect();
    Err(Failed::Because(if said.is_empty() { why } else { format!("{why}: {said}") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_run_is_no_sample() {
        let seen = |status, first_byte_ns, errors: &str| Observed {
            status,
            first_byte_ns,
            errors: errors.to_owned(),
            ..Observed::default()
        };
        assert!(judge(&seen(0, None, ""), Until::Exit).is_ok());
        assert!(judge(&seen(137, Some(1), ""), Until::Byte(2)).is_ok());
        let because = |seen: &Observed, until| match judge(seen, until) {
            Err(Failed::Because(why)) => why,
            other => panic!("{other:?}"),
        };
        let why = because(&seen(127, None, "coracle: no\n  why: it is not\n"), Until::Exit);
        assert_eq!(why, "it ended with status 127: coracle: no; why: it is not");
        assert_eq!(because(&seen(1, None, ""), Until::Byte(2)), "it ended (1) before it was ready");
    }
}
