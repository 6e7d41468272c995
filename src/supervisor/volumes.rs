// SPDX-License-Identifier: Apache-2.0
//! Volumes: directories that outlast containers.
//!
//! ```text
//! volumes/NAME/_data         what containers see
//! volumes/NAME/volume.json   when it was made, and what was noted about it; without this file there is no volume
//! ```
//!
//! Volumes are made and removed under the lock of containers ([`Containers::hold`]), since containers say which are in
//! use.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::backing::{self, Backing};
use super::containers::{Container, Containers, Held};
use super::mounts::MountUse;
use super::names;
use super::record::Config;
use crate::failure::Failure;

/// The volumes of one user.
#[derive(Clone, Debug)]
pub struct Volumes {
    root: PathBuf,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// What others have noted about it.
    pub labels: BTreeMap<String, String>,
    /// What it is made of: see [`Backing`].
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Nobody has named it: it was made for a container.
    pub anonymous: bool,
}

/// What is said of a volume when it is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// What is noted about it.
    pub labels: BTreeMap<String, String>,
    /// What it is made of: see [`Backing`].
    pub options: BTreeMap<String, String>,
}

impl Volume {
    /// What it is made of.
    ///
    /// # Errors
    /// It was written by another release.
    pub fn backing(&self) -> Result<Backing, Failure> {
        let what = format!("cannot use volume {}", self.name);
        Backing::read(&self.options).map_err(|wrong| Failure::new(what, wrong.why, wrong.instead))
    }
}

impl Volumes {
    /// Those kept below `data`, where containers are kept too.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(data: &Path) -> Result<Self, Failure> {
        let root = data.join("volumes");
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(cannot("open", &root))?;
        Ok(Self { root })
    }

    /// Those beside these containers.
    ///
    /// # Errors
    /// As for [`Volumes::open`].
    pub fn beside(containers: &Containers) -> Result<Self, Failure> {
        Self::open(containers.data())
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<Vec<Volume>, Failure> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(cannot("read", &self.root))? {
            let name = entry.map_err(cannot("read", &self.root))?.file_name();
            if let Some(volume) = name.to_str().map(|name| self.find(name)).transpose()?.flatten() {
                all.push(volume);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The one with this name.
    ///
    /// # Errors
    /// What is written about it cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Volume>, Failure> {
        if !names::is_name(name) {
            return Ok(None);
        }
        let path = self.root.join(name).join("volume.json");
        match fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
            Ok(volume) => Ok(Some(volume)),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(cannot("read", &path)(error)),
        }
    }

    /// The directory of a volume's own, which containers see unless it is a bind.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// The volume with this name; made if there is none.
    ///
    /// # Errors
    /// It is no name, what it is to be made of is not understood, or there is no room.
    pub fn ensure(
        &self,
        name: &str,
        description: &Description,
        anonymous: bool,
        _held: &Held,
    ) -> Result<Volume, Failure> {
        if !names::is_name(name) {
            let why = "a name is two letters or digits or more, with `_`, `.` and `-` after the first";
            return Err(Failure::new(format!("cannot create volume `{name}`"), why, "another name"));
        }
        if let Some(volume) = self.find(name)? {
            return Ok(volume);
        }
        let Description { labels, options } = description.clone();
        Backing::read(&options)
            .map_err(|wrong| Failure::new(format!("cannot create volume `{name}`"), wrong.why, wrong.instead))?;
        let volume = Volume { name: name.to_owned(), created: Timestamp::now(), labels, options, anonymous };
        let directory = self.root.join(name);
        let make = || -> io::Result<()> {
            // What was there was being made, or removed, by somebody who was killed.
            clear(&directory)?;
            fs::create_dir(&directory)?;
            // With the image's owner and rights, if it is filled from there.
            DirBuilder::new().mode(0o755).create(self.data(name))?;
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            file.write_all(&serde_json::to_vec_pretty(&volume)?)?;
            file.persist(directory.join("volume.json")).map_err(|error| error.error)?;
            Ok(())
        };
        make().map_err(cannot("make", &directory))?;
        Ok(volume)
    }

    /// A new one for a container.
    ///
    /// # Errors
    /// As for [`Volumes::ensure`].
    pub fn anonymous(&self, description: &Description, held: &Held) -> Result<Volume, Failure> {
        let what = "cannot name a volume";
        let name = names::new_id().map_err(|error| Failure::new(what, error, "a kernel with getrandom(2)"))?;
        self.ensure(&name, description, true, held)
    }

    /// Removes a volume, which no container may use.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str, _held: &Held) -> Result<(), Failure> {
        let directory = self.root.join(name);
        // From here on there is no volume, whatever becomes of the rest.
        match fs::remove_file(directory.join("volume.json")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot("remove", &directory)(error)),
            _ => {}
        }
        clear(&directory).map_err(cannot("remove", &directory))
    }

    /// Removes the volumes that were made for a container which is no more, unless others use them.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_anonymous(&self, config: &Config, containers: &Containers) -> Result<(), Failure> {
        let mut names = config.mounts.iter().filter(|mount| mount.is_anonymous()).filter_map(|mount| mount.volume());
        let Some(first) = names.next() else { return Ok(()) };
        let held = containers.hold()?;
        let all = containers.all()?;
        let unused = |name: &&str| all.iter().all(|one| !one.config.uses_volume(name));
        std::iter::once(first).chain(names).filter(unused).try_for_each(|name| self.remove(name, &held))
    }

    /// What is to be shared of a volume with a container that starts, and whether it may be written; a file system in memory
    /// is mounted, empty unless another container uses it. [`Volumes::take_down`] is to be called when it has ended.
    ///
    /// # Errors
    /// It cannot be mounted, which is for root.
    pub fn bring_up(&self, volume: &Volume, container: &Container) -> Result<(PathBuf, bool), Failure> {
        let data = self.data(&volume.name);
        match volume.backing()? {
            Backing::Directory => Ok((data, true)),
            Backing::Bind { path, read_only } => Ok((path, !read_only)),
            Backing::Memory(tmpfs) => {
                let held = container.siblings()?.hold()?;
                // A monitor that was killed has left it.
                self.unmount_unused(&volume.name, container, &held)?;
                tmpfs.mount(&data).map_err(|error| {
                    let what = format!("cannot mount a tmpfs for volume {}", volume.name);
                    Failure::new(what, error, "as root, with other options; `--tmpfs DIR` is for everybody")
                })?;
                Ok((data, true))
            }
        }
    }

    /// Ends what [`Volumes::bring_up`] has begun, unless another container uses it.
    pub fn take_down(&self, container: &Container) {
        let outcome = || -> Result<(), Failure> {
            for name in container.config.mounts.iter().filter_map(MountUse::volume) {
                if let Some(volume) = self.find(name)?
                    && matches!(volume.backing()?, Backing::Memory(_))
                {
                    self.unmount_unused(name, container, &container.siblings()?.hold()?)?;
                }
            }
            Ok(())
        };
        if let Err(failure) = outcome() {
            log::warn!("{}: {}", failure.what, failure.why);
        }
    }

    /// Unmounts a volume that no other container uses than this one.
    fn unmount_unused(&self, name: &str, container: &Container, _held: &Held) -> Result<(), Failure> {
        let uses = |other: &Container| -> Result<bool, Failure> {
            let is_other = other.config.id != container.config.id && other.config.uses_volume(name);
            Ok(is_other && (other.state()?.is_looked_after() || other.has_monitor()?))
        };
        for other in container.siblings()?.all()? {
            if uses(&other)? {
                return Ok(());
            }
        }
        let data = self.data(name);
        backing::unmount(&data).map_err(cannot("unmount", &data))
    }

    /// Bytes of what is in a volume, as far as it can be read.
    pub fn size(&self, name: &str) -> u64 {
        size(&self.data(name))
    }
}

