// SPDX-License-Identifier: Apache-2.0
//! `coracle network`: networks of containers, with Docker's flags, columns and fields.

use std::io::{self, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use coracle::failure::Failure;
use coracle::network::{self, DEFAULT, Network, New, Store};
use coracle::supervisor::spare;
use ipnet::{IpNet, Ipv4Net};
use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use super::labels::{self, LabelFilter};
use super::template::{Lines, Template};
use super::{error, system, units};

#[derive(Debug, Args)]
pub struct NetworkArgs {
    #[command(subcommand)]
    verb: NetworkVerb,
}

#[derive(Debug, Subcommand)]
enum NetworkVerb {
    /// Create a network.
    Create(CreateArgs),
    /// List networks.
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show all that is known of networks, as a JSON array.
    Inspect(InspectArgs),
    /// Remove networks.
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove all networks that no container is attached to.
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Containers of a network reach each other, also by name, and those of other networks not at all.\n\
                        The name `bridge` gives the default network other addresses, while nobody is attached to it."
)]
struct CreateArgs {
    /// Its name
    #[arg(value_name = "NETWORK")]
    name: String,
    /// `bridge` is the only one there is
    #[arg(short, long, default_value = "bridge", value_parser = ["bridge"])]
    driver: String,
    /// Its addresses: 10.5.0.0/24; one for each IP version
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// The host's address in it; the first if none is given
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// The part of it that containers get addresses from
    #[arg(long, value_name = "CIDR")]
    ip_range: Option<Ipv4Net>,
    /// Without a way to the world outside
    #[arg(long)]
    internal: bool,
    /// With IPv6
    #[arg(long)]
    ipv6: bool,
    /// A label
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    /// An option: com.docker.network.driver.mtu=BYTES
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = option)]
    option: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct LsArgs {
    /// Only some: name=TEXT, id=DIGITS, driver=NAME, label=KEY[=VALUE], dangling=true
    #[arg(short, long, value_name = "FILTER", value_parser = Filter::parse)]
    filter: Vec<Filter>,
    /// `table`, `json` for an object a line, or a text with fields in it: '{{.Name}} {{.ID}}'
    #[arg(long, value_name = "TEMPLATE", default_value = "table", hide_default_value = true, value_parser = Lines::parse)]
    format: Lines,
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    /// IDs only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Names, or IDs or their beginnings
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// `json`, or a text with fields in it: '{{.Id}} {{json .IPAM.Config}}'; a line for each network
    #[arg(short, long, value_name = "TEMPLATE", value_parser = Template::of_object)]
    format: Option<Template>,
}

#[derive(Debug, Args)]
struct RmArgs {
    /// Names, or IDs or their beginnings
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// No complaint about what is not here
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Only some: label=KEY[=VALUE], label!=KEY[=VALUE], until=HOURSh or a time (RFC 3339)
    #[arg(long, value_name = "FILTER", value_parser = Filter::parse)]
    filter: Vec<Filter>,
}

/// A condition on networks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Name(String),
    Id(String),
    Driver(String),
    Label(LabelFilter),
    NoLabel(LabelFilter),
    Dangling(bool),
    Until(Timestamp),
}

impl Filter {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("a filter is a name, `=`, and a value")?;
        let value = value.to_owned();
        match name {
            "name" => Ok(Self::Name(value)),
            "id" => Ok(Self::Id(value)),
            "driver" => Ok(Self::Driver(value)),
            "label" => LabelFilter::parse(&value).map(Self::Label),
            "label!" => LabelFilter::parse(&value).map(Self::NoLabel),
            "dangling" => value.parse().map(Self::Dangling).map_err(|_| "`true` or `false`".to_owned()),
            "until" => until(&value).map(Self::Until),
            _ => Err(format!("`{name}` is not known: there are name, id, driver, label, label!, dangling and until")),
        }
    }

    fn fits(&self, network: &Network) -> bool {
        match self {
            Self::Name(text) => network.name.contains(text.as_str()),
            Self::Id(text) => network.id.starts_with(text.as_str()),
            Self::Driver(text) => text == "bridge",
            Self::Label(filter) => filter.fits(&network.labels),
            Self::NoLabel(filter) => !filter.fits(&network.labels),
            Self::Dangling(wanted) => *wanted == (network.name != DEFAULT && network.containers().next().is_none()),
            Self::Until(limit) => network.created.parse::<Timestamp>().is_ok_and(|created| created < *limit),
        }
    }
}

