// SPDX-License-Identifier: Apache-2.0
//! `coracle create`, and the flags that it shares with `run`.

mod mounts;
mod network;
mod surroundings;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, Args, ValueEnum};
use coracle::failure::Failure;
use coracle::image::{Image, Platform, PullOptions, PullPolicy, Store};
use coracle::sandbox::{Isolation, LEAST_MEMORY_MIB, Overrides, ProcessSpec, Shape, container};
use coracle::signals;
use coracle::supervisor::{Config, Container, Containers, ImageUse, LogDriver, Origin, Snapshots, names};
use jiff::Timestamp;

use self::mounts::MountArgs;
use self::network::NetworkArgs;
use self::surroundings::SurroundingsArgs;
pub use self::surroundings::bytes;
use super::containers;
use super::pull_progress::{ProgressKind, PullProgress};
use super::registry_access::AccessArgs;
use super::{labels, store};

/// Signal that asks a program to end, unless its image or the user says another.
const SIGTERM: u8 = 15;
/// Seconds that it then has, as with Docker.
const STOP_TIMEOUT: u64 = 10;

/// Bytes of the disk of a container that is kept; it takes of the host only what is written.
const STORAGE_SIZE: u64 = 10 << 30;

/// What was settled when the program of a snapshot started, and cannot be otherwise now.
const NOT_FROM_SNAPSHOTS: [&str; 35] = [
    "interactive",
    "tty",
    "env",
    "env_file",
    "workdir",
    "user",
    "entrypoint",
    "cpus",
    "memory",
    "no_template",
    "no_reclaim",
    "isolation",
    "oci_runtime",
    "storage_size",
    "volume",
    "mount",
    "publish_all",
    "expose",
    "read_only",
    "tmpfs",
    "shm_size",
    "pids_limit",
    "cap_add",
    "cap_drop",
    "privileged",
    "init",
    "security_opt",
    "ulimit",
    "group_add",
    "sysctl",
    "add_host",
    "pull",
    "platform",
    "image",
    "command",
];

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateArgs {
    #[command(flatten)]
    container: ContainerArgs,
}

/// What is between a container and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A microVM
    #[value(alias = "microvm")]
    Vm,
    /// Namespaces and control groups of the host's kernel
    Container,
}

// What a container is made of.
#[derive(Debug, Args)]
pub struct ContainerArgs {
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set a variable: NAME=VALUE, or NAME to pass on one's own
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read variables from a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Directory to start in
    #[arg(short, long, value_name = "DIR", value_parser = directory)]
    workdir: Option<String>,
    /// Who to run as: USER[:GROUP], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Program to run instead of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Name of the machine; the container's id unless it is given
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Print help; -h is --hostname here, as with Docker
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// What is between the container and the host: vm, a microVM; or container, namespaces of the host's kernel
    #[arg(long, value_name = "KIND", default_value = "vm")]
    isolation: Kind,
    /// The OCI runtime for --isolation container: a path, or a name [default: crun]
    #[arg(long, value_name = "PROGRAM")]
    oci_runtime: Option<PathBuf>,
    /// Number of vCPUs, 1 to 8; a fraction is rounded up
    #[arg(long, value_name = "N", default_value = "1", value_parser = vcpus)]
    cpus: u32,
    /// Memory of the microVM, such as 512m or 2g; a number alone is in bytes, or in MiB where it is small
    #[arg(short, long, value_name = "SIZE", default_value = "128m", value_parser = memory)]
    memory: u64,
    /// Start the microVM from its kernel, not as a clone of a template
    #[arg(long)]
    no_template: bool,
    /// Keep what the guest caches of its disks even where the host is short of memory, and the container idle
    #[arg(long)]
    no_reclaim: bool,
    /// Note something about the container: NAME=VALUE
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = labels::parse)]
    label: Vec<(String, String)>,
    /// Signal that asks the program to end
    #[arg(long, value_name = "SIGNAL", value_parser = signal)]
    stop_signal: Option<u8>,
    /// Seconds that it then has; -1 for as long as it takes
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Where the program's output is kept: json-file or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file", value_parser = log_driver)]
    log_driver: LogDriver,
    /// When to start the program again: no, as yet
    #[arg(long, value_name = "POLICY", default_value = "no", hide_default_value = true)]
    restart: String,
    /// Write the container's id to this file, which may not exist
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Size of the disk for what is written; 0 to write into the microVM's memory, as with --rm
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    storage_size: Option<u64>,
    #[command(flatten)]
    network: NetworkArgs,
    #[command(flatten)]
    mounts: MountArgs,
    #[command(flatten)]
    surroundings: SurroundingsArgs,
    /// When to ask the registry for the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: PullPolicy,
    /// The image for this platform: OS/ARCHITECTURE[/VARIANT]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// How to show what a pull does
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    progress: ProgressKind,
    #[command(flatten)]
    access: AccessArgs,
    /// Go on from a snapshot of a container, instead of starting a program; ports are published as said here
    #[arg(long, value_name = "SNAPSHOT", conflicts_with_all = NOT_FROM_SNAPSHOTS)]
    from: Option<String>,
    /// The image: a name, an ID, or oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME]
    #[arg(required_unless_present = "from", default_value = "", hide_default_value = true)]
    pub image: String,
    /// The command, and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Makes it, and prints its id.
