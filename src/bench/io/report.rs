// SPDX-License-Identifier: Apache-2.0
//! What the benchmark of disks, networks and servers found, as `--format json` prints it; `docs/benchmark.md` describes
//! the fields.

use std::fmt::Write;

use serde::Serialize;

use super::super::backend::Kind;
use super::super::machine::Machine;
use super::super::report::state;
use super::super::statistics::{NOISY, Ratio, Summary};
use super::super::svg::time;
use super::workload::{Unit, Workload};

/// Names the schema.
pub const SCHEMA: &str = "coracle-bench-io";
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
    /// Whether all that works has all the runs that were asked for.
    pub complete: bool,
    /// Ended by the user before that.
    pub interrupted: bool,
    /// The image as the user named it.
    pub image: String,
    /// Digest of its configuration.
    pub image_id: String,
    /// Runs of each that were asked for.
    pub runs: usize,
    /// Rounds before them that do not count.
    pub warm_up: usize,
    /// Seconds of a run.
    pub seconds: u16,
    /// Bytes of fio's file.
    pub size: u64,
    /// Whether files are opened with `O_DIRECT`.
    pub direct: bool,
    /// Bytes of memory of each sandbox, which has one CPU.
    pub memory: u64,
    /// By which the order, and the bootstrap, were drawn.
    pub seed: u64,
    /// Where.
    pub host: Machine,
    /// The backend that ratios are to.
    pub baseline: &'static str,
    /// What was compared.
    pub backends: Vec<Backend>,
    /// What was measured.
    pub workloads: Vec<Row>,
    /// What must be known of these figures.
    pub notes: Vec<String>,
}

/// One kind of sandbox.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: String,
    /// How it was started.
    pub command: Vec<String>,
    /// Why there are no figures of it; empty where nothing failed.
    pub failed: String,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// One workload in all of them.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// In words.
    pub what: &'static str,
    /// What rates count.
    pub unit: Unit,
    /// In each backend that runs.
    pub cells: Vec<Cell>,
}

/// One workload in one of them.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// Which backend.
    pub backend: &'static str,
    /// The command line, of the last run.
    pub command: Vec<String>,
    /// Why there are no figures, or no more; empty where nothing failed.
    pub failed: String,
    /// Each run.
    pub samples: Vec<Run>,
    /// So much in a second.
    pub rate: Option<Rate>,
    /// Of each run the time that 99 % of its requests did not exceed: the middle one, where the program tells.
    pub p99: Option<Summary>,
    /// Rates, to those of the baseline: more is better.
    pub ratio: Option<Ratio>,
    /// As [`Cell::rate`], in thousandths.
    #[serde(skip)]
    pub summary: Option<Summary>,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// So many thousandths of the unit in a second.
    pub thousandths: u64,
    /// The time that 99 % of the requests did not exceed.
    pub p99_ns: Option<u64>,
}

/// One run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Its round, from 0.
    pub round: usize,
    /// It does not count.
    pub warm_up: bool,
    /// So much in a second.
    pub per_second: f64,
    /// The time that 99 % of the requests did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ns: Option<u64>,
    /// What it was made of.
    #[serde(skip)]
    pub sample: Sample,
}

/// What is said of a rate, in units a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rate {
    /// Number of samples.
    pub n: usize,
    /// The middle one, or between the two in the middle.
    pub median: f64,
    /// In here lies the median with 95 % confidence (bootstrap, percentiles).
    pub ci95: [f64; 2],
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

#[allow(clippy::cast_precision_loss, reason = "a handful of digits is shown")]
fn whole(thousandths: u64) -> f64 {
    thousandths as f64 / 1000.0
}

impl Run {
    /// Of what was seen.
    pub fn of(round: usize, warm_up: bool, sample: Sample) -> Self {
        Self { round, warm_up, per_second: whole(sample.thousandths), p99_ns: sample.p99_ns, sample }
    }
}

impl Rate {
    fn of(summary: &Summary) -> Self {
        Self {
            n: summary.n,
            median: whole(summary.median_ns),
            ci95: summary.ci95_ns.map(whole),
            min: whole(summary.min_ns),
            max: whole(summary.max_ns),
        }
    }
}

impl Row {
    /// One without figures yet.
    pub fn of(workload: &Workload) -> Self {
        Self { name: workload.name, what: workload.what, unit: workload.unit, cells: Vec::new() }
    }

    /// Whether anything was seen.
    pub fn has_figures(&self) -> bool {
        self.cells.iter().any(|cell| cell.summary.is_some())
    }
}

/// Names of the columns of a table, the last of which has the baseline's behind it.
pub const HEAD: [&str; 6] = ["WORKLOAD", "BACKEND", "RATE", "95% CI", "P99", "TO"];

impl Cell {
    fn counted(&self) -> impl Iterator<Item = Sample> {
        self.samples.iter().filter(|run| !run.warm_up).map(|run| run.sample)
    }

