// SPDX-License-Identifier: Apache-2.0
//! What a benchmark found, as `--format json` prints it; `docs/benchmark.md` describes the fields.

use std::fmt::Write;

use serde::Serialize;

use super::backend::{Kind, Sample};
use super::burst::Burst;
use super::comparison::Comparison;
use super::counters::{Counts, Event};
use super::machine::Machine;
use super::probes::Probes;
use super::statistics::{Count, Ratio, Summary, median};
use super::weight::Weight;
use crate::vmm::stages::{Mark, Stage};

/// Names the schema.
pub const SCHEMA: &str = "coracle-bench-startup";
/// Raised when a field changes its meaning or goes; new fields do not raise it.
pub const VERSION: u32 = 1;

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`VERSION`].
    pub version: u32,
    /// When it was begun, in UTC.
    pub started: String,
    /// Version of Coracle.
    pub coracle: &'static str,
    /// Whether each backend has all the runs that were asked for.
    pub complete: bool,
    /// Ended by the user before it was complete.
    pub interrupted: bool,
    /// The image as the user named it.
    pub image: String,
    /// Digest of its configuration.
    pub image_id: String,
    /// The command, with the image's entry point.
    pub command: Vec<String>,
    /// Runs of each backend that were asked for.
    pub runs: usize,
    /// Rounds before them that do not count.
    pub warm_up: usize,
    /// By which the order, and the bootstrap, were drawn.
    pub seed: u64,
    /// Where.
    pub host: Machine,
    /// What was compared.
    pub backends: Vec<Outcome>,
    /// The container backend that starts quickest: ratios are to it.
    pub baseline: Option<&'static str>,
    /// Where the time of a cold start of `coracle-vmm` goes.
    pub waterfall: Vec<Step>,
    /// Against an earlier result, where one was named.
    pub comparison: Option<Comparison>,
    /// The port of the server whose first answer was waited for: it is what `first_byte` is of.
    pub http: Option<u16>,
    /// Backends that can have a network have their default one.
    pub networked: bool,
    /// Caches of files were dropped before each run.
    pub cold_caches: bool,
    /// What must be known of these figures.
    pub notes: Vec<String>,
}

/// How far a run has come, for people.
pub fn state(complete: bool, interrupted: bool) -> &'static str {
    match (complete, interrupted) {
        (true, _) => "complete",
        (false, true) => "interrupted",
        (false, false) => "incomplete",
    }
}

/// What became of one backend.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// It is a namespace container.
    pub is_container: bool,
    /// It is the boot of a guest alone.
    pub is_boot: bool,
    /// Why there are no figures, or no more; empty where nothing failed.
    pub failed: String,
    /// Its version.
    pub version: String,
    /// How it was started.
    pub command: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// Each run.
    pub samples: Vec<Run>,
    /// To where the agent is ready.
    pub ready: Option<Summary>,
    /// To the first byte on standard output.
    pub first_byte: Option<Summary>,
    /// To the end.
    pub exit: Option<Summary>,
    /// Processor time of all processes.
    pub cpu: Option<Summary>,
    /// First byte, against the baseline's; of the end where the command writes nothing.
    pub ratio: Option<Ratio>,
    /// Where the time of a start goes, where it tells: medians of a few runs that were neither timed nor counted.
    pub stages: Vec<Step>,
    /// What the benchmark's own probes add, where that was looked at.
    pub probes: Option<Probes>,
    /// Several starts at once, by their number.
    pub rates: Vec<Rate>,
    /// Bytes that a run had the host read from disks.
    pub read_bytes: Option<Count>,
    /// Memory of all its processes.
    pub weight: Option<Weight>,
    /// Each run that was not timed, but counted.
    pub counted: Vec<Counted>,
    /// System calls on the host.
    pub system_calls: Option<Count>,
    /// Exits of the guest to KVM.
    pub exits: Option<Count>,
    /// Exits from KVM to the VMM.
    pub user_exits: Option<Count>,
    /// Instructions of the guest's kernel, where the host interprets it.
    pub kernel_instructions: Option<Count>,
    /// Runs that are counted against those that are not, by the figure that decides: what counting adds.
    pub counting: Option<Ratio>,
}

