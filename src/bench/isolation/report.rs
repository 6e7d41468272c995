// SPDX-License-Identifier: Apache-2.0
//! What was found, for programs (JSON, CSV), and what must be known of it.

use std::fmt::Write;

use serde::Serialize;

use super::super::machine::Machine;
use super::catalogue::Group;
use super::judge::Verdict;
use super::launch::Kind;
use super::neighbour::Effect;

/// What kind of document it is.
pub const SCHEMA: &str = "coracle-bench-isolation";
/// Raised when a field changes its meaning or goes, not when one is added.
pub const VERSION: u32 = 1;

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// [`VERSION`].
    pub version: u32,
    /// When, in UTC.
    pub started: String,
    /// Version of Coracle.
    pub coracle: &'static str,
    /// Each sandbox that works has all its cells.
    pub complete: bool,
    /// The user ended it.
    pub interrupted: bool,
    /// The machine.
    pub host: Machine,
    /// The sandboxes.
    pub backends: Vec<Sandbox>,
    /// What was looked for.
    pub probes: Vec<Row>,
    /// What must be known, in sentences.
    pub notes: Vec<String>,
}

/// A kind of sandbox, and whether it works here.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Why it gave nothing, or not all; else empty.
    pub failed: String,
    /// What it says of its version.
    pub version: String,
    /// How it was started.
    pub command: Vec<String>,
}

impl Sandbox {
    /// One of which nothing is known yet.
    pub fn of(kind: Kind) -> Self {
        Self { name: kind.name(), what: kind.what(), ..Self::default() }
    }
}

/// A probe, and what it found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub group: Group,
    /// What it tries.
    pub tries: String,
    /// What it means for a tenant where it is shared.
    pub means: String,
    /// Whether it finds what there is to be found.
    pub control: Control,
    /// A cell for each sandbox that was looked at.
    pub cells: Vec<Cell>,
}

/// The same where it must find sharing: on the host, or within one sandbox.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Control {
    /// It did. Else nothing can be said of sandboxes either.
    pub found: bool,
    /// What was seen.
    pub seen: String,
}

/// What it is in one sandbox.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// Which.
    pub backend: &'static str,
    /// What that is worth.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// For neighbours: times of those beside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<Effect>,
}

impl Report {
    /// Draws what conclusions there are.
    pub fn evaluate(&mut self) {
        let whole = |one: &Sandbox| {
            !one.failed.is_empty()
                || self.probes.iter().all(|row| row.cells.iter().any(|cell| cell.backend == one.name))
        };
        self.complete = !self.interrupted && self.backends.iter().all(whole);
        let mut notes = Vec::new();
        if self.interrupted {
            notes.push("It was interrupted: what follows is what there was until then.".to_owned());
        }
        let skipped = self.backends.iter().filter(|one| !one.failed.is_empty());
        notes.extend(skipped.map(|one| format!("{} was left out, or broke off: {}", one.name, one.failed)));
        let void: Vec<&str> =
            self.probes.iter().filter(|row| !row.control.found).map(|row| row.name.as_str()).collect();
        if !void.is_empty() {
            notes.push(format!(
                "The controls of {} found nothing on this host itself (no such thing here, or not for root): nothing is \
                 said of sandboxes.",
                void.join(", ")
            ));
        }
        if self.probes.iter().any(|row| row.group == Group::Reached) {
            notes.push(
                "What reaches a kernel of its own is isolated from the host, whatever that kernel allows; what the host's \
                 kernel refuses is limited, since only that check stands between."
                    .to_owned(),
            );
        }
        self.notes = notes;
    }

    /// How many cells of a sandbox have this verdict.
    pub fn count(&self, backend: &str, verdict: Verdict) -> usize {
        let cells = self.probes.iter().flat_map(|row| &row.cells);
        cells.filter(|cell| cell.backend == backend && cell.verdict == verdict).count()
    }

    /// A line for each cell.
    pub fn csv(&self) -> String {
        let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\"").replace(['\n', '\r'], " "));
        let mut text = "probe,group,backend,verdict,control,seen\n".to_owned();
        for row in &self.probes {
            let group = serde_json::to_string(&row.group).unwrap_or_default().replace('"', "");
            for cell in &row.cells {
                let (name, word) = (&row.name, cell.verdict.word());
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{name},{group},{},{word},{},{}",
                    cell.backend,
                    row.control.found,
                    quote(&cell.seen)
                );
            }
        }
        text
    }
}

#[cfg(test)]
pub mod testing {
    //! A report to be shown.

    use super::*;

    /// Two probes, two sandboxes; one control found nothing.
    pub fn report() -> Report {
        let row = |name: &str, found, verdicts: [Verdict; 2]| Row {
            name: name.to_owned(),
            group: Group::Shared,
            tries: "looks".to_owned(),
            means: "tells".to_owned(),
            control: Control { found, seen: "<b>".to_owned() },
            cells: ["vm", "container"]
                .into_iter()
                .zip(verdicts)
                .map(|(backend, verdict)| Cell { backend, verdict, seen: "say \"x\"\n".to_owned(), neighbour: None })
                .collect(),
        };
        let mut report = Report {
            schema: SCHEMA,
            version: VERSION,
            started: "2026-01-01T00:00:00Z".to_owned(),
            coracle: "0",
            complete: false,
            interrupted: false,
            host: Machine::look(),
            backends: vec![Sandbox::of(Kind::Vm), Sandbox::of(Kind::Container)],
            probes: vec![
                row("boot-id", true, [Verdict::Isolated, Verdict::Shared]),
                row("kexec", false, [Verdict::Unknown; 2]),
            ],
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
    fn it_says_what_is_not_all_and_what_is_void() {
        let mut report = report();
        assert!(report.complete);
        assert!(
            report.notes.iter().any(|note| note.contains("kexec") && !note.contains("boot-id")),
            "{:?}",
            report.notes
        );
        report.probes[0].cells.pop();
        report.evaluate();
        assert!(!report.complete);
        "not installed".clone_into(&mut report.backends[1].failed);
        report.interrupted = true;
        report.evaluate();
        assert!(!report.complete && report.notes.iter().any(|note| note.contains("not installed")));
    }

    #[test]
    fn each_cell_is_a_line() {
        let report = report();
        let csv = report.csv();
        assert_eq!(csv.lines().count(), 1 + 4);
        assert!(csv.contains("boot-id,shared,container,shared,true,\"say \"\"x\"\" \"\n"), "{csv}");
        assert_eq!((report.count("vm", Verdict::Isolated), report.count("vm", Verdict::Unknown)), (1, 1));
    }
}
