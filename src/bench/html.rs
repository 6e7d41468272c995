// SPDX-License-Identifier: Apache-2.0
//! A report as one page that needs nothing else: no script, no network, plots as SVG.

use std::fmt::Write;

use super::probes::HEAD;
use super::report::{Outcome, Report, WEIGHT_HEAD};
use super::statistics::Summary;
use super::svg::{bars, ecdf, escape, series, time, waterfall};

/// Light, or dark where the reader prefers that. Colours are told apart by people who see few (Okabe, Ito 2008).
const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1a1c1e;--bg:#fff;--dim:#5f6670;--rule:#dde1e6;--c0:#0072b2;--c1:#56b4e9;--c2:#d55e00;\
--c3:#e69f00;--c4:#009e73;--c5:#cc79a7;--c6:#7f7f7f;--c7:#8c6d31}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e8ea;--bg:#14171a;--dim:#a0a7b0;--rule:#343a41;--c0:#3d8fe0;--c1:#a5dcff;\
--c2:#f0803c;--c4:#2fc79a}}\
*{box-sizing:border-box}body{margin:0 auto;max-width:54rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;\
color:var(--fg);background:var(--bg);overflow-wrap:anywhere}\
h1{font-size:1.4rem;line-height:1.25}h2{font-size:1.1rem;margin-top:2rem}p.dim,li.dim,figcaption{color:var(--dim)}\
figure{margin:1rem 0}svg{display:block;width:100%;height:auto;overflow:visible}\
svg text{font:11px system-ui,sans-serif;fill:var(--fg)}svg .tick{font-size:9px;fill:var(--dim)}\
svg .grid{stroke:var(--rule);stroke-width:1}svg .whisker{stroke:var(--fg);stroke-width:1.2;fill:none}\
svg .line{fill:none;stroke-width:1.6}\
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}.c6{fill:var(--c6)}.c7{fill:var(--c7)}\
.l0{stroke:var(--c0)}.l1{stroke:var(--c1)}.l2{stroke:var(--c2)}.l3{stroke:var(--c3)}.l4{stroke:var(--c4)}.l5{stroke:var(--c5)}\
.l6{stroke:var(--c6)}.l7{stroke:var(--c7)}.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}\
.k0{background:var(--c0)}.k1{background:var(--c1)}.k2{background:var(--c2)}.k3{background:var(--c3)}.k4{background:var(--c4)}\
.k5{background:var(--c5)}.k6{background:var(--c6)}.k7{background:var(--c7)}.legend span{margin-right:1em;white-space:nowrap}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem}th,td{padding:.25rem .6rem .25rem 0;text-align:right;\
border-bottom:1px solid var(--rule);white-space:nowrap}th:first-child,td:first-child{text-align:left}code{font-size:.85em}";

/// The beginning of each page, with its title, and what it has of style besides [`STYLE`].
pub(super) fn head(title: &str, more: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><title>{title}</title><style>{STYLE}{more}</style></head>\n\
         <body><main><h1>{title}</h1>"
    )
}

/// Its end.
pub(super) const END: &str = "</main></body></html>\n";

/// What must be known of figures.
pub(super) fn notes(notes: &[String]) -> String {
    let items: String = notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
    format!("<h2>What must be known of this</h2><ul>{items}</ul>")
}

/// How they came about.
pub(super) fn facts(title: &str, facts: &[String]) -> String {
    let items: String = facts.iter().map(|fact| format!("<li class=\"dim\">{}</li>", escape(fact))).collect();
    format!("<h2>{title}</h2><ul>{items}</ul>")
}

/// The page.
pub fn page(report: &Report) -> String {
    let mut page = head(&format!("Start of {}: VM against container", report.image), "");
    // Writing to a String cannot fail.
    let command = escape(&report.command.join(" "));
    let _ = write!(page, "<p><code>{command}</code> · {}</p>", escape(&headline(report)));
    page += &plots(report);
    page += &table(report);
    page += &weights(report);
    page += &probed(report);
    page += &comparison(report);
    page += &notes(&report.notes);
    page += &circumstances(report);
    page + END
}

