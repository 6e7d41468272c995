// SPDX-License-Identifier: Apache-2.0
//! A result against an earlier one: what has become better, worse, or is the same as far as the runs can tell.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::backend::Kind;
use super::report::{Outcome, Report, SCHEMA, VERSION};
use super::statistics::{Ratio, median};

/// Two results whose ratios differ by no more than this, in percent, agree.
const AGREEMENT: f64 = 10.0;

/// What is read of an earlier result.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Earlier {
    schema: String,
    version: u32,
    started: String,
    image_id: String,
    command: Vec<String>,
    #[serde(default)]
    networked: bool,
    http: Option<u16>,
    host: EarlierHost,
    backends: Vec<EarlierBackend>,
}

#[derive(Clone, Debug, Deserialize)]
struct EarlierHost {
    kind: String,
    cpu: String,
    kernel: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EarlierBackend {
    name: String,
    is_boot: bool,
    samples: Vec<EarlierRun>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EarlierRun {
    warm_up: bool,
    ready_ns: Option<u64>,
    first_byte_ns: Option<u64>,
    exit_ns: Option<u64>,
    cpu_ns: Option<u64>,
}

/// Why a file is no result to compare with.
#[derive(Debug, thiserror::Error)]
pub enum EarlierError {
    /// It is no JSON, or another.
    #[error("it is no result of `bench startup --format json`: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another schema.
    #[error("its schema is {0} version {1}, and this release reads {SCHEMA} version {VERSION}")]
    Schema(String, u32),
}

/// What has become of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Quicker.
    Better,
    /// Slower.
    Worse,
    /// They cannot be told apart.
    Same,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Same => "same",
        })
    }
}

/// A result against an earlier one.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// When the earlier one was begun.
    pub started: String,
    /// Whether that was of the same image, command and host.
    pub differs: Vec<&'static str>,
    /// Each backend that both have.
    pub backends: Vec<Change>,
    /// Whether the backends that can be told apart in both are in the same order of their medians.
    pub same_order: bool,
    /// The largest change of a ratio to the quickest container, or of boots to QEMU, in percent.
    pub ratios_differ_percent: f64,
    /// The same of processor time, which says more where the machine was busy; `None` where it is not known.
    pub cpu_ratios_differ_percent: Option<f64>,
    /// Both hold: the order, and each ratio within 10 %.
    pub agrees: bool,
}

/// A backend against its earlier self.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Which.
    pub name: &'static str,
    /// Of the medians, now to then.
    pub ratio: Ratio,
    /// What that means.
    pub verdict: Verdict,
}

impl Earlier {
    /// Reads a result.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn read(text: &[u8]) -> Result<Self, EarlierError> {
        let earlier: Self = serde_json::from_slice(text)?;
        match (earlier.schema.as_str(), earlier.version) {
            (SCHEMA, VERSION) => Ok(earlier),
            (other, version) => Err(EarlierError::Schema(other.to_owned(), version)),
        }
    }

    /// Median of the processor time, of the runs that count.
    fn cpu(&self, name: &str) -> Option<u64> {
        let one = self.backends.iter().find(|one| one.name == name)?;
        let counted = one.samples.iter().filter(|run| !run.warm_up);
        median_of(&counted.map(|run| run.cpu_ns).collect::<Option<Vec<u64>>>()?)
    }

    /// The figure that decides, of the runs that count; as in [`Outcome::main`].
    fn main_column(&self, name: &str) -> Vec<u64> {
        let Some(one) = self.backends.iter().find(|one| one.name == name) else { return Vec::new() };
        let counted = || one.samples.iter().filter(|run| !run.warm_up);
        let of = |figure: fn(&EarlierRun) -> Option<u64>| counted().map(figure).collect::<Option<Vec<u64>>>();
        let column = if one.is_boot { of(|run| run.ready_ns) } else { of(|run| run.first_byte_ns) };
        column.or_else(|| of(|run| run.exit_ns)).unwrap_or_default()
    }
}