/// So many starts at once.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// How many at once.
    pub at_once: usize,
    /// Starts in a second, from the first launch to the last end.
    pub per_second: f64,
    /// To the first byte of each.
    pub start: Option<Summary>,
}

/// One run. Times are in nanoseconds.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its round, from 0.
    pub round: usize,
    /// It does not count.
    pub warm_up: bool,
    /// To where the agent is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ns: Option<u64>,
    /// To the first byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_ns: Option<u64>,
    /// To the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_ns: Option<u64>,
    /// Processor time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// Bytes that the host read from disks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
}

/// One run of which was counted what it asked of the host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counted {
    /// Its round, from 0.
    pub round: usize,
    /// The figure that decides, in nanoseconds: to be compared with that of runs that were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub main_ns: Option<u64>,
    /// System calls on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_calls: Option<u64>,
    /// Exits of the guest to KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits: Option<u64>,
    /// Exits from KVM to the VMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_exits: Option<u64>,
    /// Instructions that KVM emulated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulated_instructions: Option<u64>,
}

impl Counted {
    /// Of what was seen.
    pub fn of(round: usize, sample: &Sample, counts: Counts) -> Self {
        let main_ns = sample.ready_ns.or(sample.first_byte_ns).or(sample.exit_ns);
        let of = |event| Event::ALL.into_iter().zip(counts).find(|one| one.0 == event).and_then(|one| one.1);
        Self {
            round,
            main_ns,
            system_calls: of(Event::SystemCalls),
            exits: of(Event::Exits),
            user_exits: of(Event::UserExits),
            emulated_instructions: of(Event::EmulatedInstructions),
        }
    }
}

/// A stage of a start: medians of the runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its end.
    pub stage: String,
    /// When it was reached, from the launch: of `coracle-vmm` in a waterfall of it alone.
    pub wall_ns: u64,
    /// Processor time of `coracle-vmm` by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<u64>,
    /// Exits by then, where the host counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits: Option<u64>,
    /// Instructions of the guest's kernel by then, where the host counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_instructions: Option<u64>,
}

impl Rate {
    /// Of what was seen.
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn of(at_once: usize, burst: &Burst, seed: u64) -> Self {
        let per_second = burst.starts_ns.len() as f64 / (burst.all_ns.max(1) as f64 / 1e9);
        Self { at_once, per_second, start: Summary::of(&burst.starts_ns, seed) }
    }
}

/// Names of the columns of what was weighed and counted.
pub const WEIGHT_HEAD: [&str; 9] = [
    "BACKEND",
    "MEMORY",
    "PEAK",
    "FROM DISK",
    "SYSTEM CALLS",
    "EXITS",
    "TO THE VMM",
    "KERNEL INSTRUCTIONS",
    "COUNTED TO TIMED",
];

impl Outcome {
    /// One without figures yet.
    pub fn of(kind: Kind) -> Self {
        let (is_container, is_boot) = (kind.is_container(), kind.is_boot());
        Self { name: kind.name(), what: kind.what(), is_container, is_boot, ..Self::default() }
    }

    /// The figure that decides: of a start the first byte, and the end where nothing is written; of a boot its readiness.
    pub fn main(&self) -> Option<&Summary> {
        if self.is_boot { self.ready.as_ref() } else { self.first_byte.as_ref().or(self.exit.as_ref()) }
    }

    /// A figure of the runs that count, where each has it.
    pub fn column(&self, figure: impl Fn(&Run) -> Option<u64>) -> Vec<u64> {
        let counted = self.samples.iter().filter(|run| !run.warm_up);
        counted.map(figure).collect::<Option<_>>().unwrap_or_default()
    }

    fn count(&self, figure: impl Fn(&Counted) -> Option<u64>) -> Option<Count> {
        Count::of(&self.counted.iter().map(figure).collect::<Option<Vec<u64>>>()?)
    }