/// The result in one sentence.
fn headline(report: &Report) -> String {
    let vm = report.backends.iter().find(|one| !one.is_boot && !one.is_container && one.ratio.is_some());
    match (vm.and_then(|vm| Some((vm.name, vm.ratio?))), report.baseline) {
        (Some((name, ratio)), Some(base)) if ratio.told_apart => {
            format!("{name} to {base}: {ratio} times as long, on {}", report.host.kind)
        }
        (Some((name, _)), Some(base)) => format!("{name} and {base} cannot be told apart, on {}", report.host.kind),
        _ => format!("no VM was compared with a container, on {}", report.host.kind),
    }
}

fn plots(report: &Report) -> String {
    let numbered = || report.backends.iter().enumerate();
    let starts = || numbered().filter(|(_, one)| !one.is_boot);
    let mut text = String::new();
    let rows: Vec<(&str, usize, &Summary)> =
        starts().filter_map(|(at, one)| Some((one.name, at, one.main()?))).collect();
    if !rows.is_empty() {
        let (title, end) = match report.http {
            Some(_) => ("Time to the first answer", "first answer of the server with status 200"),
            None => ("Time to the first byte", "first byte on standard output"),
        };
        let plot = bars(title, &rows);
        let caption = format!("Median time to the {end}, with its 95 % confidence interval.");
        let _ = write!(text, "<h2>{title}</h2><figure>{plot}<figcaption>{caption}</figcaption></figure>");
    }
    let rows: Vec<(&str, usize, Vec<u64>)> = starts()
        .map(|(at, one)| (one.name, at, one.column(|run| run.first_byte_ns.or(run.exit_ns))))
        .filter(|row| !row.2.is_empty())
        .collect();
    if !rows.is_empty() {
        let plot = ecdf("Distribution of starts", &rows);
        let keys: String = rows.iter().map(|(name, at, _)| key(name, *at)).collect();
        let caption = "Part of the runs that took no longer.";
        let _ = write!(
            text,
            "<h2>Every run</h2><figure>{plot}<figcaption>{caption}<div class=\"legend\">{keys}</div></figcaption></figure>"
        );
    }
    text += &rates(report);
    let boots = numbered().filter(|(_, one)| one.is_boot);
    let rows: Vec<(&str, usize, &Summary)> = boots.filter_map(|(at, one)| Some((one.name, at, one.main()?))).collect();
    if !rows.is_empty() {
        let plot = bars("Boot to agent ready", &rows);
        let caption = "From the launch of the VMM to where the guest's agent is ready. Containers have no such thing.";
        let _ = write!(text, "<h2>Boot alone</h2><figure>{plot}<figcaption>{caption}</figcaption></figure>");
    }
    for one in report.backends.iter().filter(|one| !one.stages.is_empty()) {
        let steps: Vec<(&str, u64)> = one.stages.iter().map(|step| (step.stage.as_str(), step.wall_ns)).collect();
        let plot = waterfall(&format!("Stages of {}", one.name), &steps);
        let _ = write!(
            text,
            "<h2>Where the time of {} goes</h2><figure>{plot}<figcaption>From the launch; medians of when each stage was \
             reached, of a few runs that were not timed.</figcaption></figure>",
            one.name
        );
    }
    if !report.waterfall.is_empty() {
        let steps: Vec<(&str, u64)> = report.waterfall.iter().map(|step| (step.stage.as_str(), step.wall_ns)).collect();
        let plot = waterfall("Stages of a cold start", &steps);
        let caption = "coracle-vmm alone, cold; medians of when each stage was reached.";
        let _ =
            write!(text, "<h2>Where a cold start goes</h2><figure>{plot}<figcaption>{caption}</figcaption></figure>");
    }
    text
}

/// Of a legend.
pub(super) fn key(name: &str, class: usize) -> String {
    format!("<span><i class=\"key k{class}\"></i>{}</span>", escape(name))
}

