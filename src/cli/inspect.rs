// SPDX-License-Identifier: Apache-2.0
//! `coracle inspect`: all that is known, with Docker's field names.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use coracle::failure::Failure;
use coracle::image::{Found, Problem, Store};
use coracle::sandbox::Isolation;
use coracle::supervisor::{Container, Containers, LogDriver, MountSource, State, Status, Volumes};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::store;
use super::template::Template;

#[derive(Debug, Args)]
#[command(after_help = "Size of an image is that of its layers as they were transferred, compressed.")]
pub struct InspectArgs {
    /// Containers and images: names, or ids or their beginnings
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// `json`, or a text with fields in it: '{{.Id}} {{json .Config.Env}}'; a line for each
    #[arg(short, long, value_name = "TEMPLATE", value_parser = Template::of_object)]
    format: Option<Template>,
    /// Only those of this kind
    #[arg(long = "type", value_name = "KIND", value_enum)]
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Image,
}

/// Prints those that there are, in the order asked for.
///
/// # Errors
/// The first that is not here.
pub fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let store = store::open("cannot inspect")?;
    let containers = Containers::open(store.root())?;
    let (mut found, mut failure) = (Vec::new(), None);
    for name in &args.names {
        match describe(&store, &containers, name, args.kind) {
            Ok(description) => found.push(description),
            Err(problem) => _ = failure.get_or_insert(problem),
        }
    }
    match &args.format {
        None => writeln!(io::stdout(), "{:#}", Value::Array(found))?,
        Some(template) => found.iter().try_for_each(|one| writeln!(io::stdout(), "{}", template.render(one)))?,
    }
    failure.map_or(Ok(ExitCode::SUCCESS), |failure| Err(failure.into()))
}

fn describe(store: &Store, containers: &Containers, name: &str, kind: Option<Kind>) -> Result<Value, Failure> {
    let what = format!("cannot inspect {name}");
    if kind != Some(Kind::Image) {
        match containers.find(name, &what) {
            Ok(container) => return Ok(describe_container(&container, &container.state()?)),
            Err(failure) if kind.is_some() => return Err(failure),
            Err(_) => {}
        }
    }
    let image = store.find(name).and_then(|image| describe_image(store, &image));
    image.map_err(|problem| match (problem, kind) {
        (Problem::NotHere, None) => {
            Failure::new(&what, "there is no such container or image", "`coracle ps -a`, `coracle images`")
        }
        (problem, _) => store::explain(&what)(problem),
    })
}

fn describe_container(container: &Container, state: &State) -> Value {
    let config = &container.config;
    let never = || "0001-01-01T00:00:00Z".to_owned();
    let time = |time: Option<Timestamp>| time.map_or_else(never, |time| time.to_string());
    let (path, arguments) = config.process.arguments.split_first().map_or(("", &[][..]), |(path, rest)| (path, rest));
    let (entrypoint, command) =
        config.process.arguments.split_at_checked(config.process.entrypoint).unwrap_or_default();
    // As Docker has them: `null` where there are none.
    let words = |words: &[String]| if words.is_empty() { Value::Null } else { json!(words) };
    json!({
        "Id": config.id,
        "Created": config.created.to_string(),
        "Path": path,
        "Args": arguments,
        "State": {
            "Status": state.status.word(),
            "Running": state.status.is_up(),
            "Paused": state.status == Status::Paused,
            "Restarting": false,
            "OOMKilled": state.exit.out_of_memory,
            "Dead": false,
            "Pid": state.pid,
            "ExitCode": state.exit.status,
            "Error": state.error,
            "StartedAt": time(state.started),
            "FinishedAt": time(state.finished),
        },
        "Image": config.image.id,
        "LogPath": container.log(),
        "Name": format!("/{}", config.name),
        "RestartCount": 0,
        "Driver": "erofs",
        "Platform": "linux",
        "Mounts": mounts(container),
        "NetworkSettings": network_settings(container, state),
        "HostConfig": {
            "NetworkMode": config.network.as_ref().map_or("none", |network| &network.name),
            "ReadonlyRootfs": config.surroundings.read_only,
            "Privileged": config.surroundings.privileged,
            "Init": config.surroundings.init,
            "PidsLimit": config.surroundings.pids_limit,
            "ShmSize": config.surroundings.shm_size,
            "Tmpfs": config.surroundings.tmpfs.iter().cloned().collect::<BTreeMap<_, _>>(),
            "AutoRemove": config.remove,
            "KeepsCaches": config.keeps_caches,
            "Isolation": config.isolation.to_string(),
            "Runtime": match &config.isolation {
                Isolation::MicroVm => json!("coracle-vmm"),
                Isolation::Container { runtime } => json!(runtime),
            },
            "LogConfig": { "Type": if config.log == LogDriver::None { "none" } else { "json-file" }, "Config": {} },
            "Memory": config.shape.memory_mib << 20,
            "NanoCpus": u64::from(config.shape.cpus) * 1_000_000_000,
        },
        "Config": {
            "Hostname": config.process.hostname,
            "User": config.process.user,
            "Tty": config.terminal,
            "OpenStdin": config.interactive,
            "Env": config.process.environment,
            "Entrypoint": words(entrypoint),
            "Cmd": words(command),
            "Image": config.image.name,
            "WorkingDir": config.process.directory,
            "Labels": config.labels,
            "StopSignal": config.stop_signal,
            "StopTimeout": config.stop_timeout,
        },
    })
}

