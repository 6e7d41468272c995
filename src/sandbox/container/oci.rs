// SPDX-License-Identifier: Apache-2.0
//! `config.json` of a bundle (OCI runtime specification), as Docker writes it, from the same description of a container
//! that the agent in a guest gets.

use std::path::PathBuf;

use coracle_agent::users::Identity;
use coracle_protocol::{Container, Process, ResourceLimit, Source};
use serde_json::{Value, json};

use crate::sandbox::capabilities;

/// What Docker hides, and what it lets only be read (moby `oci/defaults.go`).
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Names of resource limits, in the order of their numbers on x86 (`asm-generic/resource.h`).
const LIMITS: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];
/// Flags of `mount(2)` and what an OCI runtime calls them.
const FLAGS: [(u32, &str); 4] = [(1, "ro"), (2, "nosuid"), (4, "nodev"), (8, "noexec")];
/// Microseconds over which the time on CPUs is limited.
const PERIOD_US: u64 = 100_000;
/// Number of `CAP_MKNOD`.
const MKNOD: u64 = 1 << 27;

/// What the host gives a container.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Directories and files of the host's, by what the description calls them.
    pub shares: Vec<(String, PathBuf)>,
    /// Files that were made for it: where they are, in the order of the description.
    pub files: Vec<PathBuf>,
    /// The network namespace to join; `None` for one of its own, with nothing but a loopback.
    pub network: Option<PathBuf>,
    /// Its control group; `None` for that of who starts it.
    pub cgroup: Option<String>,
    /// Whether control groups are of version 2, and can be shown to it.
    pub show_cgroup: bool,
    /// Whether the kernel can be told which devices it may use; else it may make none.
    pub guards_devices: bool,
    /// Most memory, in bytes.
    pub memory: Option<u64>,
    /// CPUs that it may use up.
    pub cpus: Option<u32>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The configuration of a container and its first process, which is `who`.
pub fn config(container: &Container, process: &Process, who: &Identity, place: &Place) -> Value {
    let mut mounts = defaults(container, place);
    mounts.extend(container.mounts.iter().filter_map(|mount| {
        let target = text(&mount.target);
        let flags = FLAGS.iter().filter(|(bit, _)| mount.flags & bit != 0).map(|(_, name)| (*name).to_owned());
        match &mount.source {
            Source::Memory(options) => {
                let options = text(options);
                let rest = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned);
                let options: Vec<String> = flags.chain(rest).collect();
                Some(json!({ "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options }))
            }
            Source::Shared(tag) | Source::SharedFile(tag, _) | Source::Filled(tag) => {
                let (_, source) = place.shares.iter().find(|(name, _)| name == tag.as_str())?;
                let options: Vec<String> = ["rbind", "rprivate"].map(str::to_owned).into_iter().chain(flags).collect();
                Some(json!({ "destination": target, "type": "bind", "source": source, "options": options }))
            }
        }
    }));
    mounts.extend(container.files.iter().zip(&place.files).map(|(file, source)| {
        let options = ["rbind", "rprivate"];
        json!({ "destination": text(&file.path), "type": "bind", "source": source, "options": options })
    }));
    let mut namespaces = vec![json!({ "type": "mount" }), json!({ "type": "uts" }), json!({ "type": "pid" })];
    namespaces.push(json!({ "type": "ipc" }));
    namespaces.push(match &place.network {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    });
    if place.show_cgroup {
        namespaces.push(json!({ "type": "cgroup" }));
    }
    let mut linux = json!({ "namespaces": namespaces, "resources": resources(container, place) });
    if let Some(cgroup) = &place.cgroup {
        linux["cgroupsPath"] = json!(cgroup);
    }
    if !container.privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    let parameters = container.sysctls.iter().map(|one| (text(&one.name), Value::String(text(&one.value))));
    linux["sysctl"] = Value::Object(parameters.collect());
    json!({
        "ociVersion": "1.0.2",
        "process": self::process(process, who, place),
        "root": { "path": "rootfs", "readonly": container.read_only },
        "hostname": container.hostname,
        "mounts": mounts,
        "linux": linux,
    })
}

/// A process of a container, who is `who` in it: its first, or another.
pub fn process(process: &Process, who: &Identity, place: &Place) -> Value {
    let words = |list: &[Vec<u8>]| list.iter().map(|word| text(word)).collect::<Vec<_>>();
    let mut environment = words(&process.environment);
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", text(&who.home)));
    }
    // Who can make a node for any device needs somebody to guard them.
    let mask = if place.guards_devices { process.capabilities } else { process.capabilities & !MKNOD };
    let names = capabilities::NAMES.iter().enumerate().filter(|(number, _)| mask & (1 << number) != 0);
    let set: Vec<String> = names.map(|(_, name)| format!("CAP_{name}")).collect();
    // As with Docker, a user other than root gets none, but for what programs with set-user-ID bits may take.
    let in_force: &[String] = if who.user == 0 { &set } else { &[] };
    let mut value = json!({
        "terminal": process.terminal.is_some(),
        "user": { "uid": who.user, "gid": who.group, "additionalGids": who.groups },
        "args": words(&process.arguments),
        "env": environment,
        "cwd": text(&process.directory),
        "capabilities": { "bounding": set, "effective": in_force, "permitted": in_force },
        "noNewPrivileges": process.no_new_privileges,
        "rlimits": process.limits.iter().filter_map(limit).collect::<Vec<_>>(),
    });
    if let Some(size) = process.terminal.filter(|size| size.rows > 0) {
        value["consoleSize"] = json!({ "height": size.rows, "width": size.columns });
    }
    value
}

fn limit(limit: &ResourceLimit) -> Option<Value> {
    let name = LIMITS.get(usize::from(limit.resource))?;
    Some(json!({ "type": format!("RLIMIT_{name}"), "soft": limit.soft, "hard": limit.hard }))
}

/// What each container has mounted.
fn defaults(container: &Container, place: &Place) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let kernel: &[&str] =
        if container.privileged { &["nosuid", "noexec", "nodev"] } else { &["nosuid", "noexec", "nodev", "ro"] };
    let shm = format!("size={}", container.shm_size);
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", kernel),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ];
    if place.show_cgroup {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", kernel));
    }
    mounts
}