/// How many start in a second, by how many at once.
fn rates(report: &Report) -> String {
    let rated = || report.backends.iter().enumerate().filter(|(_, one)| !one.rates.is_empty());
    let mut levels: Vec<usize> = rated().flat_map(|(_, one)| one.rates.iter().map(|rate| rate.at_once)).collect();
    levels.sort_unstable();
    levels.dedup();
    if levels.is_empty() {
        return String::new();
    }
    let value =
        |one: &Outcome, level: usize| one.rates.iter().find(|rate| rate.at_once == level).map(|rate| rate.per_second);
    let rows: Vec<(&str, usize, Vec<Option<f64>>)> =
        rated().map(|(at, one)| (one.name, at, levels.iter().map(|level| value(one, *level)).collect())).collect();
    let steps: Vec<String> = levels.iter().map(ToString::to_string).collect();
    let plot = series("Starts in a second by how many at once", &steps, &rows, "/s");
    let keys: String = rows.iter().map(|(name, at, _)| key(name, *at)).collect();
    let caption = "Starts in a second, to the end of the command, by how many were started at once.";
    format!(
        "<h2>Many at once</h2><figure>{plot}<figcaption>{caption}<div class=\"legend\">{keys}</div></figcaption></figure>"
    )
}

/// Against an earlier result.
fn comparison(report: &Report) -> String {
    let Some(comparison) = &report.comparison else { return String::new() };
    let mut text = format!("<h2>Against {}</h2><ul>", escape(&comparison.started));
    for one in &comparison.backends {
        let _ = write!(text, "<li>{}: {}: {}</li>", one.name, one.ratio, one.verdict);
    }
    if !comparison.differs.is_empty() {
        let _ = write!(text, "<li>That was with another {}.</li>", comparison.differs.join(", "));
    }
    text + &format!("</ul><p>{}</p>", escape(&comparison.sentence()))
}

fn table(report: &Report) -> String {
    let mut text = "<h2>Figures</h2><div class=\"wide\"><table><thead><tr><th>Backend</th><th>n</th><th>First byte</th>\
                    <th>95 % CI</th><th>p95</th><th>Fastest</th><th>End</th><th>CPU</th><th>Ratio</th></tr></thead><tbody>"
        .to_owned();
    for one in report.backends.iter().filter(|one| one.main().is_some()) {
        let _ = write!(text, "<tr>{}</tr>", cells(one));
    }
    text + "</tbody></table></div><p class=\"dim\">Of a boot, the first figure is to where the agent is ready. Ratios are \
            to the quickest container, or of boots to QEMU's.</p>"
}

/// Memory, and what was counted.
fn weights(report: &Report) -> String {
    let weighed: Vec<&Outcome> = report.backends.iter().filter(|one| one.has_weight()).collect();
    if weighed.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = weighed.iter().map(|one| one.weight_cells().to_vec()).collect();
    let table = plain_table(&WEIGHT_HEAD, &rows);
    format!(
        "<h2>Weight</h2>{table}<p class=\"dim\">Memory: PSS of all processes while the program sleeps. Numbers are medians of runs that were \
         counted instead of timed, with half of the way from the least to the most; the last column is how long those took \
         against the timed ones.</p>"
    )
}

/// What measuring adds.
fn probed(report: &Report) -> String {
    let probed = report.backends.iter().filter_map(|one| Some(one.probes?.rows(one.name)));
    let rows: Vec<Vec<String>> = probed.flatten().map(|row| row.to_vec()).collect();
    if rows.is_empty() { String::new() } else { format!("<h2>What measuring adds</h2>{}", plain_table(&HEAD, &rows)) }
}

/// A table of texts, which scrolls where it is too wide.
pub(super) fn plain_table(head: &[&str], rows: &[Vec<String>]) -> String {
    let row = |cells: &mut dyn Iterator<Item = &str>, tag: &str| -> String {
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        format!("<tr>{cells}</tr>")
    };
    let head = row(&mut head.iter().copied(), "th");
    let rows: String = rows.iter().map(|cells| row(&mut cells.iter().map(String::as_str), "td")).collect();
    format!("<div class=\"wide\"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>")
}