    /// Sums up what was counted. On PVM exits have no tracepoint that counts, and the guest's kernel is emulated; elsewhere
    /// that is a few instructions that access devices.
    fn sum_up(&mut self, pvm: bool, seed: u64) {
        let is_vm = !self.is_container;
        self.read_bytes = Count::of(&self.column(|run| run.read_bytes));
        self.system_calls = self.count(|run| run.system_calls);
        self.exits = self.count(|run| run.exits.filter(|_| is_vm && !pvm));
        self.user_exits = self.count(|run| run.user_exits.filter(|_| is_vm));
        self.kernel_instructions = self.count(|run| run.emulated_instructions.filter(|_| is_vm && pvm));
        let counted: Vec<u64> = self.counted.iter().filter_map(|run| run.main_ns).collect();
        self.counting = Ratio::of(&counted, &self.main_column(), seed);
    }

    /// What was weighed and counted, for people; the columns of [`WEIGHT_HEAD`].
    pub fn weight_cells(&self) -> [String; WEIGHT_HEAD.len()] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let weight = |of: fn(&Weight) -> u64| or_none(self.weight.as_ref().map(|weight| mib(of(weight))));
        let count = |count: Option<Count>| or_none(count.map(|count| count.to_string()));
        [
            self.name.to_owned(),
            weight(|weight| weight.settled),
            weight(|weight| weight.peak),
            or_none(self.read_bytes.map(|count| mib(count.median))),
            count(self.system_calls),
            count(self.exits),
            count(self.user_exits),
            count(self.kernel_instructions),
            or_none(self.counting.map(|ratio| ratio.to_string())),
        ]
    }

    /// Whether there is anything in them.
    pub fn has_weight(&self) -> bool {
        self.weight.is_some() || !self.counted.is_empty()
    }

    /// The samples of [`Outcome::main`].
    pub fn main_column(&self) -> Vec<u64> {
        match (self.is_boot, &self.first_byte) {
            (true, _) => self.column(|run| run.ready_ns),
            (false, Some(_)) => self.column(|run| run.first_byte_ns),
            (false, None) => self.column(|run| run.exit_ns),
        }
    }
}

impl Report {
    /// Sums up the samples: to be called once all are there.
    pub fn evaluate(&mut self, samples_of_boots: &[Sample]) {
        let seed = self.seed;
        for one in &mut self.backends {
            one.ready = Summary::of(&one.column(|run| run.ready_ns), seed);
            one.first_byte = Summary::of(&one.column(|run| run.first_byte_ns), seed);
            one.exit = Summary::of(&one.column(|run| run.exit_ns), seed);
            one.cpu = Summary::of(&one.column(|run| run.cpu_ns), seed);
        }
        let pvm = self.host.kind.starts_with("PVM");
        self.backends.iter_mut().for_each(|one| one.sum_up(pvm, seed));
        self.compare(false, |one| one.is_container && !one.is_boot);
        self.compare(true, |one| one.name == Kind::QemuMicrovm.name());
        let counted = |one: &Outcome| one.samples.iter().filter(|run| !run.warm_up).count();
        let tried = self.backends.iter().filter(|one| !one.command.is_empty());
        self.complete =
            !self.interrupted && tried.clone().count() > 0 && tried.clone().all(|one| counted(one) == self.runs);
        self.waterfall = waterfall(samples_of_boots, &self.host);
        let remarks = self.remarks();
        self.notes.splice(..0, remarks);
    }

    /// Ratios of starts, or of boots, to the quickest of those that may be the base.
    fn compare(&mut self, boots: bool, may_be_base: impl Fn(&Outcome) -> bool) {
        let alike = |one: &&Outcome| one.is_boot == boots && one.main().is_some();
        let bases = self.backends.iter().filter(alike).filter(|one| may_be_base(one));
        let base = bases.min_by_key(|one| one.main().map(|figure| figure.median_ns));
        let Some((name, base)) = base.map(|base| (base.name, base.main_column())) else { return };
        for one in self.backends.iter_mut().filter(|one| one.is_boot == boots && one.name != name) {
            one.ratio = Ratio::of(&one.main_column(), &base, self.seed);
        }
        if !boots {
            self.baseline = Some(name);
        }
    }

