// SPDX-License-Identifier: Apache-2.0
//! `coracle ps`: what containers there are.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::supervisor::{Container, State, Status};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::labels::LabelFilter;
use super::template::Lines;
use super::{containers, units};

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Those that do not run too
    #[arg(short, long)]
    all: bool,
    /// Only those that fit: name=TEXT, id=TEXT, status=WORD, label=NAME[=VALUE], ancestor=IMAGE, exited=STATUS
    #[arg(short, long, value_name = "FILTER", value_parser = filter)]
    filter: Vec<Filter>,
    /// The last N that were made
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// The last that was made
    #[arg(short, long)]
    latest: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.ID}} {{.Names}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
}

#[derive(Clone, Debug)]
struct Filter {
    key: String,
    value: String,
}

fn filter(text: &str) -> Result<Filter, String> {
    let known = ["name", "id", "status", "label", "ancestor", "exited"];
    match text.split_once('=') {
        Some((key, value)) if known.contains(&key) => Ok(Filter { key: key.to_owned(), value: value.to_owned() }),
        _ => Err(format!("`{text}` is no filter: {}, then `=` and what to look for", known.join(", "))),
    }
}

/// Prints them, the newest first.
///
/// # Errors
/// They cannot be read, or our own output fails.
pub fn run(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for container in containers::open("cannot list containers")?.all()? {
        match container.state() {
            Ok(state) => found.push((container, state)),
            // One that is being removed.
            Err(_) if !container.directory().join("config.json").exists() => {}
            Err(failure) => return Err(failure.into()),
        }
    }
    let last = if args.latest { Some(1) } else { args.last };
    let says_status = args.filter.iter().any(|filter| ["status", "exited"].contains(&filter.key.as_str()));
    found.retain(|(_, state)| args.all || last.is_some() || says_status || state.status.is_up());
    found.retain(|(container, state)| args.filter.iter().all(|filter| filter.fits(container, state)));
    found.truncate(last.unwrap_or(usize::MAX));
    let rows: Vec<Value> = found.iter().map(|(container, state)| row(container, state, args.no_trunc)).collect();
    let mut out = io::stdout().lock();
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    if args.quiet {
        rows.iter().try_for_each(|row| writeln!(out, "{}", text(row, "ID")))?;
    } else if let Lines::Template(template) = &args.format {
        rows.iter().try_for_each(|row| writeln!(out, "{}", template.render(row)))?;
    } else {
        let columns =
            ["ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names", "CPUs", "Memory", "Isolation"];
        let head =
            ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "CPUS", "MEM", "ISOLATION"];
        let cells: Vec<Vec<String>> =
            rows.iter().map(|row| columns.iter().map(|name| text(row, name)).collect()).collect();
        units::table(&mut out, &head, &cells)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Filter {
    fn fits(&self, container: &Container, state: &State) -> bool {
        let (config, value) = (&container.config, self.value.as_str());
        match self.key.as_str() {
            "name" => is_like(&config.name, value),
            "id" => config.id.starts_with(value),
            "status" => state.status.word() == value,
            "exited" => state.status == Status::Exited && state.exit.status.to_string() == value,
            "ancestor" => config.image.name == value || config.image.id.to_string().contains(value),
            _ => LabelFilter::parse(value).is_ok_and(|filter| filter.fits(&config.labels)),
        }
    }
}

/// Docker takes a regular expression; what people write of it is the beginning and the end.
fn is_like(name: &str, wanted: &str) -> bool {
    let (wanted, first) = wanted.strip_prefix('^').map_or((wanted, false), |rest| (rest, true));
    let (wanted, last) = wanted.strip_suffix('$').map_or((wanted, false), |rest| (rest, true));
    let wanted = wanted.trim_start_matches('/');
    match (first, last) {
        (true, true) => name == wanted,
        (true, false) => name.starts_with(wanted),
        (false, true) => name.ends_with(wanted),
        (false, false) => name.contains(wanted),
    }
}

/// Docker's names for what is shown of a container.
pub fn row(container: &Container, state: &State, whole: bool) -> Value {
    let config = &container.config;
    let command = config.process.arguments.join(" ");
    let command = match whole || command.chars().count() <= 20 {
        true => command,
        false => command.chars().take(19).chain(['…']).collect(),
    };
    let labels: Vec<String> = config.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "ID": if whole { &config.id } else { container.short() },
        "Image": config.image.name,
        "Command": format!("\"{}\"", units::printable(&command)),
        "CreatedAt": config.created.to_string(),
        "RunningFor": units::ago(seconds_since(config.created)),
        "State": state.status.word(),
        "Status": status(state),
        "Ports": state.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        "Names": config.name,
        "Labels": labels.join(","),
        "CPUs": config.shape.cpus.to_string(),
        "Memory": format!("{}MiB", config.shape.memory_mib),
        "Isolation": config.isolation.to_string(),
    })
}

fn seconds_since(time: Timestamp) -> i64 {
    Timestamp::now().as_second() - time.as_second()
}

/// `Up 5 minutes`, `Exited (0) 2 hours ago`.
fn status(state: &State) -> String {
    let since = |time: Option<Timestamp>| time.map_or(0, seconds_since);
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", units::duration(since(state.started))),
        Status::Paused => format!("Up {} (Paused)", units::duration(since(state.started))),
        Status::Exited => format!("Exited ({}) {}", state.exit.status, units::ago(since(state.finished))),
    }
}