fn cells(one: &Outcome) -> String {
    let median =
        |figure: &Option<Summary>| figure.as_ref().map_or_else(|| "–".to_owned(), |figure| time(figure.median_ns));
    let first = if one.is_boot { &one.ready } else { &one.first_byte };
    let of = |figure: fn(&Summary) -> String| first.as_ref().map_or_else(|| "–".to_owned(), figure);
    let ratio = one.ratio.map_or_else(|| "–".to_owned(), |ratio| ratio.to_string());
    [
        one.name.to_owned(),
        one.main().map_or(0, |figure| figure.n).to_string(),
        median(first),
        of(|figure| format!("{} to {}", time(figure.ci95_ns[0]), time(figure.ci95_ns[1]))),
        of(|figure| time(figure.p95_ns)),
        of(|figure| time(figure.min_ns)),
        median(&one.exit),
        median(&one.cpu),
        ratio,
    ]
    .iter()
    .map(|cell| format!("<td>{}</td>", escape(cell)))
    .collect()
}

fn circumstances(report: &Report) -> String {
    let host = &report.host;
    let state = match (report.complete, report.interrupted) {
        (true, _) => "complete",
        (false, true) => "interrupted by the user",
        (false, false) => "incomplete",
    };
    let [machine, load] = host.facts();
    let mut facts = vec![
        format!("Coracle {}, {}, {state}", report.coracle, report.started),
        format!("{} ({})", report.image, report.image_id),
        machine,
        load,
        format!("{} runs of each after {} to warm up, interleaved, seed {}", report.runs, report.warm_up, report.seed),
    ];
    if !host.governor.is_empty() {
        facts.push(format!("frequency governor {}", host.governor));
    }
    let tried = report.backends.iter().filter(|one| !one.command.is_empty());
    facts.extend(tried.map(|one| format!("{}: {}; {}: {}", one.name, one.what, one.version, one.command.join(" "))));
    self::facts("How it was measured", &facts)
}

#[cfg(test)]
mod tests {
    use super::super::report::testing::report;
    use super::*;

    /// Names of the elements that are open at the end; panics where one is closed that is not.
    fn unclosed(page: &str) -> Vec<String> {
        let mut open: Vec<String> = Vec::new();
        for tag in page.split('<').skip(1).map(|rest| rest.split_once('>').expect("a tag that ends").0) {
            let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap_or("").to_owned();
            match tag {
                _ if tag.starts_with('!') || tag.ends_with('/') => {}
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "</{tag}>"),
                _ => open.push(name),
            }
        }
        open
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let page = page(&report());
        assert_eq!(unclosed(&page), [""; 0]);
        for external in ["http:", "https:", "//", "url(", "@import", "<script", "<link", "src=", "href="] {
            assert!(!page.contains(external), "{external}");
        }
        assert!(page.contains("prefers-color-scheme:dark") && page.contains("width=device-width"));
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(!page.contains("NaN") && !page.contains("inf"), "a plot has places that are none");
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let page = page(&report());
        assert!(page.contains("x&lt;y&gt;&amp;&quot;z&quot;") && page.contains("&lt;installed&gt;"));
        assert!(!page.contains("<installed") && !page.contains("x<y"));
    }

    #[test]
    fn the_result_is_said_in_one_sentence() {
        let mut report = report();
        assert!(headline(&report).starts_with("vm to crun: 8.00 (8.00 to 8.00) times"), "{}", headline(&report));
        report.backends.retain(|one| !one.is_container);
        report.evaluate(&[]);
        assert!(!page(&report).contains("NaN"));
    }

    #[test]
    fn a_report_without_figures_has_no_plots() {
        let mut report = report();
        report.backends.clear();
        report.evaluate(&[]);
        let page = page(&report);
        assert_eq!((page.matches("<svg").count(), unclosed(&page).len()), (0, 0));
    }
}