    fn remarks(&self) -> Vec<String> {
        let mut notes = vec![format!("{}: {}", self.host.description, self.host.meaning)];
        if self.interrupted {
            notes.push("Interrupted: these are the runs made until then.".to_owned());
        }
        notes.extend(self.host.busy());
        if self.http.is_some() {
            notes.push("A start is from the launch to the first answer of the server with status 200, at the container's own address.".to_owned());
        }
        if self.networked && self.http.is_none() {
            let have: Vec<&str> = Kind::ALL.into_iter().filter(|kind| kind.can_serve()).map(Kind::name).collect();
            let have = have.join(", ");
            notes.push(format!(
                "Of all backends {have} have a network: their default one, with an address of a bridge."
            ));
        }
        if self.cold_caches {
            notes.push(
                "The host's cache of files was dropped before each run: all that is read comes from the disk."
                    .to_owned(),
            );
        }
        if self.runs < 10 {
            notes.push(format!("{} runs are few: intervals of so small samples are too narrow.", self.runs));
        }
        if self.waterfall.iter().any(|step| step.stage == "agent ready") {
            notes.push("Stages are of coracle-vmm alone, cold: `vm` has the command line and the monitor before them, and no boot where it uses a template.".to_owned());
        }
        if self.backends.iter().any(|one| one.probes.is_some()) {
            notes.push(
                "Of the probes, the stopwatch alone is in times: runs with milestones or counters are not timed."
                    .to_owned(),
            );
        }
        for one in &self.backends {
            if let Some(percent) = one.main().and_then(Summary::noise_percent) {
                notes.push(format!(
                    "{}: noisy: its interval is {percent} % of its median wide; more runs, or a quieter machine, narrow it.",
                    one.name
                ));
            }
        }
        for one in self.backends.iter().filter(|one| one.ratio.is_some_and(|ratio| !ratio.told_apart)) {
            let base = if one.is_boot { Some(Kind::QemuMicrovm.name()) } else { self.baseline };
            notes.push(format!(
                "{} and {} cannot be told apart: their intervals overlap, or runs are too few.",
                one.name,
                base.unwrap_or("")
            ));
        }
        for one in &self.backends {
            if !one.failed.is_empty() {
                let missing = if one.samples.is_empty() { "not measured" } else { "measured until it failed" };
                notes.push(format!("{}: {missing}: {}", one.name, one.failed));
            }
            notes.extend(one.notes.iter().map(|note| format!("{}: {note}.", one.name)));
            if !one.is_boot && one.exit.is_some() && one.first_byte.is_none() && self.http.is_none() {
                notes.push(format!("{}: the command wrote nothing, at least once; its end is compared.", one.name));
            }
        }
        notes
    }

    /// All runs, one a line, for a spreadsheet.
    pub fn csv(&self) -> String {
        let mut text = "backend,round,warm_up,ready_ns,first_byte_ns,exit_ns,cpu_ns,read_bytes,system_calls,exits,user_exits,emulated_instructions\n".to_owned();
        let cell = |figure: Option<u64>| figure.map(|ns| ns.to_string()).unwrap_or_default();
        for (one, run) in self.backends.iter().flat_map(|one| one.samples.iter().map(move |run| (one, run))) {
            let figures =
                [run.ready_ns, run.first_byte_ns, run.exit_ns, run.cpu_ns, run.read_bytes].map(cell).join(",");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{},{},{},{figures},,,,", one.name, run.round, run.warm_up);
        }
        for (one, run) in self.backends.iter().flat_map(|one| one.counted.iter().map(move |run| (one, run))) {
            let figures = [run.system_calls, run.exits, run.user_exits, run.emulated_instructions].map(cell).join(",");
            let _ = writeln!(text, "{},{},false,,,,,,{figures}", one.name, run.round);
        }
        text
    }
}

/// Bytes as people write them.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Medians of each milestone that all traces have, in the order of the first.
pub fn stages(traces: &[Vec<(String, u64)>]) -> Vec<Step> {
    let first = traces.first().into_iter().flatten();
    let middle = |name: &String| {
        let same = traces.iter().map(|trace| trace.iter().find(|other| other.0 == *name).map(|other| other.1));
        Some(median(&mut same.collect::<Option<Vec<u64>>>()?))
    };
    let step = |stage: &String| {
        let wall_ns = middle(stage)?;
        Some(Step { stage: stage.clone(), wall_ns, cpu_ns: None, exits: None, kernel_instructions: None })
    };
    first.filter_map(|(stage, _)| step(stage)).collect()
}

