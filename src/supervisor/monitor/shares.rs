// SPDX-License-Identifier: Apache-2.0
//! What of the host's a container sees: a virtiofsd for each of its mounts, or with no VM between the mounts themselves.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::sandbox::Ground;
use crate::supervisor::containers::Container;
use crate::supervisor::describe::Shared;
use crate::supervisor::mounts::{MountSource, MountUse};
use crate::supervisor::record::Config;
use crate::supervisor::volumes::Volumes;
use crate::vmm::virtiofsd::{Share, Virtiofsd};

/// The mounts of a container, as they are on the host.
pub struct Shares(Vec<Found>);

struct Found {
    share: Share,
    target: String,
    is_file: bool,
    fill: bool,
}

impl Shares {
    /// Finds them; `first` says whether it is about to start for the first time.
    ///
    /// # Errors
    /// What is to be mounted is not there.
    pub fn find(container: &Container, first: bool) -> Result<Self, Failure> {
        let mounts = &container.config.mounts;
        if mounts.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let volumes = Volumes::beside(&container.siblings()?)?;
        let find = |(number, mount): (usize, &MountUse)| {
            let Source { path, writable, copy } = source(&volumes, mount, container)?;
            let read_only = mount.read_only || !writable;
            let is_file = fs::metadata(&path).is_ok_and(|status| !status.is_dir());
            let share = Share { tag: format!("mount{number}"), source: path, read_only };
            // A read-only one cannot be filled, and later what is missing may have been removed.
            let fill = copy && first && !read_only;
            Ok(Found { share, target: mount.target.clone(), is_file, fill })
        };
        mounts.iter().enumerate().map(find).collect::<Result<_, _>>().map(Self)
    }

    /// Starts a virtiofsd for each, with its socket in `sockets`. To be called by a thread that lives as long as the
    /// container.
    ///
    /// # Errors
    /// There is no virtiofsd.
    pub fn serve(&self, sockets: &Path) -> Result<Vec<Virtiofsd>, Failure> {
        self.0.iter().map(|found| Virtiofsd::start(&found.share, sockets)).collect()
    }

    /// What the container is to make of them.
    pub fn describe(&self) -> Vec<Shared> {
        let describe = |found: &Found| Shared {
            target: found.target.clone(),
            tag: found.share.tag.clone(),
            is_file: found.is_file,
            read_only: found.share.read_only,
            fill: found.fill,
        };
        self.0.iter().map(describe).collect()
    }

    /// What a container is made from that has no VM.
    pub fn ground(
        &self,
        config: &Config,
        runtime: &Path,
        rootfs: PathBuf,
        written: Option<PathBuf>,
        sockets: &Path,
        network: Option<PathBuf>,
    ) -> Ground {
        Ground {
            id: config.id.clone(),
            runtime: runtime.to_owned(),
            rootfs,
            written,
            shares: self.0.iter().map(|found| (found.share.tag.clone(), found.share.source.clone())).collect(),
            network,
            directory: sockets.to_owned(),
            cpus: config.shape.cpus,
            memory_mib: config.shape.memory_mib,
        }
    }
}

/// Ends what [`Shares::find`] has begun, once nobody uses what it gave any more.
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