    fn column(&self) -> Vec<u64> {
        self.counted().map(|sample| sample.thousandths).collect()
    }

    /// The columns of [`HEAD`], for people.
    pub fn texts(&self, row: &Row) -> [String; HEAD.len()] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "–".to_owned());
        let rate = self.summary.as_ref();
        let interval = |summary: &Summary| {
            let [low, high] = summary.ci95_ns.map(|limit| row.unit.text(limit));
            format!("{low} to {high}")
        };
        [
            row.name.to_owned(),
            self.backend.to_owned(),
            or_none(rate.map(|summary| row.unit.text(summary.median_ns))),
            or_none(rate.map(interval)),
            or_none(self.p99.as_ref().map(|summary| time(summary.median_ns))),
            or_none(self.ratio.as_ref().map(Ratio::judged)),
        ]
    }
}

impl Report {
    /// Sums up the samples: to be called once all are there.
    pub fn evaluate(&mut self) {
        let (seed, baseline, runs) = (self.seed, self.baseline, self.runs);
        for row in &mut self.workloads {
            let base = row.cells.iter().find(|cell| cell.backend == baseline).map(Cell::column).unwrap_or_default();
            for cell in &mut row.cells {
                cell.summary = Summary::of(&cell.column(), seed);
                cell.rate = cell.summary.as_ref().map(Rate::of);
                let p99: Option<Vec<u64>> = cell.counted().map(|sample| sample.p99_ns).collect();
                cell.p99 = p99.and_then(|p99| Summary::of(&p99, seed));
                cell.ratio = (cell.backend != baseline).then(|| Ratio::of(&cell.column(), &base, seed)).flatten();
            }
        }
        let mut tried = self.workloads.iter().flat_map(|row| &row.cells).filter(|cell| cell.failed.is_empty());
        self.complete = !self.interrupted && tried.all(|cell| cell.counted().count() == runs);
        let remarks = self.remarks();
        self.notes.splice(..0, remarks);
    }

    fn remarks(&self) -> Vec<String> {
        let mut notes = vec![format!("{}: {}", self.host.description, self.host.meaning)];
        if self.interrupted {
            notes.push("Interrupted: these are the runs made until then.".to_owned());
        }
        notes.extend(self.host.busy());
        if self.runs < 10 {
            notes.push(format!("{} runs are few: intervals of so small samples are too narrow.", self.runs));
        }
        if self.workloads.iter().any(|row| row.name.starts_with("layer-") || row.name.starts_with("volume-")) {
            notes.push(match self.direct {
                true => "Files are opened with O_DIRECT. A VM's kernel then keeps nothing of them, but what serves its volume on the host does.".to_owned(),
                false => "Files are read and written through the kernel's cache, as most programs do; what is written is synced at the end of each run.".to_owned(),
            });
        }
        for one in &self.backends {
            if !one.failed.is_empty() {
                notes.push(format!("{}: not measured: {}", one.name, one.failed));
            }
            notes.extend(one.notes.iter().map(|note| format!("{}: {note}.", one.name)));
        }
        let (mut noisy, mut alike) = (Vec::new(), Vec::new());
        for (row, cell) in self.workloads.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell))) {
            let named = format!("{} in {}", row.name, cell.backend);
            if !cell.failed.is_empty() {
                let missing = if cell.summary.is_none() { "not measured" } else { "measured until it failed" };
                notes.push(format!("{named}: {missing}: {}", cell.failed));
            }
            if cell.summary.as_ref().and_then(Summary::noise_percent).is_some() {
                noisy.push(named.clone());
            }
            if cell.ratio.is_some_and(|ratio| !ratio.told_apart) {
                alike.push(named);
            }
        }
        if !noisy.is_empty() {
            let noisy = noisy.join(", ");
            notes.push(format!("Noisy, with an interval wider than {NOISY} % of the median: {noisy}."));
        }
        if !alike.is_empty() {
            let alike = alike.join(", ");
            notes.push(format!("Too noisy, or of too few runs, to be told apart from {}: {alike}.", self.baseline));
        }
        notes
    }

    /// All runs, one a line, for a spreadsheet.
    pub fn csv(&self) -> String {
        let mut text = "workload,backend,round,warm_up,per_second,p99_ns\n".to_owned();
        for (row, cell) in self.workloads.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell))) {
            for run in &cell.samples {
                let p99 = run.p99_ns.map(|ns| ns.to_string()).unwrap_or_default();
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{},{},{},{},{:.3},{p99}",
                    row.name, cell.backend, run.round, run.warm_up, run.per_second
                );
            }
        }
        text
    }

    /// What a sandbox is made of, and how it was run, in words.
    pub fn frame(&self) -> String {
        let Self { runs, warm_up, seconds, seed, .. } = self;
        let (memory, size) = (self.memory >> 20, self.size >> 20);
        let direct = if self.direct { ", O_DIRECT" } else { "" };
        format!(
            "{runs} runs of each, {seconds} s long, after {warm_up} to warm up, interleaved, seed {seed}; 1 CPU and \
             {memory} MiB for each; files of {size} MiB{direct}"
        )
    }

    /// How far it has come.
    pub fn state(&self) -> &'static str {
        state(self.complete, self.interrupted)
    }
}