/// One figure of a sample.
type Figure = fn(&Sample) -> Option<u64>;

/// Medians of each stage that all of the runs have.
fn waterfall(samples: &[Sample], host: &Machine) -> Vec<Step> {
    let Some(first) = samples.first() else { return Vec::new() };
    let mut steps = Vec::new();
    for mark in first.marks.iter().filter(|mark| !matches!(mark.stage, Stage::Guest(_) | Stage::FirstOutput)) {
        let same = samples.iter().map(|sample| sample.marks.iter().find(|other| other.stage == mark.stage));
        let Some(same) = same.collect::<Option<Vec<&Mark>>>() else { continue };
        let of = |figure: fn(&Mark) -> Option<u64>| {
            let figures: Option<Vec<u64>> = same.iter().map(|mark| figure(mark)).collect();
            figures.map(|mut figures| median(&mut figures))
        };
        steps.push(Step {
            stage: mark.stage.to_string(),
            wall_ns: of(|mark| Some(mark.wall_ns)).unwrap_or(0),
            cpu_ns: of(|mark| Some(mark.cpu_ns)),
            exits: of(|mark| mark.exits),
            // Elsewhere what KVM emulates is a few instructions, not the kernel.
            kernel_instructions: of(|mark| mark.emulated_instructions).filter(|_| host.kind.starts_with("PVM")),
        });
    }
    let later: [(&str, Figure); 3] = [
        ("program running", |sample| sample.started_ns),
        ("first byte", |sample| sample.first_byte_ns),
        ("program ended", |sample| sample.exit_ns),
    ];
    for (stage, figure) in later {
        if let Some(mut figures) = samples.iter().map(figure).collect::<Option<Vec<u64>>>() {
            let wall_ns = median(&mut figures);
            steps.push(Step { stage: stage.to_owned(), wall_ns, cpu_ns: None, exits: None, kernel_instructions: None });
        }
    }
    steps
}

