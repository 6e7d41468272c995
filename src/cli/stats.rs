// SPDX-License-Identifier: Apache-2.0
//! `coracle stats`: what containers use.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use coracle::failure::Failure;
use coracle::sandbox::Agent;
use coracle::supervisor::{Container, State};
use serde_json::{Value, json};

use super::template::Lines;
use super::{containers, units};

/// Over which time the use of CPUs is taken.
const PERIOD: Duration = Duration::from_secs(1);

/// Show what containers use.
#[derive(Debug, Args)]
#[command(
    after_help = "The figures are those of the guest's own kernel, or without a VM of the container's control group. VM MEM is what the microVM takes of the host."
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
    host_memory: Option<u64>,
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
        host_memory: (!container.config.isolation.is_container()).then(|| resident(state.pid)),
    })
}

/// Bytes that the VMM's process has in memory, the guest's among them (proc(5), `VmRSS`).
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.split_whitespace().next()).and_then(|text| text.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
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
        "VmMem": one.host_memory.map_or_else(|| "--".to_owned(), units::size),
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
    let columns = ["ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs", "VmMem"];
    let head =
        ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS", "VM MEM"];
    let text = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let cells: Vec<Vec<String>> = rows.iter().map(|row| columns.iter().map(|name| text(row, name)).collect()).collect();
    units::table(&mut out, &head, &cells)
}
