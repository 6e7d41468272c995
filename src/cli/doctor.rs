// SPDX-License-Identifier: Apache-2.0
//! `coracle doctor`: what this host has, what each lack costs, and the command that mends it.

mod files;
mod kernel;
mod kvm;
mod report;

use std::process::ExitCode;

use clap::Args;
use coracle::vmm::host::Host;
use serde::Serialize;

use super::Format;

#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 if this host can run microVMs, 1 if something that is required is missing.")]
pub struct DoctorArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// There.
    Ok,
    /// Something is slower, or one feature is lost.
    Warning,
    /// No microVM can run.
    Missing,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    /// What was found.
    found: String,
    /// What the lack costs; empty where nothing is lacking.
    #[serde(skip_serializing_if = "String::is_empty")]
    cost: String,
    /// What mends it, as a command where one does.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cost: String::new(), remedy: String::new() }
    }

    fn warning(
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, status: Status::Warning, found: found.into(), cost: cost.into(), remedy: remedy.into() }
    }

    fn missing(
        name: &'static str,
        found: impl Into<String>,
        cost: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { status: Status::Missing, ..Self::warning(name, found, cost, remedy) }
    }
}

/// Checks that belong together.
#[derive(Debug, Serialize)]
struct Section {
    name: &'static str,
    checks: Vec<Check>,
}

/// Looks at everything and prints it. Changes nothing on the host.
pub fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let host = Host::detect();
    let sections = [
        Section { name: "KVM", checks: kvm::checks(&host) },
        Section { name: "Kernel", checks: kernel::checks() },
        Section { name: "Resources", checks: files::resources() },
        Section { name: "Programs", checks: files::programs() },
        Section { name: "Guest", checks: files::guest() },
    ];
    let missing = count(&sections, Status::Missing);
    match args.format {
        Format::Table => report::table(&host, &sections, &mut anstream::stdout().lock())?,
        Format::Json => report::json(&host, &sections, &mut std::io::stdout().lock())?,
    }
    Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn count(sections: &[Section], status: Status) -> usize {
    sections.iter().flat_map(|s| &s.checks).filter(|check| check.status == status).count()
}
