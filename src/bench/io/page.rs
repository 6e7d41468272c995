// SPDX-License-Identifier: Apache-2.0
//! A report as one page that needs nothing else: no script, no network, plots as SVG.

use std::fmt::Write;

use super::super::html::{END, facts, head, key, notes, plain_table};
use super::super::statistics::{Summary, times};
use super::super::svg::{bars_of, escape};
use super::report::{HEAD, Report, Row};
use super::workload::Unit;

/// What the plots are divided into: the beginning of names, and a title.
const GROUPS: [(&str, &str); 4] = [
    ("layer-", "Files on the root's writable layer"),
    ("volume-", "Files on a volume"),
    ("net-", "Network"),
    ("redis-", "A server behind a published port"),
];

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = head("Files, network and servers: VM against container", "");
    // Writing to a String cannot fail.
    let _ = write!(page, "<p>{}</p>", escape(&headline(report)));
    let keys: String = report.backends.iter().enumerate().map(|(at, one)| key(one.name, at)).collect();
    let _ = write!(page, "<p class=\"legend\">{keys}</p>");
    for (prefix, title) in GROUPS {
        let rows: Vec<&Row> = report.workloads.iter().filter(|row| row.name.starts_with(prefix)).collect();
        if rows.iter().any(|row| row.has_figures()) {
            let _ = write!(page, "<h2>{title}</h2>");
            rows.iter().filter(|row| row.has_figures()).for_each(|row| page += &plot(report, row));
        }
    }
    page += &table(report);
    page += &notes(&report.notes);
    page += &circumstances(report);
    page + END
}

/// The result in one sentence: how far from the baseline it goes.
fn headline(report: &Report) -> String {
    let cells = report.workloads.iter().flat_map(|row| row.cells.iter().map(move |cell| (row.name, cell)));
    let of_vm = cells.filter(|(_, cell)| cell.backend == "vm").filter_map(|(name, cell)| Some((name, cell.ratio?)));
    let mut ratios: Vec<_> = of_vm.collect();
    ratios.sort_by(|a, b| a.1.ratio.total_cmp(&b.1.ratio));
    let (kind, base) = (&report.host.kind, report.baseline);
    match (ratios.first(), ratios.last()) {
        (Some((worst, least)), Some((best, most))) => format!(
            "In a second vm does from {} times ({worst}) to {} times ({best}) of what {base} does, on {kind}.",
            times(least.ratio),
            times(most.ratio)
        ),
        _ => format!("No VM was compared with {base}, on {kind}."),
    }
}

fn plot(report: &Report, row: &Row) -> String {
    let class = |name| report.backends.iter().position(|one| one.name == name).unwrap_or(0);
    let bars: Vec<(&str, usize, &Summary)> =
        row.cells.iter().filter_map(|cell| Some((cell.backend, class(cell.backend), cell.summary.as_ref()?))).collect();
    let text = match row.unit {
        Unit::Bytes => |rate| Unit::Bytes.text(rate),
        Unit::Requests => |rate| Unit::Requests.text(rate),
    };
    let plot = bars_of(row.name, &bars, text);
    let unit = if row.unit == Unit::Bytes { "Bytes" } else { "Requests" };
    format!(
        "<figure>{plot}<figcaption>{}: {}. {unit} in a second, more is better; median and its 95 % interval.\
         </figcaption></figure>",
        row.name, row.what
    )
}

fn table(report: &Report) -> String {
    let against = format!("TO {}", report.baseline.to_uppercase());
    let [names @ .., _] = HEAD;
    let cells = report.workloads.iter().flat_map(|row| row.cells.iter().map(move |cell| (row, cell)));
    let shown = cells.filter(|(_, cell)| cell.summary.is_some());
    let rows: Vec<Vec<String>> = shown.map(|(row, cell)| cell.texts(row).to_vec()).collect();
    format!("<h2>Figures</h2>{}", plain_table(&[&names[..], &[&against]].concat(), &rows))
}

fn circumstances(report: &Report) -> String {
    let [machine, load] = report.host.facts();
    let mut all = vec![
        format!("Coracle {}, {}, {}", report.coracle, report.started, report.state()),
        format!("{} ({})", report.image, report.image_id),
        machine,
        load,
        report.frame(),
    ];
    let started = report.backends.iter().filter(|one| !one.command.is_empty());
    all.extend(started.map(|one| format!("{}: {}: {}", one.name, one.version, one.command.join(" "))));
    let last = |row: &Row| row.cells.iter().find(|cell| !cell.command.is_empty()).map(|cell| cell.command.join(" "));
    all.extend(report.workloads.iter().filter_map(|row| Some(format!("{}: {}", row.name, last(row)?))));
    facts("How it was measured", &all)
}

#[cfg(test)]
mod tests {
    use super::super::report::testing::report;
    use super::*;

    #[test]
    fn the_page_needs_nothing_else_and_what_comes_from_outside_is_text() {
        let page = page(&report());
        for external in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "src=", "href="] {
            assert!(!page.contains(external), "{external}");
        }
        assert!(page.contains("&lt;image&gt;") && page.contains("&lt;it&gt;") && !page.contains("<it>"));
        assert_eq!((page.matches("<svg").count(), page.matches("</svg>").count()), (3, 3));
        assert_eq!(page.matches("<tr>").count(), 1 + 5);
        assert!(page.contains("vm does from 0.25 times (layer-read) to"), "{}", headline(&report()));
        assert!(!page.contains("NaN") && !page.contains("inf") && page.ends_with("</html>\n"));
    }

    #[test]
    fn a_report_of_nothing_is_a_page_too() {
        let mut report = report();
        (report.workloads, report.backends) = (Vec::new(), Vec::new());
        assert!(page(&report).contains("No VM was compared with container"));
    }
}
