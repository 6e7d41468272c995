// SPDX-License-Identifier: Apache-2.0
//! Snapshots of containers, from which others go on.
//!
//! ```text
//! snapshots/NAME/state, memory    the microVM's (`vmm::snapshot`)
//! snapshots/NAME/written.ext4     the disk for what it writes, as it was at the same moment; where it has one
//! snapshots/NAME/container.json   what it was taken of, and a checksum of that
//! snapshots/.snapshot-*           one that is being taken, or was when its monitor was killed
//! snapshots.lock                  held, shared, while one is being taken
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::containers::{Containers, Held};
use super::names;
use super::record::{Config, Origin};
use crate::failure::Failure;
use crate::file_lock;
use crate::vmm::file_identity::FileIdentity;
use crate::vmm::snapshot::{NEW_PREFIX, NewSnapshot};

/// What is known of the container.
const RECORD: &str = "container.json";
/// Most bytes of that: a command line and an environment are in it.
const MAX_RECORD: u64 = 8 << 20;

/// The snapshots of one user.
#[derive(Clone, Debug)]
pub struct Snapshots {
    root: PathBuf,
}

/// One snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What people call it: the name of its directory.
    #[serde(skip)]
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// When it was taken.
    pub created: Timestamp,
    /// The container, as it was made.
    pub config: Config,
    /// Addresses that it had.
    pub addresses: Vec<IpNet>,
    /// Its image's disk.
    pub rootfs: FileIdentity,
    /// The copy of the disk for what it writes; `None` where it writes into memory.
    pub disk: Option<FileIdentity>,
    /// The snapshot whose memory it holds only the difference to.
    #[serde(default)]
    pub base: Option<Origin>,
}

/// One that is being taken.
#[derive(Debug)]
pub struct Begun {
    /// Its files.
    pub new: NewSnapshot,
    place: PathBuf,
    _taking: Held,
}

