// SPDX-License-Identifier: Apache-2.0
//! `crun run` and `runc run`, on a bundle made from the same image: its EROFS disk below, an empty upper layer for each
//! run above, and `config.json` as Docker writes it (OCI runtime specification).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coracle_agent::users;
use rustix::mount::{UnmountFlags, unmount};

use super::super::machine::has_cgroup2;
use super::super::measure::Until;
use super::guest::SHM;
use super::{Backend, Choice, Kind, Run, Workload, Workspace};
use crate::sandbox::capabilities;
use crate::sandbox::container::may_guard_devices;
use crate::sandbox::container::oci::{Place, config};
use crate::sandbox::container::rootfs::{self, Layers};
use crate::supervisor::{Surroundings, describe};

/// The root of a bundle.
#[derive(Clone, Debug)]
pub struct Root(Layers);

impl Root {
    /// Mounts it anew, with nothing written.
    ///
    /// # Errors
    /// The kernel's.
    pub fn renew(&self) -> io::Result<()> {
        // The first time there is nothing to be unmounted.
        let _ = unmount(&self.0.merged, UnmountFlags::DETACH);
        match fs::remove_dir_all(&self.0.upper) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.0.mount(true)
    }
}

/// The ways to run it: in a control group, as users have it, and without one, where the host has none that works.
pub fn candidates(choice: &Choice, workload: &Workload, workspace: &Workspace) -> Result<Vec<Backend>, String> {
    let kind = choice.kind;
    let version = choice.version()?;
    workspace.can_mount()?;
    let lower = mounted(&workload.disk, workspace)?;
    let file = |name: &str| rootfs::read_inside(&lower, name);
    let user = users::find(workload.process.user.as_bytes(), &[], &file("etc/passwd"), &file("etc/group"));
    let user = user.map_err(|_| format!("the image has no user `{}`", workload.process.user))?;
    let bundle = |cgroups: bool, number: usize| -> io::Result<(Vec<String>, Root)> {
        let bundle = workspace.make(&format!("{kind}-{}-{number}", if cgroups { "cgroup" } else { "plain" }))?;
        let state = workspace.make(&format!("{kind}-state"))?;
        let (upper, merged) = (bundle.join("upper"), bundle.join("rootfs"));
        let root = Root(Layers { lower: lower.clone(), upper, merged });
        let container = describe::bare_container(&workload.process, SHM);
        let mut place = Place {
            show_cgroup: cgroups && has_cgroup2(),
            guards_devices: cgroups && may_guard_devices(),
            ..Place::default()
        };
        for (number, file) in container.files.iter().enumerate() {
            let path = bundle.join(format!("file{number}"));
            fs::write(&path, &file.content)?;
            place.files.push(path);
        }
        let around = Surroundings { capabilities: capabilities::DEFAULT, ..Surroundings::default() };
        let process = describe::process(&workload.process, &around, None);
        let config = config(&container, &process, &user, &place);
        fs::write(bundle.join("config.json"), config.to_string())?;
        let mut command = vec![choice.program.clone(), "--root".to_owned(), state.display().to_string()];
        command.extend((!cgroups).then(|| "--cgroup-manager=disabled".to_owned()));
        command.extend(["run".to_owned(), "--bundle".to_owned(), bundle.display().to_string()]);
        command.push(format!("coracle-bench-{number}"));
        Ok((command, root))
    };
    let with = |cgroups: bool| -> io::Result<Backend> {
        let (command, root) = bundle(cgroups, 0)?;
        let beside = (1..workload.at_once).map(|number| bundle(cgroups, number)).collect::<io::Result<_>>()?;
        let without = "without control groups, which do not work for it here".to_owned();
        let notes = if cgroups { Vec::new() } else { vec![without] };
        let run = Run::Program { root: Some(root), until: Until::Exit };
        Ok(Backend { choice: choice.clone(), command, version: version.clone(), notes, beside, way: 0, run })
    };
    // runc has no way to do without.
    let ways: &[bool] = if kind == Kind::Crun { &[true, false] } else { &[true] };
    ways.iter().map(|&cgroups| with(cgroups)).collect::<io::Result<_>>().map_err(|error| error.to_string())
}

/// Mounts the image's disk, if that has not been done for another runtime.
pub fn mounted(disk: &Path, workspace: &Workspace) -> Result<PathBuf, String> {
    let failed = |error: io::Error| format!("cannot mount the image's disk: {error}");
    let lower = workspace.path().join("lower");
    if lower.exists() {
        return Ok(lower);
    }
    workspace.make("lower").map_err(failed)?;
    rootfs::mount_image(disk, &lower).map_err(|error| {
        // So that the next runtime tries, and fails, as well.
        let _ = fs::remove_dir(&lower);
        failed(error)
    })?;
    Ok(lower)
}