///
/// # Errors
/// What could not be done, in three lines.
pub fn run(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let what = format!("cannot create a container of {}", args.container.origin());
    let container = args.container.create(&what)?;
    writeln!(io::stdout(), "{}", container.config.id)?;
    Ok(ExitCode::SUCCESS)
}

impl ContainerArgs {
    /// Makes the container; `what` is what fails otherwise.
    ///
    /// # Errors
    /// There is no such image, or it cannot be made as the flags say.
    pub fn create(&self, what: &str) -> anyhow::Result<Container> {
        self.check_restart(what)?;
        if let Some(snapshot) = &self.from {
            return Ok(self.clone_of(snapshot, what)?);
        }
        let isolation = self.isolation(what)?;
        let store = store::open(what)?;
        // Nobody removes the image before there is a container that uses it.
        let _held = store.hold_content().map_err(store::explain(what))?;
        let image = self.obtain(&store)?;
        // Made now, so that the start is quick.
        store.rootfs(&image).map_err(Failure::from)?;
        let containers = Containers::open(store.root())?;
        let cidfile = self.cidfile(what)?;
        let environment = environment(&self.env_file, &self.env, what)?;
        let container = containers.create(self.name.as_deref(), |id, name, held| {
            let config = self.config(id, name, &image, environment, isolation, what)?;
            self.mounts.mount(config, image_volumes(&image), &containers, held, what)
        })?;
        if let Some(mut file) = cidfile {
            file.write_all(container.config.id.as_bytes())?;
        }
        Ok(container)
    }

    fn isolation(&self, what: &str) -> Result<Isolation, Failure> {
        let conflict = |why: &str, instead: &str| Err(Failure::new(what, why, instead));
        match (self.isolation, &self.oci_runtime) {
            (Kind::Vm, None) => Ok(Isolation::MicroVm),
            (Kind::Vm, Some(_)) => {
                conflict("an OCI runtime is for containers without a VM", "--isolation container as well")
            }
            (Kind::Container, _) if self.no_template => {
                conflict("without a VM there is no template", "the same without --no-template")
            }
            (Kind::Container, _) if self.no_reclaim => {
                conflict("without a VM the host's own kernel decides what is cached", "the same without --no-reclaim")
            }
            (Kind::Container, runtime) => {
                container::may_run(what)?;
                let name = runtime.as_deref().unwrap_or(Path::new(container::runtime::DEFAULT));
                Ok(Isolation::Container { runtime: container::runtime::find(name, what)? })
            }
        }
    }

    /// The configuration of such a container, which is not made and of which the id means nothing.
    ///
    /// # Errors
    /// As for [`ContainerArgs::create`].
    pub fn describe(&self, what: &str) -> anyhow::Result<Config> {
        let store = store::open(what)?;
        let _held = store.hold_content().map_err(store::explain(what))?;
        let image = self.obtain(&store)?;
        store.rootfs(&image).map_err(Failure::from)?;
        let id = names::new_id().map_err(|error| Failure::new(what, error, "a kernel with getrandom(2)"))?;
        let environment = environment(&self.env_file, &self.env, what)?;
        let isolation = self.isolation(what)?;
        if isolation.is_container() {
            return Err(Failure::new(what, "without a VM there is no template", "the same without --isolation").into());
        }
        let config = self.config(id, String::new(), &image, environment, isolation, what)?;
        let volumes = image_volumes(&image);
        match volumes.first() {
            None => Ok(config),
            Some(volume) => {
                let why = format!("its containers have a volume at {volume}, and start from the base template");
                Err(Failure::new(what, why, "`coracle template warm`").into())
            }
        }
    }

