// SPDX-License-Identifier: Apache-2.0
//! `coracle template`: the snapshots of which containers' microVMs are clones.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::sandbox::template::{self, Template};
use coracle::sandbox::{Devices, Shape};

use super::Format;
use super::create::{memory, vcpus};
use super::units::size;

/// Look after the templates of which containers' microVMs are clones. They are made when they are first needed.
#[derive(Debug, Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List templates.
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Remove templates; microVMs that run go on.
    Rm(RmArgs),
    /// Make the template for containers without a network, so that the first of them need not.
    Warm(WarmArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    /// How to print them
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
    /// Print their names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Names of templates
    #[arg(value_name = "TEMPLATE", required_unless_present = "all")]
    templates: Vec<String>,
    /// All of them
    #[arg(short, long, conflicts_with = "templates")]
    all: bool,
}

#[derive(Debug, Args)]
struct WarmArgs {
    /// Number of vCPUs, 1 to 8; a fraction is rounded up
    #[arg(long, value_name = "N", default_value = "1", value_parser = vcpus)]
    cpus: u32,
    /// Memory of the microVM, such as 512m or 2g
    #[arg(short, long, value_name = "SIZE", default_value = "128m", value_parser = memory)]
    memory: u64,
}

/// Does what the verb says.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &TemplateArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Ls(args) => list(args)?,
        Verb::Rm(args) => remove(args)?,
        Verb::Warm(args) => {
            let shape = Shape { cpus: args.cpus, memory_mib: args.memory };
            let template = template::obtain(shape, &Devices::default())?;
            let name = template.file_name().unwrap_or_default().to_string_lossy().into_owned();
            writeln!(io::stdout(), "{name}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &LsArgs) -> anyhow::Result<()> {
    let templates = template::list()?;
    let mut out = io::stdout().lock();
    if args.quiet {
        for template in templates {
            writeln!(out, "{}", template.name)?;
        }
        return Ok(());
    }
    if args.format == Format::Json {
        writeln!(out, "{}", serde_json::to_string(&templates)?)?;
        return Ok(());
    }
    writeln!(out, "{:<18}{:<6}{:<10}{:<6}{:<6}SIZE", "TEMPLATE", "CPUS", "MEMORY", "DISKS", "NETS")?;
    for Template { name, shape, disks, nets, bytes } in templates {
        let memory = format!("{}MiB", shape.memory_mib);
        writeln!(out, "{name:<18}{:<6}{memory:<10}{disks:<6}{nets:<6}{}", shape.cpus, size(bytes))?;
    }
    Ok(())
}

fn remove(args: &RmArgs) -> Result<(), Failure> {
    let names = match args.all {
        true => template::list()?.into_iter().map(|template| template.name).collect(),
        false => args.templates.clone(),
    };
    names.iter().try_for_each(|name| template::remove(name))
}
