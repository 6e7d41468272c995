// SPDX-License-Identifier: Apache-2.0
//! What the benchmark of density found, as `--format json` prints it; `docs/benchmark.md` describes the fields.

use std::fmt::Write;

use serde::Serialize;

use super::super::html::{END, facts, head};
use super::super::machine::Machine;
use super::super::report::mib;
use super::super::statistics::rank;
use super::super::svg::{ecdf, escape, time};
use crate::supervisor::footprint::Footprint;

/// Names the schema.
pub const SCHEMA: &str = "coracle-bench-density";
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
    /// When, in UTC.
    pub began: String,
    /// Version of Coracle.
    pub coracle: &'static str,
    /// The image as the user named it.
    pub image: String,
    /// What each container ran.
    pub command: Vec<String>,
    /// Words of `coracle run` that were not the same for everybody.
    pub flags: Vec<String>,
    /// Started at the same time.
    pub at_once: usize,
    /// Ended by the user.
    pub interrupted: bool,
    /// Why there were no more.
    pub stopped: String,
    /// Bytes of memory that the host had left before the first.
    pub available_before: u64,
    /// Where.
    pub host: Machine,
    /// Each container, in the order of their starts.
    pub started: Vec<Started>,
    /// All containers, looked at as they became more.
    pub steps: Vec<Step>,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// How many there were before.
    pub number: usize,
    /// From just before `coracle run --detach` was started to its end, which is when the program runs.
    pub ready_ns: u64,
}

/// All containers at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// So many there are.
    pub containers: usize,
    /// So many of them answer: their agents, over vsock.
    pub answering: usize,
    /// Of those that were started since the last step: the middle one's time.
    pub ready_p50_ns: u64,
    /// And the time that 99 % of them did not exceed (nearest rank).
    pub ready_p99_ns: u64,
    /// So many of them were started in a second.
    pub per_second: f64,
    /// Bytes that a container takes (PSS of all its processes), on average.
    pub pss: u64,
    /// Bytes of that outside the guest's memory, on average.
    pub overhead: u64,
    /// Bytes that the host has less since before the first, divided among them: with what the kernel needs for them.
    pub host: u64,
}

impl Step {
    /// Of `containers`, of which those with these times are new and were started in `took_ns`.
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn new(containers: usize, ready: &[u64], took_ns: u64, answering: usize, all: Footprint, host: u64) -> Self {
        let mut sorted = ready.to_vec();
        sorted.sort_unstable();
        let of = |thousandths| if sorted.is_empty() { 0 } else { rank(&sorted, thousandths) };
        let each = |bytes: u64| bytes / u64::try_from(containers.max(1)).unwrap_or(u64::MAX);
        Self {
            containers,
            answering,
            ready_p50_ns: of(500),
            ready_p99_ns: of(990),
            per_second: ready.len() as f64 * 1e9 / took_ns.max(1) as f64,
            pss: each(all.proportional()),
            overhead: each(all.overhead.proportional),
            host: each(host),
        }
    }
}

impl Report {
    /// Each start on a line, for a spreadsheet.
    pub fn csv(&self) -> String {
        let lines = self.started.iter().map(|one| format!("{},{}\n", one.number, one.ready_ns));
        std::iter::once("number,ready_ns\n".to_owned()).chain(lines).collect()
    }