impl Comparison {
    /// Puts a report beside an earlier one.
    pub fn of(report: &Report, earlier: &Earlier) -> Self {
        let both: Vec<(&Outcome, Vec<u64>, Vec<u64>)> = report
            .backends
            .iter()
            .map(|one| (one, one.main_column(), earlier.main_column(one.name)))
            .filter(|(_, now, then)| !now.is_empty() && !then.is_empty())
            .collect();
        let change = |(one, now, then): &(&Outcome, Vec<u64>, Vec<u64>)| {
            let ratio = Ratio::of(now, then, report.seed)?;
            let verdict = match ratio {
                Ratio { told_apart: false, .. } => Verdict::Same,
                Ratio { ratio, .. } if ratio < 1.0 => Verdict::Better,
                Ratio { .. } => Verdict::Worse,
            };
            Some(Change { name: one.name, ratio, verdict })
        };
        // Those that the report's own ratios are to.
        let is_base = |name| Some(name) == report.baseline || name == Kind::QemuMicrovm.name();
        let (mut same_order, mut most) = (true, 0.0f64);
        for (at, a) in both.iter().enumerate() {
            for b in both.iter().skip(at + 1).filter(|b| b.0.is_boot == a.0.is_boot) {
                let (Some(now), Some(then)) = (Ratio::of(&a.1, &b.1, report.seed), Ratio::of(&a.2, &b.2, report.seed))
                else {
                    continue;
                };
                if is_base(a.0.name) || is_base(b.0.name) {
                    most = most.max(100.0 * ((now.ratio / then.ratio).max(then.ratio / now.ratio) - 1.0));
                }
                let opposite = (now.ratio < 1.0) != (then.ratio < 1.0);
                // Two that neither run can tell apart have no order.
                same_order &= !(opposite && now.told_apart && then.told_apart);
            }
        }
        let differs = [
            ("image", earlier.image_id != report.image_id),
            ("command", earlier.command != report.command),
            // Results of before it was told have one for servers alone.
            ("network", (earlier.networked || earlier.http.is_some()) != report.networked),
            ("kind of host", earlier.host.kind != report.host.kind),
            ("CPU", earlier.host.cpu != report.host.cpu),
            ("kernel", earlier.host.kernel != report.host.kernel),
        ];
        Self {
            started: earlier.started.clone(),
            differs: differs.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect(),
            backends: both.iter().filter_map(change).collect(),
            same_order,
            ratios_differ_percent: most,
            cpu_ratios_differ_percent: cpu_ratios_differ(report, earlier),
            agrees: same_order && most <= AGREEMENT,
        }
    }

    /// In one sentence.
    pub fn sentence(&self) -> String {
        let order = if self.same_order { "the same order" } else { "another order" };
        let percent = self.ratios_differ_percent;
        let agrees = if self.agrees { "the two agree" } else { "the two do not agree" };
        let cpu = self.cpu_ratios_differ_percent;
        let cpu = cpu.map(|percent| format!(" (of processor time within {percent:.1} %)")).unwrap_or_default();
        format!(
            "Against the result of {}: {order}, ratios of medians within {percent:.1} %{cpu}: {agrees}.",
            self.started
        )
    }
}

/// Names that a result has and the other has not, for who wonders where they are.
pub fn missing<'a>(report: &Report, earlier: &'a Earlier) -> Vec<&'a str> {
    let now: HashSet<&str> = report.backends.iter().filter(|one| one.main().is_some()).map(|one| one.name).collect();
    let then = earlier.backends.iter().filter(|one| median_of(&earlier.main_column(&one.name)).is_some());
    then.map(|one| one.name.as_str()).filter(|name| !now.contains(name)).collect()
}

/// The largest change of a ratio of processor time to the quickest container's, in percent.
#[allow(clippy::cast_precision_loss, reason = "a digit behind the point is shown")]
fn cpu_ratios_differ(report: &Report, earlier: &Earlier) -> Option<f64> {
    let base = report.baseline?;
    let now = |name: &str| report.backends.iter().find(|one| one.name == name)?.cpu.as_ref().map(|cpu| cpu.median_ns);
    let change = |name: &str| {
        let [now, now_base, then, then_base] =
            [now(name)?, now(base)?, earlier.cpu(name)?, earlier.cpu(base)?].map(|ns| ns.max(1) as f64);
        let change = (now / now_base) / (then / then_base);
        Some(100.0 * (change.max(1.0 / change) - 1.0))
    };
    let starts = report.backends.iter().filter(|one| !one.is_boot && one.name != base);
    starts.filter_map(|one| change(one.name)).reduce(f64::max)
}

