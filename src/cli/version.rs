// SPDX-License-Identifier: Apache-2.0
//! `coracle version`.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use coracle::vmm::host::Host;
use serde_json::json;

use super::Format;

#[derive(Debug, Args)]
pub struct VersionArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints to stdout what a bug report needs first.
pub fn run(args: VersionArgs) -> anyhow::Result<ExitCode> {
    let (version, host) = (env!("CARGO_PKG_VERSION"), Host::detect());
    match args.format {
        Format::Table => writeln!(io::stdout(), "coracle {version}\nhost {host}")?,
        Format::Json => {
            let host = json!({ "vendor": host.vendor.to_string(), "description": host.to_string() });
            writeln!(io::stdout(), "{:#}", json!({ "version": version, "host": host }))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
