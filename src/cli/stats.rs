// SPDX-License-Identifier: Apache-2.0
//! `coracle stats`: what containers use.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use coracle::failure::Failure;
use coracle::sandbox::Agent;
use coracle::supervisor::footprint::Footprint;
use coracle::supervisor::{Container, State};
use serde_json::{Value, json};

use super::template::Lines;
use super::{containers, units};

/// Fields, and what they are called in the table. Docker's, and then what the microVM takes.
const COLUMNS: [(&str, &str); 12] = [
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
    ("Resident", "RESIDENT"),
    ("Shared", "SHARED"),
    ("Overhead", "OVERHEAD"),
    ("VmMem", "VM MEM"),
];

/// Over which time the use of CPUs is taken.
const PERIOD: Duration = Duration::from_secs(1);

/// Show what containers use.
#[derive(Debug, Args)]
#[command(
    after_help = "The first figures are those of the guest's own kernel, or without a VM of the container's control group. \
                  RESIDENT is how much of the guest's memory the host has in its own, SHARED the part of it that other \
                  microVMs have too, OVERHEAD what the container's processes take besides, and VM MEM all of it, with what \
                  is shared divided."
)]
pub struct StatsArgs {
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.Name}} {{.CPUPerc}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
    /// Names, or ids or their beginnings; all that run unless there are any
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// Prints it, every second.
///
/// # Errors
/// One that was named does not run.
pub fn run(args: &StatsArgs) -> anyhow::Result<ExitCode> {
    let mut before = measure(args)?;
    loop {
        thread::sleep(PERIOD);
        let now = measure(args)?;
        let rows: Vec<Value> = now.iter().map(|one| row(one, before.iter().find(|old| old.id == one.id))).collect();
        print(args, &rows)?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// What one container had used at a time.
struct Measured {
    id: String,
    name: String,
    at: Instant,
    usage: coracle_protocol::Usage,
    /// Of its VMM, where there is one.
    footprint: Option<Footprint>,
}

fn measure(args: &StatsArgs) -> Result<Vec<Measured>, Failure> {
    let what = "cannot show what containers use";
    if !args.containers.is_empty() {
        let one = |name: &String| containers::up(name, what).and_then(|(container, state)| ask(&container, &state));
        return args.containers.iter().map(one).collect();
    }
    let mut all = Vec::new();
    for container in containers::open(what)?.all()? {
        // One that ends meanwhile is not shown.
        if let Ok(state) = container.state()
            && state.status.is_up()
            && let Ok(measured) = ask(&container, &state)
        {
            all.push(measured);
        }
    }
    Ok(all)
}

fn ask(container: &Container, state: &State) -> Result<Measured, Failure> {
    let usage = Agent::connect(&Container::vsock(state))?.usage()?;
    Ok(Measured {
        id: container.short().to_owned(),
        name: container.config.name.clone(),
        at: Instant::now(),
        usage,
        footprint: (!container.config.isolation.is_container()).then(|| Footprint::of(state.pid)),
    })
}

#[allow(clippy::cast_precision_loss, reason = "two digits after the point are shown")]
fn percent(part: u64, whole: u64) -> String {
    format!("{:.2}%", if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 })
}

fn row(one: &Measured, before: Option<&Measured>) -> Value {
    let usage = &one.usage;
    let (cpu, time) = before.map_or((0, 0), |old| {
        let time = one.at.duration_since(old.at).as_nanos();
        (usage.cpu_ns.saturating_sub(old.usage.cpu_ns), u64::try_from(time).unwrap_or(u64::MAX))
    });
    let of_vm = |bytes: fn(&Footprint) -> u64| {
        one.footprint.as_ref().map_or_else(|| "--".to_owned(), |footprint| units::size(bytes(footprint)))
    };
    let pair = |a: u64, b: u64| format!("{} / {}", units::size(a), units::size(b));
    json!({
        "ID": one.id,
        "Name": one.name,
        "CPUPerc": percent(cpu, time),
        "MemUsage": pair(usage.memory, usage.memory_limit),
        "MemPerc": percent(usage.memory, usage.memory_limit),
        "NetIO": pair(usage.received, usage.sent),
        "BlockIO": pair(usage.read, usage.written),
        "PIDs": usage.pids.to_string(),
        "Resident": of_vm(|footprint| footprint.guest.resident),
        "Shared": of_vm(|footprint| footprint.guest.shared),
        "Overhead": of_vm(|footprint| footprint.overhead.proportional),
        "VmMem": of_vm(Footprint::proportional),
    })
}

fn print(args: &StatsArgs, rows: &[Value]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if let Lines::Template(template) = &args.format {
        return rows.iter().try_for_each(|row| writeln!(out, "{}", template.render(row)));
    }
    if !args.no_stream && out.is_terminal() {
        // From the top of an empty screen.
        write!(out, "\x1b[H\x1b[J")?;
    }
    let columns: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
    let head: Vec<&str> = COLUMNS.iter().map(|(_, head)| *head).collect();
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|name| text(row, name)).collect()).collect();
    units::table(&mut out, &head, &cells)
}
