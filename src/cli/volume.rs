// SPDX-License-Identifier: Apache-2.0
//! `coracle volume`: directories that outlast containers, with Docker's flags, columns and fields.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::supervisor::{Container, Containers, Description, Volume, Volumes};
use serde_json::{Value, json};

use super::labels::{self, LabelFilter};
use super::template::{Lines, Template};
use super::{containers, error, system, units};

#[derive(Debug, Args)]
pub struct VolumeArgs {
    #[command(subcommand)]
    verb: VolumeVerb,
}

#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// Create a volume.
    Create(CreateArgs),
    /// List volumes.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show all that is known of volumes, as a JSON array.
    Inspect(InspectArgs),
    /// Remove volumes, and all that is in them.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove volumes that nobody has named and no container uses.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Its name; made up if none is given
    #[arg(value_name = "VOLUME")]
    name: Option<String>,
    /// `local` is the only one there is
    #[arg(short, long, default_value = "local", value_parser = ["local"], hide_default_value = true)]
    driver: String,
    /// A label
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    /// What it is: type=tmpfs, or device=/HOST/PATH with o=bind; o=WORD,… are options of mount(8)
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = labels::parse)]
    option: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Only some: name=TEXT, label=KEY[=VALUE], driver=local, dangling=true
    #[arg(short, long, value_name = "FILTER", value_parser = Filter::parse)]
    filter: Vec<Filter>,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.Name}} {{.Mountpoint}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// `json`, or a text with fields in it: '{{.Mountpoint}}'; a line for each volume
    #[arg(short, long, value_name = "TEMPLATE", value_parser = Template::of_object)]
    format: Option<Template>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Names
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
    /// No complaint about what is not here
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Those too that somebody has named
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only some: label=KEY[=VALUE]
    #[arg(long, value_name = "FILTER", value_parser = Filter::parse)]
    filter: Vec<Filter>,
}

/// A condition on volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Name(String),
    Label(LabelFilter),
    Driver(String),
    Dangling(bool),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("a filter is a name, `=`, and a value")?;
        match name {
            "name" => Ok(Self::Name(value.to_owned())),
            "label" => LabelFilter::parse(value).map(Self::Label),
            "driver" => Ok(Self::Driver(value.to_owned())),
            "dangling" => match value {
                "true" | "1" => Ok(Self::Dangling(true)),
                "false" | "0" => Ok(Self::Dangling(false)),
                _ => Err("`true` or `false`".to_owned()),
            },
            _ => Err(format!("`{name}` is not known: there are name, label, driver and dangling")),
        }
    }

    fn fits(&self, volume: &Volume, users: &[Container]) -> bool {
        match self {
            Self::Name(text) => volume.name.contains(text),
            Self::Label(filter) => filter.fits(&volume.labels),
            Self::Driver(name) => name == "local",
            Self::Dangling(wanted) => *wanted != users.iter().any(|one| one.config.uses_volume(&volume.name)),
        }
    }
}

/// Does what the verb says.
///
/// # Errors
/// There is no such volume, it is in use, or the files cannot be written.
pub fn run(args: &VolumeArgs) -> anyhow::Result<ExitCode> {
    let containers = containers::open("cannot use volumes")?;
    let volumes = Volumes::beside(&containers)?;
    match &args.verb {
        VolumeVerb::Create(args) => create(&containers, &volumes, args),
        VolumeVerb::Ls(args) => ls(&containers, &volumes, args),
        VolumeVerb::Inspect(args) => inspect(&volumes, args),
        VolumeVerb::Rm(args) => rm(&containers, &volumes, args),
        VolumeVerb::Prune(args) => prune(&containers, args),
    }
}

fn create(containers: &Containers, volumes: &Volumes, args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let description =
        Description { labels: args.label.iter().cloned().collect(), options: args.option.iter().cloned().collect() };
    let held = containers.hold()?;
    let volume = match &args.name {
        Some(name) => volumes.ensure(name, &description, false, &held)?,
        None => volumes.anonymous(&description, &held)?,
    };
    writeln!(io::stdout(), "{}", volume.name)?;
    Ok(ExitCode::SUCCESS)
}