    /// A container that goes on from a snapshot when it is started.
    fn clone_of(&self, name: &str, what: &str) -> Result<Container, Failure> {
        let containers = containers::open(what)?;
        let snapshot = Snapshots::beside(&containers)?.find(name, what)?;
        let network = self.network.reconnect(snapshot.config.network.as_ref(), what)?;
        let cidfile = self.cidfile(what)?;
        let container = containers.create(self.name.as_deref(), |id, name, _| {
            let hostname = self.hostname.clone().unwrap_or_else(|| id.chars().take(12).collect());
            let from = Some(Origin { snapshot: snapshot.name, id: snapshot.id });
            let then = snapshot.config;
            let mut labels = then.labels;
            labels.extend(self.label.iter().cloned());
            Ok(Config {
                id,
                name,
                created: Timestamp::now(),
                from,
                process: then.process.renamed(&hostname),
                remove: self.rm,
                stop_signal: self.stop_signal.unwrap_or(then.stop_signal),
                stop_timeout: self.stop_timeout.map_or(then.stop_timeout, |seconds| u64::try_from(seconds).ok()),
                labels,
                log: self.log_driver,
                network,
                ..then
            })
        })?;
        let told = cidfile.map_or(Ok(()), |mut file| file.write_all(container.config.id.as_bytes()));
        told.map_err(|error| Failure::new(what, format!("cannot write the --cidfile: {error}"), "another one"))?;
        Ok(container)
    }

    /// Whether the program has input, and a terminal.
    ///
    /// # Errors
    /// There is no such snapshot.
    pub fn program(&self, what: &str) -> Result<(bool, bool), Failure> {
        match &self.from {
            None => Ok((self.interactive, self.tty)),
            Some(name) => {
                let config = Snapshots::beside(&containers::open(what)?)?.find(name, what)?.config;
                Ok((config.interactive, config.terminal))
            }
        }
    }

    /// What a person calls what it is made of.
    pub fn origin(&self) -> String {
        match &self.from {
            None => format!("image {}", self.image),
            Some(name) => format!("snapshot {name}"),
        }
    }

    fn cidfile(&self, what: &str) -> Result<Option<fs::File>, Failure> {
        let Some(path) = &self.cidfile else { return Ok(None) };
        fs::File::create_new(path).map(Some).map_err(|error| {
            let why = format!("cannot make {}: {error}", path.display());
            Failure::new(what, why, "another --cidfile, or remove it")
        })
    }

    fn check_restart(&self, what: &str) -> Result<(), Failure> {
        let policy = self.restart.as_str();
        let why = match policy.split_once(':').map_or(policy, |(name, _)| name) {
            "no" | "" => return Ok(()),
            "always" | "unless-stopped" | "on-failure" => format!("to restart `{policy}` is not there yet"),
            _ => format!("`{policy}` is no restart policy: there is `no`, as yet"),
        };
        Err(Failure::new(what, why, "`--restart no`, and a service manager such as systemd around it"))
    }

    /// Where ports are published that were given no address.
    pub fn unspoken_ports(&self) -> Vec<String> {
        self.network.unspoken_ports()
    }

    fn obtain(&self, store: &Store) -> anyhow::Result<Image> {
        let platform = self.platform.clone().unwrap_or_else(Platform::native);
        let progress = PullProgress::new(self.progress);
        let options = PullOptions { platform, access: self.access.access() };
        let image = store.obtain(&self.image, self.pull, &options, &progress);
        progress.finish();
        Ok(image.map_err(Failure::from)?)
    }