/// As `docker inspect` has them.
fn mounts(container: &Container) -> Vec<Value> {
    let data = container.siblings().and_then(|containers| Volumes::beside(&containers));
    let of_host = container.config.mounts.iter().map(|mount| {
        let rest = json!({ "Destination": mount.target, "Mode": if mount.read_only { "ro" } else { "" }, "RW": !mount.read_only });
        let source = match &mount.source {
            MountSource::Bind { path, .. } => json!({ "Type": "bind", "Source": path, "Propagation": "rprivate" }),
            MountSource::Volume { name, .. } => {
                let place = data.as_ref().ok().map(|volumes| volumes.data(name));
                json!({ "Type": "volume", "Name": name, "Source": place, "Driver": "local", "Propagation": "" })
            }
        };
        match (source, rest) {
            (Value::Object(source), Value::Object(rest)) => Value::Object(source.into_iter().chain(rest).collect()),
            (source, _) => source,
        }
    });
    of_host.collect()
}

/// As `docker inspect` has them, the first network's once more at the top.
fn network_settings(container: &Container, state: &State) -> Value {
    let mut ports = serde_json::Map::new();
    for port in &state.ports {
        let name = format!("{}/{}", port.container, port.protocol);
        let host = json!({ "HostIp": port.host.ip().to_string(), "HostPort": port.host.port().to_string() });
        if let Some(list) = ports.entry(name).or_insert_with(|| json!([])).as_array_mut() {
            list.push(host);
        }
    }
    let text = |wanted: fn(&&IpNet) -> bool| {
        let found = state.addresses.iter().find(wanted);
        found.map_or((String::new(), 0), |net| (net.addr().to_string(), net.prefix_len()))
    };
    let (v4, v4_prefix) = text(|net| matches!(net, IpNet::V4(_)));
    let (v6, v6_prefix) = text(|net| matches!(net, IpNet::V6(_)));
    let network = json!({
        "IPAddress": v4,
        "IPPrefixLen": v4_prefix,
        "GlobalIPv6Address": v6,
        "GlobalIPv6PrefixLen": v6_prefix,
        "Aliases": container.config.network.as_ref().map(|network| &network.aliases),
    });
    let name = container.config.network.as_ref().map(|network| network.name.clone());
    let networks: BTreeMap<String, Value> = name.map(|name| (name, network)).into_iter().collect();
    json!({ "IPAddress": v4, "IPPrefixLen": v4_prefix, "GlobalIPv6Address": v6, "Ports": ports, "Networks": networks })
}

fn describe_image(store: &Store, found: &Found) -> Result<Value, Problem> {
    let Found { image, record, .. } = found;
    let raw = store.configuration(image)?;
    let field = |name: &str| raw.get(name).cloned().unwrap_or_default();
    let text = |name: &str| raw.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(json!({
        "Id": image.id,
        "RepoTags": store::familiar(&record.names),
        "RepoDigests": store::familiar(&record.sources),
        "Created": field("created"),
        "Author": text("author"),
        "Architecture": text("architecture"),
        "Variant": text("variant"),
        "Os": text("os"),
        "Size": image.size(),
        "Config": field("config"),
        "RootFS": { "Type": "layers", "Layers": image.diff_ids() },
        "ManifestDigest": image.manifest_digest,
        "History": field("history"),
    }))
}