/// A duration before now, or a time.
fn until(text: &str) -> Result<Timestamp, String> {
    let before = |hours: i64, minutes: i64| {
        let span = hours.hours().minutes(minutes);
        Timestamp::now().checked_sub(span).map_err(|error| error.to_string())
    };
    let number = |suffix| text.strip_suffix(suffix).and_then(|digits: &str| digits.parse::<u16>().ok()).map(i64::from);
    match (number('h'), number('m')) {
        (Some(hours), _) => before(hours, 0),
        (None, Some(minutes)) => before(0, minutes),
        (None, None) => text.parse().map_err(|_| format!("`{text}` is neither hours (24h), minutes (5m) nor a time")),
    }
}

/// Does what the verb says.
///
/// # Errors
/// There is no such network, it is in use, or the files cannot be written.
pub fn run(args: &NetworkArgs) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    match &args.verb {
        NetworkVerb::Create(args) => create(&store, args),
        NetworkVerb::Ls(args) => ls(&store, args),
        NetworkVerb::Inspect(args) => inspect(&store, args),
        NetworkVerb::Rm(args) => return rm(&store, args),
        NetworkVerb::Prune(args) => prune(&store, args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn create(store: &Store, args: &CreateArgs) -> anyhow::Result<()> {
    let what = || format!("cannot create network `{}`", args.name);
    if !network::may_create() {
        let next = format!("as root; without, each container has a network of its own (`{DEFAULT}`)");
        return Err(Failure::new(what(), "networks of several containers are bridges, which are for root", next).into());
    }
    let new = New {
        name: args.name.clone(),
        subnets: args.subnet.clone(),
        gateways: args.gateway.clone(),
        range: args.ip_range,
        internal: args.internal,
        ipv6: args.ipv6,
        labels: args.label.iter().cloned().collect(),
        options: args.option.iter().cloned().collect(),
    };
    let network = network::create(store, &new)?;
    // The default one may have been made anew.
    spare::dismiss(|of| of == Some(&network.name));
    writeln!(io::stdout(), "{}", network.id)?;
    Ok(())
}

/// For clap: an option has a value.
fn option(word: &str) -> Result<(String, String), String> {
    match word.contains('=') {
        true => labels::parse(word),
        false => Err(format!("`{word}` is not of the form KEY=VALUE")),
    }
}

fn ls(store: &Store, args: &LsArgs) -> anyhow::Result<()> {
    let networks = network::list(store)?;
    let wanted = networks.iter().filter(|network| args.filter.iter().all(|filter| filter.fits(network)));
    let id = |network: &Network| short(&network.id, args.no_trunc);
    let mut out = io::stdout().lock();
    if args.quiet {
        for network in wanted {
            writeln!(out, "{}", id(network))?;
        }
        return Ok(());
    }
    let Lines::Template(template) = &args.format else {
        let row = |network: &Network| vec![id(network), network.name.clone(), "bridge".to_owned(), "local".to_owned()];
        let rows: Vec<_> = wanted.map(row).collect();
        return units::table(&mut out, &["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows)
            .context("cannot print networks");
    };
    for network in wanted {
        let labels = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let line = json!({
            "CreatedAt": network.created,
            "Driver": "bridge",
            "ID": id(network),
            "IPv4": "true",
            "IPv6": network.ipv6.is_some().to_string(),
            "Internal": network.internal.to_string(),
            "Labels": labels,
            "Name": network.name,
            "Scope": "local",
        });
        writeln!(out, "{}", template.render(&line))?;
    }
    Ok(())
}

fn short(id: &str, whole: bool) -> String {
    if whole { id } else { id.get(..12).unwrap_or(id) }.to_owned()
}

fn inspect(store: &Store, args: &InspectArgs) -> anyhow::Result<()> {
    let networks = network::list(store)?;
    let (mut found, mut failure) = (Vec::new(), None);
    for name in &args.networks {
        match network::find(&networks, name, &format!("cannot inspect network `{name}`")) {
            Ok(network) => found.push(describe(network)),
            Err(problem) => _ = failure.get_or_insert(problem),
        }
    }
    match &args.format {
        None => writeln!(io::stdout(), "{:#}", Value::Array(found))?,
        Some(template) => {
            found.iter().try_for_each(|network| writeln!(io::stdout(), "{}", template.render(network)))?;
        }
    }
    failure.map_or(Ok(()), |failure| Err(failure.into()))
}

fn describe(network: &Network) -> Value {
    let mut v4 = json!({ "Subnet": network.ipv4.subnet, "Gateway": network.ipv4.gateway });
    if let (Some(range), Some(object)) = (network.ipv4.range, v4.as_object_mut()) {
        object.insert("IPRange".to_owned(), json!(range));
    }
    let v6 = network.ipv6.as_ref().map(|pool| json!({ "Subnet": pool.subnet, "Gateway": pool.gateway }));
    let containers: serde_json::Map<String, Value> = network
        .containers()
        .map(|(id, lease)| {
            let addresses: Vec<String> = network.addresses(lease).iter().map(ToString::to_string).collect();
            let container = json!({
                "Name": lease.names.first().unwrap_or(id),
                "EndpointID": lease.tap,
                "MacAddress": lease.mac,
                "IPv4Address": addresses.first().cloned().unwrap_or_default(),
                "IPv6Address": addresses.get(1).cloned().unwrap_or_default(),
            });
            (id.clone(), container)
        })
        .collect();
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": network.created,
        "Scope": "local",
        "Driver": "bridge",
        "EnableIPv4": true,
        "EnableIPv6": network.ipv6.is_some(),
        "IPAM": {
            "Driver": "default",
            "Options": {},
            "Config": std::iter::once(v4).chain(v6).collect::<Vec<_>>(),
        },
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": containers,
        "Options": network.options,
        "Labels": network.labels,
    })
}

fn rm(store: &Store, args: &RmArgs) -> anyhow::Result<ExitCode> {
    let mut status = ExitCode::SUCCESS;
    for name in &args.networks {
        let networks = network::list(store)?;
        if args.force && network::find(&networks, name, "").is_err() {
            continue;
        }
        match network::remove(store, name) {
            Ok(removed) => {
                spare::dismiss(|of| of == Some(&removed.name));
                // As it was spelled, which is what Docker prints.
                writeln!(io::stdout(), "{name}")?;
            }
            Err(problem) => {
                error::report(&problem.into());
                status = ExitCode::FAILURE;
            }
        }
    }
    Ok(status)
}

fn prune(store: &Store, args: &PruneArgs) -> anyhow::Result<()> {
    let (what, all) = ("cannot remove unused networks", " all networks that no container is attached to.");
    if !args.force && !system::asked(what, "coracle network prune --force", all)? {
        return Ok(());
    }
    let removed = network::prune(store, |network| args.filter.iter().all(|filter| filter.fits(network)))?;
    spare::dismiss(|of| removed.iter().any(|removed| of == Some(&removed.name)));
    if removed.is_empty() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    writeln!(out, "Deleted Networks:")?;
    removed.iter().try_for_each(|removed| writeln!(out, "{}", removed.name))?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        let text = str::to_owned;
        assert_eq!(Filter::parse("name=a=b"), Ok(Filter::Name(text("a=b"))));
        assert_eq!(Filter::parse("label=a"), LabelFilter::parse("a").map(Filter::Label));
        assert_eq!(Filter::parse("label!=a=b"), LabelFilter::parse("a=b").map(Filter::NoLabel));
        assert_eq!(Filter::parse("dangling=true"), Ok(Filter::Dangling(true)));
        assert!(matches!(Filter::parse("until=24h"), Ok(Filter::Until(_))));
        assert!(matches!(Filter::parse("until=2026-01-01T00:00:00Z"), Ok(Filter::Until(_))));
        for wrong in ["name", "x=y", "dangling=1", "label=", "until=x"] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
    }
}
