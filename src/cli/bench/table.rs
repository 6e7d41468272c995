// SPDX-License-Identifier: Apache-2.0
//! A result for people, on a terminal.

use std::io::{self, Write};

use anstyle::Style;
use coracle::bench::comparison::Change;
use coracle::bench::probes;
use coracle::bench::report::{Outcome, Report, Step, WEIGHT_HEAD, state};
use coracle::bench::statistics::{Ratio, Summary, number};

use super::super::units;
use super::reports::write_notes;

/// Characters of the longest bar.
const BAR: usize = 24;

/// Writes it. Styles are written always: the stream drops them where the terminal or `NO_COLOR` asks for that.
pub fn write(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let bold = Style::new().bold();
    writeln!(out, "{bold}Image{bold:#}    {}, {}", report.image, report.command.join(" "))?;
    writeln!(out, "{bold}Host{bold:#}     {}", report.host.line())?;
    let state = state(report.complete, report.interrupted);
    let warm_up = report.warm_up;
    writeln!(
        out,
        "{bold}Runs{bold:#}     {} of each after {warm_up} to warm up, interleaved, seed {}; {state}",
        report.runs, report.seed
    )?;
    let all = report.backends.iter().filter(|one| one.main().is_some());
    let (boots, starts): (Vec<&Outcome>, Vec<&Outcome>) = all.partition(|one| one.is_boot);
    if !starts.is_empty() {
        let what = match report.http {
            Some(_) => "Start, to the first answer of the server with status 200 (ms)",
            None => "Start, to the first byte on stdout and to the end (ms)",
        };
        writeln!(out, "\n{bold}{what}{bold:#}")?;
        let against = format!("TO {}", report.baseline.unwrap_or("A CONTAINER").to_uppercase());
        let first = if report.http.is_some() { "FIRST 200" } else { "FIRST BYTE" };
        let head = ["BACKEND", first, "95% CI", "P95", "MIN", "END", "CPU", &against, ""];
        let longest = starts.iter().filter_map(|one| one.main()).map(|figure| figure.median_ns).max().unwrap_or(1);
        let main = |one: &Outcome| one.main().map_or(0, |figure| figure.median_ns);
        let row = |one: &&Outcome| {
            let first = one.first_byte.as_ref();
            [
                &[one.name.to_owned()][..],
                &spread(first),
                &[middle(one.exit.as_ref()), middle(one.cpu.as_ref()), ratio(one), bar(main(one), longest)],
            ]
            .concat()
        };
        units::table(out, &head, &starts.iter().map(row).collect::<Vec<_>>())?;
    }
    if !boots.is_empty() {
        writeln!(
            out,
            "\n{bold}Boot alone, to where the guest's agent is ready (ms): not to be compared with containers{bold:#}"
        )?;
        let head = ["BACKEND", "AGENT READY", "95% CI", "P95", "MIN", "CPU", "TO QEMU"];
        let row = |one: &&Outcome| {
            [&[one.name.to_owned()][..], &spread(one.ready.as_ref()), &[middle(one.cpu.as_ref()), ratio(one)]].concat()
        };
        units::table(out, &head, &boots.iter().map(row).collect::<Vec<_>>())?;
    }
    let weighed: Vec<&Outcome> = report.backends.iter().filter(|one| one.has_weight()).collect();
    if !weighed.is_empty() {
        writeln!(
            out,
            "\n{bold}What all processes take while the program sleeps, and ask of the host in one run{bold:#}"
        )?;
        units::table(out, &WEIGHT_HEAD, &weighed.iter().map(|one| one.weight_cells().to_vec()).collect::<Vec<_>>())?;
    }
    let probed = report.backends.iter().filter_map(|one| Some(one.probes?.rows(one.name)));
    let rows: Vec<Vec<String>> = probed.flatten().map(|row| row.to_vec()).collect();
    if !rows.is_empty() {
        writeln!(out, "\n{bold}What measuring adds, with its 95 % interval{bold:#}")?;
        units::table(out, &probes::HEAD, &rows)?;
    }
    for one in report.backends.iter().filter(|one| !one.stages.is_empty()) {
        writeln!(out, "\n{bold}Stages of {}{bold:#}", one.name)?;
        let before = std::iter::once(0).chain(one.stages.iter().map(|step| step.wall_ns));
        let row = |(step, before): (&Step, u64)| {
            let took = step.wall_ns.saturating_sub(before);
            vec![step.stage.clone(), milliseconds(step.wall_ns), milliseconds(took)]
        };
        let rows = one.stages.iter().zip(before).map(row).collect::<Vec<_>>();
        units::table(out, &["STAGE", "AT MS", "TOOK MS"], &rows)?;
    }
    if !report.waterfall.is_empty() {
        writeln!(out, "\n{bold}Stages of coracle-vmm, cold{bold:#}")?;
        let head = ["STAGE", "AT MS", "TOOK MS", "CPU MS", "EXITS", "KERNEL INSTRUCTIONS"];
        let before = std::iter::once(0).chain(report.waterfall.iter().map(|step| step.wall_ns));
        let row = |(step, before): (&Step, u64)| {
            let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
            let took = step.wall_ns.saturating_sub(before);
            let cpu = step.cpu_ns.map_or_else(|| "-".to_owned(), milliseconds);
            vec![
                step.stage.clone(),
                milliseconds(step.wall_ns),
                milliseconds(took),
                cpu,
                count(step.exits),
                count(step.kernel_instructions),
            ]
        };
        units::table(out, &head, &report.waterfall.iter().zip(before).map(row).collect::<Vec<_>>())?;
    }
    let rated: Vec<&Outcome> = report.backends.iter().filter(|one| !one.rates.is_empty()).collect();
    if !rated.is_empty() {
        writeln!(out, "\n{bold}Starts in a second, and the median start, with so many at once{bold:#}")?;
        let mut levels: Vec<usize> = rated.iter().flat_map(|one| one.rates.iter().map(|rate| rate.at_once)).collect();
        levels.sort_unstable();
        levels.dedup();
        let head: Vec<String> = std::iter::once("BACKEND".to_owned())
            .chain(levels.iter().map(|level| format!("{level} AT ONCE")))
            .collect();
        let cell = |one: &&Outcome, level: &usize| {
            let rate = one.rates.iter().find(|rate| rate.at_once == *level);
            rate.map_or_else(
                || "-".to_owned(),
                |rate| format!("{}/s, {}", number(rate.per_second), middle(rate.start.as_ref())),
            )
        };
        let row = |one: &&Outcome| {
            std::iter::once(one.name.to_owned()).chain(levels.iter().map(|level| cell(one, level))).collect()
        };
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        units::table(out, &head, &rated.iter().map(row).collect::<Vec<_>>())?;
    }
    if let Some(comparison) = &report.comparison {
        writeln!(out, "\n{bold}Now to {}{bold:#}", comparison.started)?;
        let row = |one: &Change| vec![one.name.to_owned(), one.ratio.to_string(), one.verdict.to_string()];
        let rows: Vec<_> = comparison.backends.iter().map(row).collect();
        units::table(out, &["BACKEND", "RATIO", ""], &rows)?;
        writeln!(out, "{}", comparison.sentence())?;
        if !comparison.differs.is_empty() {
            writeln!(out, "That was with another {}.", comparison.differs.join(", "))?;
        }
    }
    writeln!(out)?;
    write_notes(&report.notes, out)
}

