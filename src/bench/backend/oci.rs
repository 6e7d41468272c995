// SPDX-License-Identifier: Apache-2.0
//! `crun run` and `runc run`, on a bundle made from the same image: its EROFS disk below, an empty upper layer for each
//! run above, and `config.json` as Docker writes it (OCI runtime specification).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use super::super::machine::{has_cgroup2, version};
use super::super::measure::Until;
use super::users::{self, User};
use super::{Backend, Kind, Run, Workload, Workspace};
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

/// The root of a bundle.
#[derive(Clone, Debug)]
pub struct Root {
    lower: PathBuf,
    /// Holds the upper layer and the overlay's own directory.
    upper: PathBuf,
    merged: PathBuf,
}

impl Root {
    /// Mounts it anew, with nothing written.
    ///
    /// # Errors
    /// The kernel's.
    pub fn renew(&self) -> io::Result<()> {
        // The first time there is nothing to be unmounted.
        let _ = unmount(&self.merged, UnmountFlags::DETACH);
        match fs::remove_dir_all(&self.upper) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (files, work) = (self.upper.join("files"), self.upper.join("work"));
        [&files, &work, &self.merged].into_iter().try_for_each(fs::create_dir_all)?;
        let [lower, files, work] = [&self.lower, &files, &work].map(|path| path.display().to_string());
        let options = std::ffi::CString::new(format!("lowerdir={lower},upperdir={files},workdir={work}"))?;
        Ok(mount("overlay", &self.merged, "overlay", MountFlags::empty(), options.as_c_str())?)
    }
}

/// The ways to run it: in a control group, as users have it, and without one, where the host has none that works.
pub fn candidates(kind: Kind, workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let version = version(kind.name()).ok_or_else(|| format!("it is not installed: apt-get install {kind}"))?;
    workspace.can_mount()?;
    let lower = mounted(&workload.disk, workspace)?;
    let user = users::look_up(&workload.process.user, &lower)?;
    let with = |cgroups: bool| -> io::Result<Backend> {
        let bundle = workspace.make(&format!("{kind}-{}", if cgroups { "cgroup" } else { "plain" }))?;
        let state = workspace.make(&format!("{kind}-state"))?;
        let root = Root { lower: lower.clone(), upper: bundle.join("upper"), merged: bundle.join("rootfs") };
        for (name, text) in [("hostname", "bench\n"), ("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost\n")] {
            fs::write(bundle.join(name), text)?;
        }
        let config = config(workload, &user, &bundle, cgroups && has_cgroup2(), cgroups);
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut command = vec![kind.name().to_owned(), "--root".to_owned(), state.display().to_string()];
        command.extend((!cgroups).then(|| "--cgroup-manager=disabled".to_owned()));
        command.extend(["run".to_owned(), "--bundle".to_owned(), bundle.display().to_string()]);
        command.push("coracle-bench".to_owned());
        let without = "without control groups, which do not work for it here".to_owned();
        let notes = if cgroups { Vec::new() } else { vec![without] };
        let run = Run::Program { root: Some(root), until: Until::Exit };
        Ok(Backend { kind, command, version: version.clone(), notes, run })
    };
    // runc has no way to do without.
    let ways: &[bool] = if kind == Kind::Crun { &[true, false] } else { &[true] };
    ways.iter().map(|&cgroups| with(cgroups)).collect::<io::Result<_>>().map_err(|error| error.to_string())
}

/// Mounts the image's disk, if that has not been done for another runtime.
fn mounted(disk: &Path, workspace: &Workspace) -> Result<PathBuf, String> {
    let failed = |error: io::Error| format!("cannot mount the image's disk: {error}");
    let lower = workspace.path().join("lower");
    if lower.exists() {
        return Ok(lower);
    }
    workspace.make("lower").map_err(failed)?;
    // Where nothing loads modules on demand, there is no loop device yet. What comes of it, `mount` will say.
    if !Path::new("/dev/loop-control").exists() {
        let _ = Command::new("modprobe").args(["-a", "loop", "erofs"]).stdin(Stdio::null()).output();
    }
    // Through the program, which finds a loop device and gives it back with the mount.
    let mut command = Command::new("mount");
    command.args(["-t", "erofs", "-o", "ro,loop"]).arg(disk).arg(&lower).stdin(Stdio::null());
    let output = command.output().map_err(failed)?;
    match output.status.success() {
        true => Ok(lower),
        false => {
            // So that the next runtime tries, and fails, as well.
            let _ = fs::remove_dir(&lower);
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("cannot mount the image's disk: {}", said.lines().next().unwrap_or("mount failed")))
        }
    }
}

/// `config.json`.
fn config(workload: &Workload, user: &User, bundle: &Path, cgroup2: bool, limited: bool) -> Value {
    let process = &workload.process;
    let mut environment = process.environment.clone();
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={}", user.home));
    }
    let names = capabilities::NAMES.iter().enumerate();
    let set: Vec<String> = names
        .filter(|(number, _)| capabilities::DEFAULT & (1 << number) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect();
    // As with Docker, a user other than root gets none, but for what programs with set-user-ID bits may take.
    let in_force: &[String] = if user.uid == 0 { &set } else { &[] };
    let mount = |target: &str, kind: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": kind, "options": options });
    let file = |name: &str| {
        let source = bundle.join(name);
        json!({ "destination": format!("/etc/{name}"), "type": "bind", "source": source, "options": ["rbind", "rprivate"] })
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        file("hostname"),
        file("hosts"),
    ];
    let mut namespaces = vec!["mount", "network", "uts", "pid", "ipc"];
    if cgroup2 {
        mounts.push(mount("/sys/fs/cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"]));
        namespaces.push("cgroup");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    let mut linux = json!({ "namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY });
    if limited {
        linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
            "args": process.arguments,
            "env": environment,
            "cwd": process.directory,
            "capabilities": { "bounding": set, "effective": in_force, "permitted": in_force },
        },
        "root": { "path": "rootfs" },
        "hostname": process.hostname,
        "mounts": mounts,
        "linux": linux,
    })
}