/// What tests of reports share.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// A report of made-up figures.
    pub fn report() -> Report {
        let runs = |base: u64, boot: bool| {
            (0..12u64)
                .map(|round| Run {
                    round: usize::try_from(round).unwrap(),
                    warm_up: round < 2,
                    ready_ns: boot.then_some(base + round % 5 * 1000),
                    first_byte_ns: (!boot).then_some(base + round % 5 * 1000),
                    exit_ns: (!boot).then_some(base + 5_000_000 + round % 3 * 1000),
                    cpu_ns: Some(base / 2),
                    read_bytes: Some(4096),
                })
                .collect::<Vec<_>>()
        };
        let mut backends: Vec<Outcome> = Kind::ALL.map(Outcome::of).into();
        // In their order; 0 where there is none.
        let bases = [160_000_000, 0, 40_000_000, 20_000_000, 0, 20_000_900, 0, 120_000_000, 140_000_000];
        for (one, base) in backends.iter_mut().zip(bases) {
            if base > 0 {
                one.samples = runs(base, one.is_boot);
                one.command = vec![one.name.to_owned(), "<&>".to_owned()];
            } else {
                one.failed = "it is not <installed>".to_owned();
            }
        }
        let mark = |stage, wall_ns| Mark { stage, wall_ns, cpu_ns: 1, exits: Some(3), emulated_instructions: None };
        let marks = vec![mark(Stage::ProcessStart, 1_000_000), mark(Stage::AgentReady, 90_000_000)];
        let boots = [Sample { marks, started_ns: Some(100_000_000), ..Sample::default() }];
        let mut report = Report {
            schema: SCHEMA,
            version: VERSION,
            started: "2026-01-02T03:04:05Z".to_owned(),
            coracle: "0",
            complete: false,
            interrupted: false,
            image: "x<y>&\"z\"".to_owned(),
            image_id: "sha256:00".to_owned(),
            command: vec!["echo".to_owned(), "ready".to_owned()],
            runs: 10,
            warm_up: 2,
            seed: 1,
            host: Machine::look(),
            backends,
            baseline: None,
            waterfall: Vec::new(),
            comparison: None,
            cold_caches: false,
            http: None,
            networked: false,
            notes: Vec::new(),
        };
        for one in report.backends.iter_mut().filter(|one| !one.samples.is_empty()) {
            let sample = one.samples.iter().find(|run| !run.warm_up).map(|run| Sample {
                ready_ns: run.ready_ns,
                first_byte_ns: run.first_byte_ns,
                ..Sample::default()
            });
            one.counted = vec![Counted::of(2, &sample.unwrap_or_default(), [Some(900), Some(0), Some(0), Some(7)])];
            one.weight = Some(Weight { settled: 5 << 20, peak: 6 << 20 });
        }
        report.evaluate(&boots);
        for one in report.backends.iter_mut().filter(|one| !one.is_boot && !one.samples.is_empty()) {
            let burst = |all_ns| Burst { all_ns, starts_ns: vec![20_000_000; 8] };
            one.rates = vec![Rate::of(1, &burst(160_000_000), 1), Rate::of(4, &burst(80_000_000), 1)];
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::testing::report;
    use super::*;

    fn named<'a>(report: &'a Report, name: &str) -> &'a Outcome {
        report.backends.iter().find(|one| one.name == name).unwrap()
    }

    #[test]
    fn warm_up_does_not_count_and_the_quickest_container_is_the_base() {
        let report = report();
        assert!(report.complete);
        assert_eq!(report.baseline, Some("crun"));
        let vm = named(&report, "vm");
        assert_eq!((vm.first_byte.as_ref().unwrap().n, vm.samples.len()), (10, 12));
        let ratio = vm.ratio.unwrap();
        assert!((ratio.ratio - 8.0).abs() < 0.01 && ratio.told_apart, "{ratio:?}");
        assert!(!named(&report, "podman").ratio.unwrap().told_apart);
        assert!(report.notes.contains(
            &"podman and crun cannot be told apart: their intervals overlap, or runs are too few.".to_owned()
        ));
        // A boot is compared with a boot only.
        let vmm = named(&report, "vmm").ratio.unwrap();
        assert!((vmm.ratio - 120.0 / 140.0).abs() < 0.01, "{vmm:?}");
        assert_eq!(named(&report, "qemu-microvm").ratio, None);
    }

    #[test]
    fn what_failed_or_is_cut_short_is_said() {
        let mut report = report();
        assert!(report.notes.contains(&"runc: not measured: it is not <installed>".to_owned()), "{:?}", report.notes);
        assert!(!report.notes.iter().any(|note| note.contains("noisy")));
        report.interrupted = true;
        let slow = report.backends[0].samples.iter_mut().skip(8);
        slow.for_each(|run| run.first_byte_ns = run.first_byte_ns.map(|ns| 3 * ns));
        report.evaluate(&[]);
        assert!(report.notes.iter().any(|note| note.starts_with("vm: noisy")), "{:?}", report.notes);
        for one in &mut report.backends {
            one.samples.truncate(4);
        }
        report.evaluate(&[]);
        assert!(!report.complete && report.notes.iter().any(|note| note.starts_with("Interrupted")));
        assert_eq!(named(&report, "vm").first_byte.as_ref().unwrap().n, 2);
    }

    #[test]
    fn milestones_that_all_runs_have_are_stages() {
        let trace = |a: u64, more: &str| vec![("a".to_owned(), a), (more.to_owned(), 50), ("b".to_owned(), 90)];
        let steps = stages(&[trace(10, "x"), trace(30, "y"), trace(20, "x")]);
        let steps: Vec<_> = steps.iter().map(|step| (step.stage.as_str(), step.wall_ns)).collect();
        assert_eq!(steps, [("a", 20), ("b", 90)]);
        assert!(stages(&[]).is_empty());
    }

    #[test]
    fn stages_are_in_order_and_csv_has_each_run() {
        let report = report();
        let stages: Vec<&str> = report.waterfall.iter().map(|step| step.stage.as_str()).collect();
        assert_eq!(stages, ["process start", "agent ready", "program running"]);
        assert_eq!(report.csv().lines().count(), 1 + 6 * 12 + 6);
        assert!(report.csv().lines().all(|line| line.matches(',').count() == 11));
    }
}
