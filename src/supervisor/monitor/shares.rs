// SPDX-License-Identifier: Apache-2.0
//! What of the host's a container sees: a virtiofsd for each of its mounts.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::supervisor::containers::Container;
use crate::supervisor::describe::Shared;
use crate::supervisor::mounts::{MountSource, MountUse};
use crate::supervisor::volumes::Volumes;
use crate::vmm::virtiofsd::{Share, Virtiofsd};

/// Starts a virtiofsd for each mount of a container, with its socket in `sockets`; gives with each what the guest is to
/// make of it. To be called by a thread that lives as long as the container.
///
/// # Errors
/// What is to be mounted is not there, or there is no virtiofsd.
pub fn start(container: &Container, sockets: &Path, first: bool) -> Result<Vec<(Virtiofsd, Shared)>, Failure> {
    let mounts = &container.config.mounts;
    if mounts.is_empty() {
        return Ok(Vec::new());
    }
    let volumes = Volumes::beside(&container.siblings()?)?;
    let start = |(number, mount): (usize, &MountUse)| {
        let Source { path, writable, copy } = source(&volumes, mount, container)?;
        let read_only = mount.read_only || !writable;
        let share = Share { tag: format!("mount{number}"), source: path, read_only };
        let serving = Virtiofsd::start(&share, sockets)?;
        let shared = Shared {
            target: mount.target.clone(),
            tag: share.tag,
            is_file: serving.is_file(),
            read_only,
            // A read-only one cannot be filled, and later what is missing may have been removed.
            fill: copy && first && !read_only,
        };
        Ok((serving, shared))
    };
    mounts.iter().enumerate().map(start).collect()
}

/// Ends what [`start`] has begun besides, once what it gave is dropped.
pub fn end(container: &Container) {
    if let Ok(volumes) = container.siblings().and_then(|containers| Volumes::beside(&containers)) {
        volumes.take_down(container);
    }
}

/// What is mounted.
struct Source {
    /// Where on the host it is.
    path: PathBuf,
    /// Whether it may be written by those who may write the mount.
    writable: bool,
    /// Whether the image fills it.
    copy: bool,
}

fn source(volumes: &Volumes, mount: &MountUse, container: &Container) -> Result<Source, Failure> {
    let what = || format!("cannot start container {}", container.config.name);
    match &mount.source {
        MountSource::Bind { path, create } => {
            match fs::metadata(path) {
                Ok(_) => {}
                Err(error) if *create && error.kind() == ErrorKind::NotFound => {
                    let failed = |error| {
                        let why = format!("cannot make {}, which is to be mounted: {error}", path.display());
                        Failure::new(what(), why, "a path in a directory that you may write to")
                    };
                    fs::create_dir_all(path).map_err(failed)?;
                }
                Err(error) => {
                    let why = format!("{} is to be mounted in it: {error}", path.display());
                    return Err(Failure::new(what(), why, format!("make {}, or mount another", path.display())));
                }
            }
            Ok(Source { path: path.clone(), writable: true, copy: false })
        }
        MountSource::Volume { name, copy, .. } => match volumes.find(name)? {
            Some(volume) => {
                let (path, writable) = volumes.bring_up(&volume, container)?;
                Ok(Source { path, writable, copy: *copy })
            }
            None => {
                let why = format!("volume {name} is no more");
                Err(Failure::new(what(), why, format!("`coracle volume create {name}`, for an empty one")))
            }
        },
    }
}