impl Snapshots {
    /// Those beside these containers.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn beside(containers: &Containers) -> Result<Self, Failure> {
        let root = containers.data().join("snapshots");
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(cannot("open", &root))?;
        Ok(Self { root })
    }

    /// All of them, the newest first. One that is damaged is left out, and said to be.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<Vec<Snapshot>, Failure> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(cannot("read", &self.root))? {
            let name = entry.map_err(cannot("read", &self.root))?.file_name();
            let Some(name) = name.to_str().filter(|name| names::is_name(name)) else { continue };
            match self.read(name) {
                Ok(snapshot) => all.push(snapshot),
                // One that is being removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => log::warn!("snapshot {name} is damaged: {error}"),
            }
        }
        all.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
        Ok(all)
    }

    /// The one with this name; `what` is what cannot be done without it.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn find(&self, name: &str, what: &str) -> Result<Snapshot, Failure> {
        let found = if names::is_name(name) { self.read(name) } else { Err(ErrorKind::NotFound.into()) };
        found.map_err(|error| match error.kind() {
            ErrorKind::NotFound => {
                Failure::new(what, format!("there is no snapshot {name} of a container"), "`coracle snapshot ls`")
            }
            _ => {
                Failure::new(what, format!("snapshot {name}: {error}"), "take another; `coracle snapshot rm` this one")
            }
        })
    }

    /// The one that a container was made from.
    ///
    /// # Errors
    /// It is no more, or damaged, or there is another in its place.
    pub fn origin(&self, origin: &Origin, what: &str) -> Result<Snapshot, Failure> {
        let snapshot = self.find(&origin.snapshot, what)?;
        match snapshot.id == origin.id {
            true => Ok(snapshot),
            false => {
                let why = format!("snapshot {} is another than the one that it was made from", origin.snapshot);
                Err(Failure::new(what, why, "`coracle run --from` with this one"))
            }
        }
    }

    /// The directory of a snapshot.
    pub fn place(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Begins one of this name. What is left of others whose monitors were killed is removed.
    ///
    /// # Errors
    /// The name is none, or taken; or there is no room.
    pub fn begin(&self, name: &str, what: &str) -> Result<Begun, Failure> {
        if !names::is_name(name) {
            let why = format!(
                "`{name}` is no name: that is two letters or digits or more, with `_`, `.` and `-` after the first"
            );
            return Err(Failure::new(what, why, "another name"));
        }
        let place = self.place(name);
        if place.exists() {
            return Err(taken(what, name));
        }
        let failed = |error: io::Error| Failure::new(what, error, ROOM);
        let lock = || file_lock::open(&self.root.with_extension("lock"));
        self.sweep(&lock().map_err(failed)?).map_err(failed)?;
        let taking = lock().map_err(failed)?;
        file_lock::take(&taking, FlockOperation::LockShared).map_err(failed)?;
        let new = NewSnapshot::begin(&self.root).map_err(failed)?;
        Ok(Begun { new, place, _taking: Held::of(taking) })
    }

    /// Removes what is left of snapshots that were being taken, if nobody takes one now.
    fn sweep(&self, lock: &File) -> io::Result<()> {
        if !file_lock::take(lock, FlockOperation::NonBlockingLockExclusive)? {
            return Ok(());
        }
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(NEW_PREFIX.as_bytes()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Removes one. Containers that were made from it and have started go on: they have their own disks, and its memory
    /// mapped.
    ///
    /// # Errors
    /// There is none of this name, another needs it, or it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let what = format!("cannot remove snapshot {name}");
        let place = self.place(name);
        // One that is damaged can be removed too.
        if !names::is_name(name) || !place.is_dir() {
            return Err(Failure::new(what, "there is none of this name", "`coracle snapshot ls`"));
        }
        // Nobody takes one that needs it meanwhile.
        let lock = file_lock::open(&self.root.with_extension("lock")).and_then(|lock| {
            file_lock::take(&lock, FlockOperation::LockExclusive)?;
            Ok(Held::of(lock))
        });
        let _held = lock.map_err(|error| Failure::new(&what, error, "look at the directory's owner"))?;
        let needs_it = |other: &Snapshot| other.base.as_ref().is_some_and(|base| base.snapshot == name);
        if let Some(other) = self.all()?.into_iter().find(needs_it) {
            let why = format!("snapshot {} holds only what differs from it", other.name);
            return Err(Failure::new(what, why, format!("`coracle snapshot rm {}` first", other.name)));
        }
        // From here on there is none, whatever becomes of the rest.
        let hidden = self.root.join(format!("{NEW_PREFIX}{name}-{}", std::process::id()));
        match fs::rename(&place, &hidden).and_then(|()| fs::remove_dir_all(&hidden)) {
            // Somebody who takes another has removed it with what else was left.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(|error| Failure::new(what, error, "look at the directory's owner")),
        }
    }

    fn read(&self, name: &str) -> io::Result<Snapshot> {
        let mut text = String::new();
        File::open(self.place(name).join(RECORD))?.take(MAX_RECORD).read_to_string(&mut text)?;
        let damaged = |why: &str| io::Error::new(ErrorKind::InvalidData, format!("its record is damaged: {why}"));
        let (record, said) = text.trim_end().rsplit_once('\n').ok_or_else(|| damaged("it is cut off"))?;
        if checksum(record) != said {
            return Err(damaged("its checksum does not match"));
        }
        let snapshot: Snapshot = serde_json::from_str(record)?;
        Ok(Snapshot { name: name.to_owned(), ..snapshot })
    }
}

impl Begun {
    /// Gives it its name, once its files are written.
    ///
    /// # Errors
    /// There is no room, or the name has been taken meanwhile.
    pub fn publish(self, record: &Snapshot, what: &str) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::new(what, error, ROOM);
        let text = serde_json::to_string(record).map_err(|error| failed(error.into()))?;
        let path = self.new.directory().join(RECORD);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path);
        file.and_then(|mut file| {
            file.write_all(format!("{text}\n{}\n", checksum(&text)).as_bytes())?;
            file.sync_all()
        })
        .map_err(failed)?;
        self.new.publish(&self.place).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => taken(what, &record.name),
            _ => failed(error),
        })
    }
}

const ROOM: &str = "room on that file system; `coracle snapshot ls` shows what there is";

fn taken(what: &str, name: &str) -> Failure {
    Failure::new(what, format!("there is a snapshot {name}"), format!("another name, or `coracle snapshot rm {name}`"))
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn cannot(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {verb} {}", path.display());
    move |error| Failure::new(what, error, "look at the directory's owner and the space left there")
}

#[cfg(test)]
#[path = "snapshots_test.rs"]
mod tests;