impl Backend {
    /// One of which nothing is known yet.
    pub fn of(kind: Kind) -> Self {
        Self {
            name: kind.name(),
            version: String::new(),
            command: Vec::new(),
            failed: String::new(),
            notes: Vec::new(),
        }
    }
}

/// A report of known figures.
#[cfg(test)]
pub mod testing {
    use super::super::workload::ALL;
    use super::*;

    /// Of two backends and three workloads, the last of which failed in a VM.
    pub fn report() -> Report {
        let run =
            |round: usize, thousandths: u64| Run::of(round, round == 0, Sample { thousandths, p99_ns: Some(20_000) });
        let cell = |backend, thousandths: u64| Cell {
            backend,
            samples: (0..6).map(|round| run(round, thousandths + 1000 * u64::try_from(round).unwrap())).collect(),
            ..Cell::default()
        };
        let chosen = [ALL[0], ALL[2], ALL[10]];
        let mut workloads: Vec<Row> = chosen.iter().map(Row::of).collect();
        for row in &mut workloads {
            row.cells = vec![cell("vm", 1 << 30), cell("container", 4 << 30)];
        }
        workloads[2].cells[0] = Cell { backend: "vm", failed: "<it> is not there".into(), ..Cell::default() };
        let mut report = Report {
            schema: SCHEMA,
            version: VERSION,
            started: "then".into(),
            coracle: "0",
            complete: false,
            interrupted: false,
            image: "<image>".into(),
            image_id: "sha256:0".into(),
            runs: 5,
            warm_up: 1,
            seconds: 3,
            size: 32 << 20,
            direct: false,
            memory: 256 << 20,
            seed: 7,
            host: Machine::look(),
            baseline: "container",
            backends: [Kind::Vm, Kind::Container].map(Backend::of).to_vec(),
            workloads,
            notes: Vec::new(),
        };
        report.evaluate();
        report
    }
}

#[cfg(test)]
mod tests {
    use super::testing::report;
    use super::*;

    #[test]
    fn rates_are_summed_up_without_the_warm_up() {
        let report = report();
        let cell = &report.workloads[0].cells[0];
        let rate = cell.rate.unwrap();
        assert_eq!((rate.n, cell.samples.len()), (5, 6));
        assert!((rate.median - 1_073_744.824).abs() < 1e-6, "{rate:?}");
        let ratio = cell.ratio.unwrap();
        assert!((ratio.ratio - 0.25).abs() < 0.01 && ratio.told_apart, "{ratio:?}");
        assert_eq!(report.workloads[0].cells[1].ratio, None);
        assert_eq!(cell.texts(&report.workloads[0])[2..5], ["1.07 MB/s", "1.07 MB/s to 1.07 MB/s", "20 µs"]);
    }

    #[test]
    fn what_is_missing_is_said_and_the_rest_is_complete() {
        let mut report = report();
        assert!(report.complete && report.state() == "complete");
        let said = |report: &Report, text: &str| report.notes.iter().any(|note| note.contains(text));
        assert!(said(&report, "redis-set in vm: not measured: <it> is not there"), "{:?}", report.notes);
        assert!(said(&report, "5 runs are few") && !said(&report, "Interrupted"));
        assert!(!said(&report, "oisy"), "{:?}", report.notes);
        report.workloads[0].cells[1].samples[1].sample.thousandths = 1;
        report.workloads[0].cells[1].samples[2].sample.thousandths = 1;
        report.workloads[0].cells[0].samples.pop();
        report.interrupted = true;
        report.evaluate();
        assert!(!report.complete && said(&report, "Interrupted"));
        assert!(said(&report, "the median: layer-read in container."), "{:?}", report.notes);
        assert!(said(&report, "apart from container: layer-read in vm."), "{:?}", report.notes);
    }

    #[test]
    fn each_run_is_a_line() {
        let text = report().csv();
        assert_eq!(text.lines().count(), 1 + 6 * 5);
        assert!(text.contains("layer-read,vm,0,true,1073741.824,20000\n"), "{text}");
    }

    #[test]
    fn programs_can_read_it() {
        let json = serde_json::to_value(report()).unwrap();
        let cell = &json["workloads"][0]["cells"][0];
        assert_eq!((&cell["rate"]["n"], &cell["p99"]["medianNs"]), (&5.into(), &20_000.into()));
        assert_eq!((&json["workloads"][0]["unit"], &json["schema"]), (&"bytes/s".into(), &SCHEMA.into()));
    }
}