    fn config(
        &self,
        id: String,
        name: String,
        image: &Image,
        environment: Vec<String>,
        isolation: Isolation,
        what: &str,
    ) -> Result<Config, Failure> {
        if !isolation.is_container() && self.memory < LEAST_MEMORY_MIB {
            let why = format!("a microVM of {} MiB has no room for its kernel and its agent", self.memory);
            return Err(Failure::new(what, why, format!("at least `--memory {LEAST_MEMORY_MIB}m`")));
        }
        let hostname = self.hostname.clone().unwrap_or_else(|| id.chars().take(12).collect());
        let overrides = Overrides {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            environment,
            directory: self.workdir.clone(),
            user: self.user.clone(),
            terminal: self.tty,
        };
        let process = ProcessSpec::new(&image.config, &overrides, &hostname)?;
        let settings = image.config.config().clone().unwrap_or_default();
        let of_image = settings.stop_signal().as_deref().and_then(signals::number);
        let mut labels = settings.labels().clone().unwrap_or_default();
        labels.extend(self.label.iter().cloned());
        Ok(Config {
            id,
            name,
            created: Timestamp::now(),
            image: ImageUse { name: self.image.clone(), id: image.id, manifest: image.manifest_digest },
            process,
            isolation,
            shape: Shape { cpus: self.cpus, memory_mib: self.memory },
            cold: self.no_template,
            keeps_caches: self.no_reclaim,
            from: None,
            terminal: self.tty,
            interactive: self.interactive,
            remove: self.rm,
            stop_signal: self.stop_signal.or(of_image).unwrap_or(SIGTERM),
            stop_timeout: self.stop_timeout.map_or(Some(STOP_TIMEOUT), |seconds| u64::try_from(seconds).ok()),
            labels: labels.into_iter().collect(),
            log: self.log_driver,
            // What goes with the container anyway needs no disk.
            storage_size: self.storage_size.or((!self.rm).then_some(STORAGE_SIZE)).filter(|size| *size > 0),
            network: self.network.read(settings.exposed_ports().as_deref().unwrap_or_default(), what)?,
            mounts: Vec::new(),
            surroundings: self.surroundings.read(),
        })
    }
}

/// Where an image wants volumes.
fn image_volumes(image: &Image) -> Vec<String> {
    image.config.config().as_ref().and_then(|config| config.volumes().clone()).unwrap_or_default()
}

/// The variables of files, one a line, and then those of flags.
///
/// # Errors
/// A file cannot be read, or a variable has no name.
pub fn environment(files: &[PathBuf], flags: &[String], what: &str) -> Result<Vec<String>, Failure> {
    let mut environment = Vec::new();
    for path in files {
        let text = fs::read_to_string(path).map_err(|error| {
            Failure::new(what, format!("cannot read {}: {error}", path.display()), "another --env-file")
        })?;
        let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        environment.extend(lines.map(str::to_owned));
    }
    environment.extend(flags.iter().cloned());
    match environment.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        Some(entry) => Err(Failure::new(what, format!("`{entry}` is no variable"), "NAME=VALUE")),
        None => Ok(environment),
    }
}

/// For clap: `--cpus`.
pub fn vcpus(text: &str) -> Result<u32, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    (1..=8)
        .find(|&cpus| number > 0.0 && number <= f64::from(cpus))
        .ok_or_else(|| "a microVM has 1 to 8 vCPUs".to_owned())
}

/// For clap: `--memory`, in MiB. As with Docker a number is in bytes; none that a VM could have is as small as one of MiB.
pub fn memory(text: &str) -> Result<u64, String> {
    let size = bytes(text)?;
    match text.bytes().all(|byte| byte.is_ascii_digit()) && size < 1 << 20 {
        true => Ok(size),
        false => Ok(size.div_ceil(1 << 20)),
    }
}

/// For clap: a directory in a container.
///
/// # Errors
/// It is not absolute.
pub fn directory(text: &str) -> Result<String, String> {
    match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is no absolute path")),
    }
}

/// For clap: a signal's name or number.
pub fn signal(text: &str) -> Result<u8, String> {
    signals::number(text).ok_or_else(|| format!("`{text}` is no signal"))
}

fn log_driver(text: &str) -> Result<LogDriver, String> {
    match text {
        "json-file" => Ok(LogDriver::JsonFile),
        "none" => Ok(LogDriver::None),
        _ => Err(format!("there is no log driver `{text}`: json-file or none")),
    }
}