fn size(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Removes a volume's directory, not what a killed monitor has left mounted there.
fn clear(directory: &Path) -> io::Result<()> {
    match backing::unmount(&directory.join("_data")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn cannot(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {verb} {}", path.display());
    move |error| Failure::new(what, error, "look at the directory's owner and the space left there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_made_once_found_and_removed() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let volumes = Volumes::beside(&containers).unwrap();
        let held = containers.hold().unwrap();
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let described = Description { labels, ..Description::default() };
        let made = volumes.ensure("db", &described, false, &held).unwrap();
        fs::write(volumes.data("db").join("file"), "12345").unwrap();
        assert_eq!(volumes.ensure("db", &Description::default(), true, &held).unwrap(), made);
        assert_eq!((volumes.all().unwrap(), volumes.size("db")), (vec![made], 5));
        let unnamed = volumes.anonymous(&described, &held).unwrap();
        assert_eq!((unnamed.name.len(), &unnamed.labels), (64, &described.labels));
        for name in ["../db", "", "a/b", ".."] {
            assert!(volumes.ensure(name, &described, false, &held).is_err() && volumes.find(name).unwrap().is_none());
        }
        volumes.remove("db", &held).unwrap();
        assert!(volumes.find("db").unwrap().is_none() && !data.path().join("volumes/db").exists());
    }

    #[test]
    fn what_was_half_made_is_no_volume_and_in_nobodys_way() {
        let data = tempfile::tempdir().unwrap();
        let containers = Containers::open(data.path()).unwrap();
        let volumes = Volumes::beside(&containers).unwrap();
        fs::create_dir_all(volumes.data("db").join("old")).unwrap();
        assert!(volumes.all().unwrap().is_empty());
        let held = containers.hold().unwrap();
        volumes.ensure("db", &Description::default(), false, &held).unwrap();
        assert_eq!(fs::read_dir(volumes.data("db")).unwrap().count(), 0);
    }
}
