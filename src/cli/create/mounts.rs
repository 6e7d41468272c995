// SPDX-License-Identifier: Apache-2.0
//! Flags that say what of the host's a container sees.

use std::path::{Path, PathBuf};

use clap::Args;
use coracle::failure::Failure;
use coracle::supervisor::mounts::{Misunderstood, Wish, Wished};
use coracle::supervisor::{Config, Containers, Description, Held, MountSource, MountUse, Volumes};

// What of the host's a container sees.
#[derive(Debug, Args)]
#[command(next_help_heading = "Files of the host")]
pub struct MountArgs {
    /// Mount a volume or a path of the host: [VOLUME|PATH:]DIR[:ro]; without either, a new volume
    #[arg(short, long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// The same at more length: type=bind|volume|tmpfs,source=…,target=DIR[,readonly]
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Mount what another container has mounted, at the same places: CONTAINER[:ro]
    #[arg(long, value_name = "CONTAINER")]
    volumes_from: Vec<String>,
    /// Kind of the volumes: local is the only one there is
    #[arg(long, value_name = "DRIVER", default_value = "local", value_parser = ["local"], hide_default_value = true)]
    volume_driver: String,
}

impl MountArgs {
    /// Adds to `config` what they say and what the image wants; volumes that are not there are made.
    ///
    /// # Errors
    /// They are not understood or contradict each other, or what is to be mounted is not there.
    pub fn mount(
        &self,
        mut config: Config,
        of_image: Vec<String>,
        containers: &Containers,
        held: &Held,
        what: &str,
    ) -> Result<Config, Failure> {
        let volumes = Volumes::beside(containers)?;
        let explain = |wrong: Misunderstood| Failure::new(what, wrong.why, wrong.instead);
        let asked = self.volume.iter().map(|text| Wish::volume(text));
        let asked = asked.chain(self.mount.iter().map(|text| Wish::mount(text)));
        let mut wishes = asked.collect::<Result<Vec<_>, _>>().map_err(explain)?;
        let mut taken: Vec<String> = config.surroundings.tmpfs.iter().map(|(target, _)| target.clone()).collect();
        for Wish { target, .. } in &wishes {
            if taken.contains(target) {
                let why = format!("two are to be mounted at {target}");
                return Err(Failure::new(what, why, "another place for one of them"));
            }
            taken.push(target.clone());
        }
        // What the user names at the same place counts more.
        for mount in self.of_others(containers, what)? {
            if !taken.contains(&mount.target) {
                taken.push(mount.target.clone());
                config.mounts.push(mount);
            }
        }
        for target in of_image {
            let wish = Wish::of_image(&target).map_err(explain)?;
            if !taken.contains(&wish.target) {
                wishes.push(wish);
            }
        }
        // All are understood before the first volume is made.
        let wishes = wishes.into_iter().map(|wish| settle(wish, what)).collect::<Result<Vec<_>, _>>()?;
        for Wish { target, what, read_only } in wishes {
            let source = match what {
                Wished::Memory(options) => {
                    config.surroundings.tmpfs.push((target, options));
                    continue;
                }
                Wished::Bind { path, create } => MountSource::Bind { path, create },
                Wished::Volume { name: Some(name), copy } => {
                    volumes.ensure(&name, &Description::default(), false, held)?;
                    MountSource::Volume { name, anonymous: false, copy }
                }
                Wished::Volume { name: None, copy } => {
                    let made = volumes.anonymous(&Description::default(), held)?;
                    MountSource::Volume { name: made.name, anonymous: true, copy }
                }
            };
            config.mounts.push(MountUse { target, source, read_only });
        }
        Ok(config)
    }

    /// What the containers of `--volumes-from` have mounted; where two have something at one place, that of the last.
    fn of_others(&self, containers: &Containers, what: &str) -> Result<Vec<MountUse>, Failure> {
        let mut mounts: Vec<MountUse> = Vec::new();
        for text in &self.volumes_from {
            let (name, mode) = text.split_once(':').unwrap_or((text, ""));
            let mut read_only = false;
            for word in mode.split(',').filter(|word| !word.is_empty()) {
                match word {
                    "ro" => read_only = true,
                    // One that is read-only there stays so here. There is no SELinux between the guest's users.
                    "rw" | "z" | "Z" => {}
                    _ => {
                        let why = format!("`{word}` says nothing of how to mount what {name} has: there are ro and rw");
                        return Err(Failure::new(what, why, format!("`--volumes-from {name}:ro`")));
                    }
                }
            }
            let none =
                || Failure::new(what, format!("there is no container {name} to have volumes from"), "`coracle ps -a`");
            for mount in containers.look_up(name, what)?.ok_or_else(none)?.config.mounts {
                mounts.retain(|other| other.target != mount.target);
                // It was filled for the other.
                let source = match mount.source {
                    MountSource::Volume { name, anonymous, .. } => MountSource::Volume { name, anonymous, copy: false },
                    bind @ MountSource::Bind { .. } => bind,
                };
                mounts.push(MountUse { source, read_only: mount.read_only || read_only, ..mount });
            }
        }
        Ok(mounts)
    }
}

/// A path of the host's as it is from everywhere, and there if it has to be.
fn settle(wish: Wish, what: &str) -> Result<Wish, Failure> {
    let Wished::Bind { path, create } = &wish.what else { return Ok(wish) };
    let absolute = std::path::absolute(path).map(|path| without_parents(&path));
    let absolute = absolute.map_err(|error| Failure::new(what, error, "an absolute path"))?;
    if !create && let Err(error) = std::fs::metadata(&absolute) {
        let why = format!("{} is to be mounted: {error}", absolute.display());
        return Err(Failure::new(what, why, "-v instead of --mount, which makes a directory there"));
    }
    Ok(Wish { what: Wished::Bind { path: absolute, create: *create }, ..wish })
}

/// As Go's `filepath.Abs` has it, which Docker goes by.
fn without_parents(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => _ = clean.pop(),
            part => clean.push(part),
        }
    }
    clean
}
