// SPDX-License-Identifier: Apache-2.0
//! `coracle bench isolation`: what of the host a tenant finds, in a VM and in a container.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use coracle::bench::isolation::catalogue::Group;
use coracle::bench::isolation::judge::Verdict;
use coracle::bench::isolation::launch::Kind;
use coracle::bench::isolation::report::{Cell, Report, Row};
use coracle::bench::isolation::{self, Plan, page};
use coracle::failure::Failure;

use super::super::units;
use super::reports::{ResultArgs, write_notes};

const PROGRAM: &str = "coracle-probe";

const EXAMPLES: &str = "\
Examples:
  sudo coracle bench isolation
  sudo coracle bench isolation --only kernel-log --backends container -v
  sudo coracle bench isolation --report isolation --format json

One static program looks, in each kind of sandbox, for what of the host it can find and reach. On the host itself the
same program is the control: where it finds nothing there, nothing is said of sandboxes. docs/isolation.md has what each
probe does.

Exit status: 0 where something was found out; 125 where nothing was; 130 after Ctrl-C.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct IsolationArgs {
    /// Where to look [default: all]: vm, container, podman, hardened
    #[arg(long, visible_alias = "backend", value_name = "LIST", value_delimiter = ',')]
    backends: Vec<Kind>,
    /// Probes, instead of all; `--list` has their names
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = probe)]
    only: Vec<String>,
    /// List the probes, and end
    #[arg(long)]
    list: bool,
    /// Show what each probe tries, what it saw, and what that means
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    result: ResultArgs,
}

fn probe(text: &str) -> Result<String, String> {
    match isolation::names().any(|(name, ..)| name == text) {
        true => Ok(text.to_owned()),
        false => Err("there is no such probe: --list has them".to_owned()),
    }
}

/// Looks, and prints what was found.
pub(super) fn run(args: &IsolationArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        let rows: Vec<Vec<String>> = isolation::names()
            .map(|(name, group, tries)| vec![name.to_owned(), group.title().to_owned(), tries.to_owned()])
            .collect();
        units::table(&mut io::stdout().lock(), &["PROBE", "GROUP", "TRIES"], &rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    args.result.prepare()?;
    let coracle = env::current_exe()?;
    let probe = coracle.with_file_name(PROGRAM);
    if !probe.exists() {
        let why = format!("there is no {PROGRAM} beside {}", coracle.display());
        return Err(Failure::new("cannot look at isolation", why, "`cargo build --bins`, or install it there").into());
    }
    let mut backends = if args.backends.is_empty() { Kind::ALL.to_vec() } else { args.backends.clone() };
    backends.sort_by_key(|kind| Kind::ALL.iter().position(|other| other == kind));
    backends.dedup();
    let plan = Plan { backends, only: args.only.clone(), coracle, probe };
    let report = isolation::run(&plan, &mut args.result.tell())?;
    args.result.publish(
        &report,
        report.interrupted,
        ("cells.csv", report.csv()),
        || page::page(&report),
        |mut out| write(&report, args.verbose, &mut out),
    )
}

fn paint(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Isolated => AnsiColor::Green,
        Verdict::Limited => AnsiColor::Yellow,
        Verdict::Shared => AnsiColor::Red,
        Verdict::Unknown => return Style::new().dimmed(),
    };
    colour.on_default()
}

/// Styles are written always: the stream drops them where the terminal or `NO_COLOR` asks for that.
fn write(report: &Report, verbose: bool, out: &mut impl Write) -> io::Result<()> {
    let bold = Style::new().bold();
    writeln!(out, "{bold}Host{bold:#}      {}", report.host.line())?;
    for one in report.backends.iter().filter(|one| !one.version.is_empty()) {
        writeln!(out, "{bold}{:10}{bold:#}{}; {}", one.name, one.what, one.version)?;
    }
    writeln!(out, "{bold}Signs{bold:#}     ✓ isolated, ~ limited, ✗ shared, ? nothing can be said")?;
    let names = report.probes.iter().map(|row| row.name.len()).chain(Group::ALL.map(|group| group.title().len()));
    let wide = names.max().unwrap_or(0);
    for group in Group::ALL {
        let rows: Vec<&Row> = report.probes.iter().filter(|row| row.group == group).collect();
        if rows.is_empty() {
            continue;
        }
        writeln!(out, "\n{bold}{:wide$}{bold:#}  {}", group.title(), heads(report))?;
        for row in rows {
            writeln!(out, "{:wide$}  {}", row.name, cells(report, row))?;
            if verbose {
                details(row, out)?;
            }
        }
    }
    writeln!(out)?;
    for one in report
        .backends
        .iter()
        .filter(|one| report.probes.iter().any(|row| row.cells.iter().any(|cell| cell.backend == one.name)))
    {
        let part = |verdict| {
            format!("{} {}", verdict_sign(verdict), bar(report.count(one.name, verdict), report.probes.len()))
        };
        let bars = [Verdict::Isolated, Verdict::Limited, Verdict::Shared].map(part);
        writeln!(out, "{:wide$}  {}", one.name, bars.join("  "))?;
    }
    writeln!(out)?;
    write_notes(&report.notes, out)
}

fn verdict_sign(verdict: Verdict) -> String {
    let style = paint(verdict);
    format!("{style}{}{style:#}", verdict.sign())
}

fn heads(report: &Report) -> String {
    report.backends.iter().map(|one| format!("{:10}", one.name.to_uppercase())).collect::<String>()
}

fn cells(report: &Report, row: &Row) -> String {
    let of = |name: &str| row.cells.iter().find(|cell| cell.backend == name);
    let cell = |cell: Option<&Cell>| cell.map_or_else(|| "-".to_owned(), |cell| verdict_sign(cell.verdict));
    report.backends.iter().map(|one| format!("{}         ", cell(of(one.name)))).collect()
}

fn details(row: &Row, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "    tries      {}", row.tries)?;
    writeln!(out, "    if shared  {}", row.means)?;
    let found = if row.control.found { "found" } else { "found nothing" };
    writeln!(out, "    control    {found}: {}", one_line(&row.control.seen))?;
    for cell in &row.cells {
        writeln!(out, "    {:9}  {}: {}", cell.backend, cell.verdict.word(), one_line(&cell.seen))?;
    }
    Ok(())
}

/// What a sandbox says, fit for a terminal.
fn one_line(text: &str) -> String {
    units::printable(&text.chars().take(160).collect::<String>())
}

fn bar(part: usize, of: usize) -> String {
    let length = (part * 20).div_ceil(of.max(1));
    format!("{:3} {:20}", part, "█".repeat(length))
}