/// Nanoseconds as milliseconds, with three digits or more.
fn milliseconds(ns: u64) -> String {
    match ns / 1_000_000 {
        whole @ ..10 => format!("{whole}.{:02}", ns / 10_000 % 100),
        whole @ 10..100 => format!("{whole}.{}", ns / 100_000 % 10),
        whole => whole.to_string(),
    }
}

fn middle(figure: Option<&Summary>) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| milliseconds(figure.median_ns))
}

fn spread(figure: Option<&Summary>) -> [String; 4] {
    let Some(figure) = figure else { return ["-"; 4].map(str::to_owned) };
    let [low, high] = figure.ci95_ns.map(milliseconds);
    [
        milliseconds(figure.median_ns),
        format!("{low} to {high}"),
        milliseconds(figure.p95_ns),
        milliseconds(figure.min_ns),
    ]
}

fn ratio(one: &Outcome) -> String {
    one.ratio.as_ref().map_or_else(|| "-".to_owned(), Ratio::judged)
}

/// A bar of this length, where the longest is as long.
pub fn bar(length: u64, longest: u64) -> String {
    let eighths = length.saturating_mul(8 * 24) / longest.max(1);
    let eighths = usize::try_from(eighths).unwrap_or(0).min(8 * BAR);
    let last = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_or_more() {
        for (ns, text) in [(0, "0.00"), (1_234_567, "1.23"), (12_345_678, "12.3"), (9_876_543_210, "9876")] {
            assert_eq!(milliseconds(ns), text);
        }
    }

    #[test]
    fn bars_are_as_long_as_times() {
        let bar = |ns| super::bar(ns, 1000);
        assert_eq!((bar(1000).chars().count(), bar(500).chars().count()), (BAR, BAR / 2));
        assert_eq!((bar(2).as_str(), bar(6).as_str()), ("", "▏"));
    }
}