fn median_of(column: &[u64]) -> Option<u64> {
    (!column.is_empty()).then(|| median(&mut column.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::super::report::testing::report;
    use super::*;

    fn earlier(change: impl Fn(&mut Report)) -> Earlier {
        let mut report = report();
        change(&mut report);
        Earlier::read(serde_json::to_string(&report).unwrap().as_bytes()).unwrap()
    }

    fn slow_down(report: &mut Report, name: &str, percent: u64) {
        let one = report.backends.iter_mut().find(|one| one.name == name).unwrap();
        one.samples.iter_mut().for_each(|run| run.first_byte_ns = run.first_byte_ns.map(|ns| ns * percent / 100));
    }

    #[test]
    fn a_result_agrees_with_itself() {
        let comparison = Comparison::of(&report(), &earlier(|_| {}));
        assert!(comparison.agrees && comparison.ratios_differ_percent < 0.001, "{comparison:?}");
        assert!(comparison.cpu_ratios_differ_percent.is_some_and(|percent| percent < 0.001), "{comparison:?}");
        assert!(comparison.differs.is_empty());
        assert!(comparison.backends.iter().all(|one| one.verdict == Verdict::Same), "{comparison:?}");
        assert_eq!(comparison.backends.len(), 6);
        assert!(missing(&report(), &earlier(|_| {})).is_empty());
    }

    #[test]
    fn what_has_changed_is_better_or_worse() {
        let verdict = |comparison: &Comparison, name: &str| {
            comparison.backends.iter().find(|one| one.name == name).map(|one| one.verdict)
        };
        let comparison = Comparison::of(&report(), &earlier(|report| slow_down(report, "vm", 150)));
        assert_eq!(
            (verdict(&comparison, "vm"), verdict(&comparison, "crun")),
            (Some(Verdict::Better), Some(Verdict::Same))
        );
        assert!(comparison.same_order && !comparison.agrees, "{comparison:?}");
        assert!((comparison.ratios_differ_percent - 50.0).abs() < 1.0);
        assert!(comparison.cpu_ratios_differ_percent.is_some_and(|percent| percent < 0.001), "only its times differ");
        let doubled = |report: &mut Report| {
            let vm = report.backends.iter_mut().find(|one| one.name == "vm").unwrap();
            vm.samples.iter_mut().for_each(|run| run.cpu_ns = run.cpu_ns.map(|ns| ns * 2));
        };
        let comparison = Comparison::of(&report(), &earlier(doubled));
        assert!(comparison.agrees, "processor time does not decide: {comparison:?}");
        assert!(comparison.cpu_ratios_differ_percent.is_some_and(|percent| (percent - 100.0).abs() < 0.1));
        let comparison = Comparison::of(&report(), &earlier(|report| slow_down(report, "vm", 5)));
        assert_eq!(verdict(&comparison, "vm"), Some(Verdict::Worse));
        assert!(!comparison.same_order, "{comparison:?}");
        let comparison = Comparison::of(&report(), &earlier(|report| report.image_id = "sha256:11".to_owned()));
        assert_eq!(comparison.differs, ["image"]);
        let comparison = Comparison::of(&report(), &earlier(|report| report.networked = true));
        assert_eq!(comparison.differs, ["network"]);
        let served = Comparison::of(&Report { networked: true, ..report() }, &earlier(|report| report.http = Some(80)));
        assert!(served.differs.is_empty(), "{served:?}");
    }

    #[test]
    fn other_files_are_no_results() {
        for text in ["", "{}", "[]", "{\"schema\":\"x\"}"] {
            assert!(Earlier::read(text.as_bytes()).is_err(), "{text}");
        }
        let other = serde_json::to_string(&report()).unwrap().replace("coracle-bench-startup", "coracle-bench-other");
        assert!(matches!(Earlier::read(other.as_bytes()), Err(EarlierError::Schema(..))));
    }
}
