// SPDX-License-Identifier: Apache-2.0
//! A report as one page that needs nothing else: no script, no network.

use std::fmt::Write;

use super::super::html::{END, facts, head, notes};
use super::super::svg::escape;
use super::catalogue::Group;
use super::judge::Verdict;
use super::report::{Cell, Report, Row};

/// What the matrix adds to the style of all pages. Signs tell verdicts apart without colour too.
const MORE: &str = "\
:root{--good:#00734d;--part:#8a6100;--bad:#b3401d}\
@media(prefers-color-scheme:dark){:root{--good:#2fc79a;--part:#e6b84a;--bad:#f0803c}}\
.matrix{width:100%}.matrix td,.matrix th{white-space:normal;text-align:center;vertical-align:top;padding:.3rem .25rem}\
.matrix th:first-child,.matrix td:first-child{text-align:left}.matrix th:not(:first-child){width:4.2rem;font-size:.72rem;overflow-wrap:normal}\
.isolated{color:var(--good)}.limited{color:var(--part)}.shared{color:var(--bad)}.unknown{color:var(--dim)}\
.sign{font-weight:700;font-size:1.1rem}details summary{cursor:pointer;font-family:ui-monospace,monospace;font-size:.8rem}\
details dl{margin:.3rem 0 .6rem;font-size:.8rem}details dt{color:var(--dim)}details dd{margin:0 0 .3rem}\
.b-isolated{fill:var(--good)}.b-limited{fill:var(--part)}.b-shared{fill:var(--bad)}.b-unknown{fill:var(--rule)}";

/// All verdicts, in the order of bars.
const VERDICTS: [Verdict; 4] = [Verdict::Isolated, Verdict::Limited, Verdict::Shared, Verdict::Unknown];

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = head("Isolation: VM against container", MORE);
    // Writing to a String cannot fail.
    let _ = write!(page, "<p>{}</p>", escape(&headline(report)));
    page += &bars(report);
    for group in Group::ALL {
        let rows: Vec<&Row> = report.probes.iter().filter(|row| row.group == group).collect();
        if !rows.is_empty() {
            let _ = write!(page, "<h2>{}</h2>{}", group.title(), matrix(report, &rows));
        }
    }
    page += &notes(&report.notes);
    page += &circumstances(report);
    page + END
}

fn headline(report: &Report) -> String {
    let total = report.probes.iter().filter(|row| row.control.found).count();
    let parts: Vec<String> = report
        .backends
        .iter()
        .filter(|one| one.failed.is_empty())
        .map(|one| format!("{}: {} isolated", one.name, report.count(one.name, Verdict::Isolated)))
        .collect();
    let state = if report.interrupted { " Interrupted: this is not all." } else { "" };
    format!("Of {total} probes that found what there is on the host itself: {}.{state}", parts.join(", "))
}

/// How many of each verdict, for each sandbox.
fn bars(report: &Report) -> String {
    const ROW: usize = 36;
    let width = 340.0;
    let mut svg = format!(
        "<figure><svg role=\"img\" viewBox=\"0 0 340 {}\"><title>Verdicts</title>",
        ROW * report.backends.len()
    );
    let whole = f64::from(u32::try_from(report.probes.len().max(1)).unwrap_or(u32::MAX));
    for (at, one) in report.backends.iter().enumerate() {
        let counts = VERDICTS.map(|verdict| (verdict, report.count(one.name, verdict)));
        let words: Vec<String> = counts
            .iter()
            .filter(|(_, count)| *count > 0)
            .map(|(verdict, count)| format!("{} {count}", verdict.sign()))
            .collect();
        let label = format!("{}: {}", one.name, if words.is_empty() { "nothing".to_owned() } else { words.join("  ") });
        let _ = write!(svg, r#"<text x="0" y="{}">{}</text>"#, at * ROW + 13, escape(&label));
        let mut x = 0.0;
        for (verdict, count) in counts {
            let part = f64::from(u32::try_from(count).unwrap_or(0)) / whole * width;
            let class = verdict.word();
            let _ = write!(
                svg,
                r#"<rect class="b-{class}" x="{x:.1}" y="{}" width="{part:.1}" height="13"/>"#,
                at * ROW + 18
            );
            x += part;
        }
    }
    svg + "</svg><figcaption>✓ isolated, ~ limited, ✗ shared, ? nothing can be said.</figcaption></figure>"
}

fn matrix(report: &Report, rows: &[&Row]) -> String {
    let mut text = "<table class=\"matrix\"><thead><tr><th>Probe</th>".to_owned();
    report.backends.iter().for_each(|one| _ = write!(text, "<th>{}</th>", escape(one.name)));
    text += "</tr></thead><tbody>";
    for row in rows {
        let _ = write!(text, "<tr><td>{}</td>", details(row));
        for one in &report.backends {
            text +=
                &row.cells.iter().find(|cell| cell.backend == one.name).map_or_else(|| "<td>–</td>".to_owned(), sign);
        }
        text += "</tr>";
    }
    text + "</tbody></table>"
}

fn sign(cell: &Cell) -> String {
    let (word, sign) = (cell.verdict.word(), cell.verdict.sign());
    format!("<td class=\"{word}\"><span class=\"sign\" role=\"img\" aria-label=\"{word}\">{sign}</span></td>")
}

fn details(row: &Row) -> String {
    let found = if row.control.found { "found" } else { "found nothing" };
    let mut text = format!("<details><summary>{}</summary><dl>", escape(&row.name));
    let mut item = |name: &str, value: &str| {
        let value: String = value.chars().take(400).collect();
        let _ = write!(text, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(&value));
    };
    item("tries", &row.tries);
    item("if shared", &row.means);
    item("control", &format!("{found}: {}", row.control.seen));
    for cell in &row.cells {
        item(cell.backend, &format!("{}: {}", cell.verdict.word(), cell.seen));
    }
    text + "</dl></details>"
}

fn circumstances(report: &Report) -> String {
    let host = &report.host;
    let [machine, load] = host.facts();
    let mut facts = vec![format!("Coracle {}, {}", report.coracle, report.started), machine, load];
    facts.extend(report.backends.iter().filter(|one| !one.command.is_empty()).map(|one| {
        // What is given to the probe is of no use to the reader.
        let words = one.command.iter().take_while(|word| *word != "look").cloned().collect::<Vec<_>>();
        format!("{}: {}; {}: {}", one.name, one.what, one.version, words.join(" "))
    }));
    self::facts("How it was looked at", &facts)
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
        assert!(page.contains("prefers-color-scheme:dark") && page.contains("width=device-width"));
        assert!(page.contains("&lt;b&gt;") && !page.contains("<b>"));
        assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
        assert!(page.contains("vm: 1 isolated, container: 0 isolated"), "{}", headline(&report()));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn a_report_of_nothing_is_a_page_too() {
        let mut report = report();
        (report.probes, report.backends) = (Vec::new(), Vec::new());
        assert!(page(&report).ends_with("</html>\n"));
    }
}