    /// A page that needs nothing else.
    pub fn page(&self) -> String {
        let mut page = head(&format!("Density of {}", self.image), "");
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "<p><code>{}</code> · {} containers; {}; on {}</p>",
            escape(&self.command.join(" ")),
            self.started.len(),
            escape(&self.stopped),
            escape(&self.host.description)
        );
        let _ = write!(page, "<h2>As they become more</h2><div class=\"wide\"><table><thead><tr>");
        HEAD.iter().for_each(|name| _ = write!(page, "<th>{name}</th>"));
        page += "</tr></thead><tbody>";
        for step in &self.steps {
            let cells: String = step.cells().iter().map(|cell| format!("<td>{cell}</td>")).collect();
            let _ = write!(page, "<tr>{cells}</tr>");
        }
        page += "</tbody></table></div>";
        let names: Vec<_> = self.steps.iter().map(|step| format!("up to {}", step.containers)).collect();
        let mut from = 0;
        let rows = self.steps.iter().zip(&names).enumerate().map(|(at, (step, name))| {
            let times =
                self.started.get(from..step.containers).unwrap_or_default().iter().map(|one| one.ready_ns).collect();
            from = step.containers;
            (name.as_str(), at % 7, times)
        });
        let rows: Vec<(&str, usize, Vec<u64>)> = rows.filter(|row: &(_, _, Vec<u64>)| !row.2.is_empty()).collect();
        if !rows.is_empty() {
            let keys: String =
                rows.iter().map(|(name, at, _)| format!("<span><i class=\"key k{at}\"></i>{name}</span>")).collect();
            let plot = ecdf("Distribution of starts", &rows);
            let _ = write!(
                page,
                "<h2>Every start</h2><figure>{plot}<figcaption>Part of the containers that were ready by then.\
                 <div class=\"legend\">{keys}</div></figcaption></figure>"
            );
        }
        let [machine, load] = self.host.facts();
        let begun = format!("Coracle {}, {}; {} started at once", self.coracle, self.began, self.at_once);
        page + &facts("How it was measured", &[begun, machine, load, self.host.meaning.to_owned()]) + END
    }
}

/// What the columns of a table of steps are.
pub const HEAD: [&str; 8] = ["CONTAINERS", "ANSWER", "READY P50", "READY P99", "PER SECOND", "PSS", "OVERHEAD", "HOST"];

impl Step {
    /// The columns, for people.
    pub fn cells(&self) -> [String; 8] {
        [
            self.containers.to_string(),
            self.answering.to_string(),
            time(self.ready_p50_ns),
            time(self.ready_p99_ns),
            format!("{:.1}", self.per_second),
            mib(self.pss),
            mib(self.overhead),
            mib(self.host),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::footprint::Bytes;

    fn report() -> Report {
        let bytes = |proportional| Bytes { proportional, ..Bytes::default() };
        let all = Footprint { guest: bytes(30 << 20), overhead: bytes(6 << 20) };
        let ready: Vec<u64> = (1..=3).map(|n| n * 1_000_000).collect();
        Report {
            schema: SCHEMA,
            version: VERSION,
            began: "then".into(),
            coracle: "0",
            image: "<image>".into(),
            command: vec!["sleep".into()],
            flags: Vec::new(),
            at_once: 2,
            interrupted: false,
            stopped: "enough".into(),
            available_before: 1 << 30,
            host: Machine::look(),
            started: ready.iter().zip(0..).map(|(&ready_ns, number)| Started { number, ready_ns }).collect(),
            steps: vec![Step::new(3, &ready, 1_500_000_000, 3, all, 33 << 20)],
        }
    }

    #[test]
    fn a_step_is_of_all_and_its_times_of_the_new_ones() {
        let step = &report().steps[0];
        let cells = ["3", "3", "2.00 ms", "3.00 ms", "2.0", "12.00 MiB", "2.00 MiB", "11.00 MiB"];
        assert_eq!(step.cells(), cells);
        assert_eq!(Step::new(0, &[], 0, 0, Footprint::default(), 5).host, 5);
    }

    #[test]
    fn it_is_written_in_each_way() {
        let report = report();
        assert_eq!(report.csv(), "number,ready_ns\n0,1000000\n1,2000000\n2,3000000\n");
        let page = report.page();
        assert!(page.contains("&lt;image&gt;") && page.ends_with("</html>\n") && page.contains("up to 3"), "{page}");
        assert_eq!(page.matches("<td>").count(), HEAD.len());
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["steps"][0]["readyP99Ns"], &json["schema"]), (&3_000_000.into(), &SCHEMA.into()));
    }
}