fn ls(containers: &Containers, volumes: &Volumes, args: &LsArgs) -> anyhow::Result<ExitCode> {
    let (all, users) = (volumes.all()?, containers.all()?);
    let wanted = all.iter().filter(|volume| args.filter.iter().all(|filter| filter.fits(volume, &users)));
    let mut out = io::stdout().lock();
    match &args.format {
        _ if args.quiet => wanted.into_iter().try_for_each(|volume| writeln!(out, "{}", volume.name))?,
        Lines::Table => {
            let rows: Vec<_> = wanted.map(|volume| vec!["local".to_owned(), volume.name.clone()]).collect();
            units::table(&mut out, &["DRIVER", "VOLUME NAME"], &rows)?;
        }
        Lines::Template(template) => {
            for volume in wanted {
                let labels: Vec<_> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let links = users.iter().filter(|one| one.config.uses_volume(&volume.name)).count();
                let line = json!({
                    "Driver": "local",
                    "Labels": labels.join(","),
                    "Links": links.to_string(),
                    "Mountpoint": volumes.data(&volume.name),
                    "Name": volume.name,
                    "Scope": "local",
                    "Size": "N/A",
                });
                writeln!(out, "{}", template.render(&line))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(volumes: &Volumes, args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let (mut found, mut failure) = (Vec::new(), None);
    for name in &args.volumes {
        match volumes.find(name)? {
            Some(volume) => found.push(json!({
                "CreatedAt": volume.created.to_string(),
                "Driver": "local",
                "Labels": volume.labels,
                "Mountpoint": volumes.data(name),
                "Name": volume.name,
                "Options": if volume.options.is_empty() { Value::Null } else { json!(volume.options) },
                "Scope": "local",
            })),
            None => _ = failure.get_or_insert(no_such(&format!("cannot inspect volume {name}"))),
        }
    }
    match &args.format {
        None => writeln!(io::stdout(), "{:#}", Value::Array(found))?,
        Some(template) => found.iter().try_for_each(|one| writeln!(io::stdout(), "{}", template.render(one)))?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
}

fn no_such(what: &str) -> Failure {
    Failure::new(what, "there is no such volume", "`coracle volume ls`")
}

fn rm(containers: &Containers, volumes: &Volumes, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in &args.volumes {
        match remove(containers, volumes, name, args.force) {
            Ok(()) => writeln!(io::stdout(), "{name}")?,
            Err(failure) => {
                error::report(&failure.into());
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn remove(containers: &Containers, volumes: &Volumes, name: &str, force: bool) -> Result<(), Failure> {
    let what = format!("cannot remove volume {name}");
    let held = containers.hold()?;
    if volumes.find(name)?.is_none() {
        return if force { Ok(()) } else { Err(no_such(&what)) };
    }
    let users: Vec<_> = containers.all()?.into_iter().filter(|one| one.config.uses_volume(name)).collect();
    if users.is_empty() {
        return volumes.remove(name, &held);
    }
    let names: Vec<_> = users.iter().map(|one| one.config.name.as_str()).collect();
    let why = format!("it is in use by container {}", names.join(", "));
    Err(Failure::new(what, why, format!("`coracle rm {}` first", names.join(" "))))
}

fn prune(containers: &Containers, args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let all =
        if args.all { "all volumes that no container uses" } else { "all unnamed volumes that no container uses" };
    if !args.force && !system::confirmed("cannot remove volumes", "coracle volume prune --force", &[all])? {
        return Ok(ExitCode::SUCCESS);
    }
    let fits =
        |volume: &Volume| (args.all || volume.anonymous) && args.filter.iter().all(|filter| filter.fits(volume, &[]));
    let (gone, bytes) = remove_unused(containers, fits)?;
    let mut out = io::stdout().lock();
    if !gone.is_empty() {
        writeln!(out, "Deleted Volumes:")?;
        gone.iter().try_for_each(|name| writeln!(out, "{name}"))?;
        writeln!(out)?;
    }
    writeln!(out, "Total reclaimed space: {}", units::size(bytes))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes those of the volumes that no container uses which `wanted` says yes to; gives their names, and how many bytes
/// were in them.
///
/// # Errors
/// One cannot be removed.
pub fn remove_unused(containers: &Containers, wanted: impl Fn(&Volume) -> bool) -> Result<(Vec<String>, u64), Failure> {
    let volumes = Volumes::beside(containers)?;
    let held = containers.hold()?;
    let users = containers.all()?;
    let (mut gone, mut bytes) = (Vec::new(), 0);
    for volume in volumes.all()? {
        if Filter::Dangling(true).fits(&volume, &users) && wanted(&volume) {
            bytes += volumes.size(&volume.name);
            volumes.remove(&volume.name, &held)?;
            gone.push(volume.name);
        }
    }
    Ok((gone, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let text = str::to_owned;
        assert_eq!(Filter::parse("name=a=b"), Ok(Filter::Name(text("a=b"))));
        assert_eq!(Filter::parse("label=a=b"), LabelFilter::parse("a=b").map(Filter::Label));
        assert_eq!(Filter::parse("dangling=1"), Ok(Filter::Dangling(true)));
        for wrong in ["name", "x=y", "dangling=maybe"] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
