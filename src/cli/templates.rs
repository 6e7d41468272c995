// SPDX-License-Identifier: Apache-2.0
//! `coracle template`: the snapshots of which containers' microVMs are clones.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use coracle::failure::Failure;
use coracle::sandbox::template::{self, Template};
use coracle::sandbox::{Devices, Shape};
use coracle::supervisor::{spare, warm};

use super::Format;
use super::create::{ContainerArgs, memory, vcpus};
use super::units::size;
use serde::Serialize;

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
    /// Make a template ahead: of containers of an image as `run --rm` makes them, or else what all templates come from
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
    /// Network of the containers
    #[arg(long, value_name = "NETWORK", default_value = "default", requires = "image")]
    network: String,
    /// The image
    image: Option<String>,
    /// The program that they are likely to run, instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What `run` would be told of such containers.
#[derive(Debug, Parser)]
#[command(disable_help_flag = true)]
struct Alike {
    #[command(flatten)]
    container: ContainerArgs,
}

/// A template, and how many of its clones wait for a container.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Listed<'a> {
    #[serde(flatten)]
    template: &'a Template,
    waiting: usize,
}

impl WarmArgs {
    fn make(&self) -> anyhow::Result<String> {
        let Some(image) = &self.image else {
            let shape = Shape { cpus: self.cpus, memory_mib: self.memory };
            let template = template::obtain(shape, &Devices::default())?;
            return Ok(template.file_name().unwrap_or_default().to_string_lossy().into_owned());
        };
        let (cpus, memory) = (self.cpus.to_string(), format!("{}m", self.memory));
        let words = ["", "--rm", "--cpus", &cpus, "--memory", &memory, "--network", &self.network, image];
        let words = words.into_iter().chain(self.command.iter().map(String::as_str));
        let alike = Alike::try_parse_from(words)?;
        let what = format!("cannot make a template of image {image}");
        Ok(warm::warm(&alike.container.describe(&what)?)?)
    }
}

/// Does what the verb says.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &TemplateArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        Verb::Ls(args) => list(args)?,
        Verb::Rm(args) => remove(args)?,
        Verb::Warm(args) => writeln!(io::stdout(), "{}", args.make()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &LsArgs) -> anyhow::Result<()> {
    let templates = template::list()?;
    let waiting = spare::waiting();
    let waiting = |name: &str| waiting.iter().filter(|(_, one)| one.template == name).count();
    let mut out = io::stdout().lock();
    if args.quiet {
        for template in templates {
            writeln!(out, "{}", template.name)?;
        }
        return Ok(());
    }
    if args.format == Format::Json {
        let listed = templates.iter().map(|template| Listed { waiting: waiting(&template.name), template });
        writeln!(out, "{}", serde_json::to_string(&listed.collect::<Vec<_>>())?)?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<18}{:<6}{:<10}{:<6}{:<6}{:<10}{:<8}IMAGE",
        "TEMPLATE", "CPUS", "MEMORY", "DISKS", "NETS", "SIZE", "WAITING"
    )?;
    for Template { name, shape, disks, nets, image, bytes } in templates {
        let memory = format!("{}MiB", shape.memory_mib);
        let image = image.map(|image| format!("{} {}", image.name, image.program)).unwrap_or_default();
        let (cpus, size, waiting) = (shape.cpus, size(bytes), waiting(&name));
        writeln!(out, "{name:<18}{cpus:<6}{memory:<10}{disks:<6}{nets:<6}{size:<10}{waiting:<8}{image}")?;
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