fn resources(container: &Container, place: &Place) -> Value {
    let mut resources = json!({});
    if place.guards_devices {
        // What the runtime always allows comes after it: null, zero, full, random, tty and terminals.
        resources["devices"] = json!([{ "allow": container.privileged, "access": "rwm" }]);
    }
    if let Some(bytes) = place.memory {
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(cpus) = place.cpus {
        resources["cpu"] = json!({ "quota": u64::from(cpus) * PERIOD_US, "period": PERIOD_US });
    }
    if let Some(most) = container.pids_limit {
        resources["pids"] = json!({ "limit": most });
    }
    resources
}

#[cfg(test)]
mod tests {
    use coracle_protocol::{Mount, Text, WindowSize};

    use super::*;

    fn pointer<'a>(value: &'a Value, path: &str) -> &'a Value {
        value.pointer(path).unwrap_or_else(|| panic!("{path} in {value:#}"))
    }

    fn root() -> Identity {
        Identity { home: b"/root".to_vec(), groups: vec![0], ..Identity::default() }
    }

    fn run() -> Process {
        let arguments = vec![b"sh".to_vec(), b"-c".to_vec()];
        Process { arguments, directory: b"/srv".to_vec(), capabilities: capabilities::DEFAULT, ..Process::default() }
    }

    #[test]
    fn rights_are_dockers() {
        let guarded = Place { guards_devices: true, ..Place::default() };
        let value = process(&run(), &root(), &guarded);
        assert_eq!(pointer(&value, "/capabilities/effective").as_array().unwrap().len(), 14);
        assert_eq!(pointer(&value, "/env/0"), "HOME=/root");
        assert!(value.get("consoleSize").is_none() && value["terminal"] == false);
        let user = Identity { user: 33, ..root() };
        let value = process(&run(), &user, &guarded);
        assert_eq!(pointer(&value, "/capabilities/effective").as_array().unwrap().len(), 0);
        assert_eq!(pointer(&value, "/capabilities/bounding").as_array().unwrap().len(), 14);
        // Nobody to guard devices: none can be made.
        let value = process(&run(), &root(), &Place::default());
        let names = pointer(&value, "/capabilities/bounding").as_array().unwrap();
        assert!(names.len() == 13 && !names.contains(&json!("CAP_MKNOD")), "{names:?}");
        let terminal = Process {
            terminal: Some(WindowSize { rows: 30, columns: 100 }),
            limits: vec![ResourceLimit { resource: 7, soft: 10, hard: 20 }],
            ..run()
        };
        let value = process(&terminal, &root(), &guarded);
        assert_eq!(value["consoleSize"], json!({ "height": 30, "width": 100 }));
        assert_eq!(value["rlimits"], json!([{ "type": "RLIMIT_NOFILE", "soft": 10, "hard": 20 }]));
    }

    #[test]
    fn mounts_and_limits_are_what_was_described() {
        let container = Container {
            mounts: vec![
                Mount {
                    target: b"/run".to_vec(),
                    source: Source::Memory(b"size=1m,mode=700".to_vec()),
                    flags: 2 | 4 | 8,
                },
                Mount { target: b"/data".to_vec(), source: Source::Filled(Text::new("mount0")), flags: 1 },
            ],
            pids_limit: Some(9),
            shm_size: 4096,
            read_only: true,
            ..Container::default()
        };
        let place = Place {
            shares: vec![("mount0".into(), "/host/dir".into())],
            network: Some("/proc/1/fd/9".into()),
            cgroup: Some("/coracle/x".into()),
            memory: Some(1 << 20),
            cpus: Some(2),
            ..Place::default()
        };
        let value = config(&container, &run(), &root(), &place);
        let mounts = value["mounts"].as_array().unwrap();
        let at = |target: &str| mounts.iter().find(|mount| mount["destination"] == target).unwrap();
        assert_eq!(at("/run")["options"], json!(["nosuid", "nodev", "noexec", "size=1m", "mode=700"]));
        assert_eq!((&at("/data")["source"], &at("/data")["options"][2]), (&json!("/host/dir"), &json!("ro")));
        assert_eq!(at("/dev/shm")["options"][4], "size=4096");
        assert!(mounts.iter().all(|mount| mount["type"] != "cgroup"));
        assert_eq!(*pointer(&value, "/linux/resources/memory/limit"), 1 << 20);
        assert_eq!(*pointer(&value, "/linux/resources/cpu/quota"), 200_000);
        assert_eq!(*pointer(&value, "/linux/resources/pids/limit"), 9);
        assert_eq!(*pointer(&value, "/linux/namespaces/4/path"), "/proc/1/fd/9");
        assert_eq!(value["root"]["readonly"], true);
        assert!(value["linux"]["maskedPaths"].is_array() && value["linux"]["resources"].get("devices").is_none());
        let open = config(&Container { privileged: true, ..container }, &run(), &root(), &place);
        assert!(open["linux"].get("maskedPaths").is_none());
    }
}
