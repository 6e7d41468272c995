// SPDX-License-Identifier: Apache-2.0
//! Networks on the disk.
//!
//! ```text
//! networks/NAME.json         a network, with who has which address; replaced as a whole
//! networks/live/ID@NAME      locked (`flock`) by the monitor of container ID for as long as it is attached
//! networks/live/ID.passt     the socket of its passt, where it has one (ID is cut to 12 digits)
//! networks/rules             there while the kernel has rules for these networks: which, and at which count of changes
//! networks/lock              held while any of it changes, and while the host's interfaces and rules are made to fit
//! ```
//!
//! All locks are the kernel's and end with the process that holds them: whose file in `live` is not locked is dead, and
//! whoever comes next cleans up after it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::model::Network;
use crate::failure::Failure;
use crate::file_lock::{self, open};

/// A host has one set of interfaces, routes and rules, whoever's networks they belong to.
const HOST_LOCK: &str = "/run/coracle-network.lock";

/// How the names of passt's sockets end.
const SOCKET: &str = ".passt";

/// The networks of one user on this host.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// The right to change networks, held until it is dropped.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    own: File,
    _host: Option<File>,
}

impl Store {
    /// The networks beside this user's images.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open() -> Result<Self, Failure> {
        Self::open_at(&crate::image::default_root().join("networks"))
    }

    /// The networks in this directory, which is made if it does not exist.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open_at(root: &Path) -> Result<Self, Failure> {
        let live = root.join("live");
        DirBuilder::new().recursive(true).mode(0o700).create(&live).map_err(at(&live))?;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a network.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    /// Where the passt of a container listens. Names of sockets have 107 bytes at most.
    pub fn socket(&self, container: &str) -> PathBuf {
        self.root.join("live").join(format!("{}{SOCKET}", container.get(..12).unwrap_or(container)))
    }

    /// Waits for the right to change networks.
    ///
    /// # Errors
    /// The locks' files cannot be opened.
    pub fn lock(&self) -> Result<Locked<'_>, Failure> {
        let path = self.root.join("lock");
        let own = open(&path).and_then(|file| take(file, FlockOperation::LockExclusive)).map_err(at(&path))?;
        let own = own.ok_or(io::ErrorKind::WouldBlock.into()).map_err(at(&path))?;
        // Only root can change what the host has, and only root can open this.
        let host = open(Path::new(HOST_LOCK)).and_then(|file| take(file, FlockOperation::LockExclusive)).ok().flatten();
        Ok(Locked { store: self, own, _host: host })
    }

    /// All networks that are on the disk, by name.
    ///
    /// # Errors
    /// The directory or a file cannot be read.
    pub fn list(&self) -> Result<Vec<Network>, Failure> {
        let mut networks = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(at(&self.root))? {
            let path = entry.map_err(at(&self.root))?.path();
            if path.extension() == Some(OsStr::new("json")) {
                networks.extend(read(&path)?);
            }
        }
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(networks)
    }
}

impl Locked<'_> {
    /// The store that is locked.
    pub fn store(&self) -> &Store {
        self.store
    }

    /// The file whose lock is held, by whoever has it open.
    pub fn file(&self) -> &File {
        &self.own
    }

    /// Writes a network; other processes see either the old or the new one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, network: &Network) -> Result<(), Failure> {
        let path = self.store.path(&network.name);
        // There is only one new file at a time, since the lock is held: one that a killed process left is overwritten.
        let new = self.store.root.join("new");
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(network)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        write().map_err(at(&path))
    }

    /// Removes a network from the disk.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        remove(&self.store.path(name))
    }

    /// Marks a container as living in a network for as long as the file is open; `None` where it does already.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn claim_life(&self, container: &str, network: &str) -> Result<Option<File>, Failure> {
        let path = self.life(container, network);
        open(&path).and_then(|file| take(file, FlockOperation::NonBlockingLockExclusive)).map_err(at(&path))
    }

    /// Removes the mark.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn end_life(&self, container: &str, network: &str) -> Result<(), Failure> {
        remove(&self.life(container, network))
    }

    /// Removes marks of containers that are attached to none of `networks`, and dead.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not removed.
    pub fn clear_lives(&self, networks: &[Network]) -> Result<(), Failure> {
        let live = self.store.root.join("live");
        let (mut sockets, mut alive) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&live).map_err(at(&live))? {
            let path = entry.map_err(at(&live))?.path();
            let Some(name) = path.file_name().and_then(OsStr::to_str).map(str::to_owned) else { continue };
            if let Some(container) = name.strip_suffix(SOCKET) {
                sockets.push((container.to_owned(), path));
                continue;
            }
            let Some((container, network)) = name.split_once('@') else { continue };
            let lease = networks.iter().find(|other| other.name == network).and_then(|it| it.leases.get(container));
            let is_dead = || open(&path).and_then(|file| take(file, FlockOperation::NonBlockingLockExclusive));
            if lease.is_some_and(|lease| lease.attached) || is_dead().map_err(at(&path))?.is_none() {
                alive.push(container.to_owned());
            } else {
                remove(&path)?;
            }
        }
        for (container, path) in sockets {
            if !alive.iter().any(|alive| alive.starts_with(&container)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Notes which rules of this store the kernel has; before it gets them, that it may have some.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note_rules(&self, which: &str) -> Result<(), Failure> {
        let path = self.rules_path();
        fs::write(&path, which).map_err(at(&path))
    }

    /// What was noted last; `None` where the kernel has no rules of this store.
    pub fn rules(&self) -> Option<String> {
        let path = self.rules_path();
        // What cannot be read is no note, but there may be rules.
        path.exists().then(|| fs::read_to_string(path).unwrap_or_default())
    }

    /// Notes that it has none any more.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget_rules(&self) -> Result<(), Failure> {
        remove(&self.rules_path())
    }

    fn rules_path(&self) -> PathBuf {
        self.store.root.join("rules")
    }

    fn life(&self, container: &str, network: &str) -> PathBuf {
        self.store.root.join("live").join(format!("{container}@{network}"))
    }
}

/// Reads a network; `None` where it has gone.
///
/// # Errors
/// The file cannot be read, or was not written by this program.
pub fn read(path: &Path) -> Result<Option<Network>, Failure> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(at(path))?,
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let what = format!("cannot read network `{}`", path.display());
        Failure::new(what, error, "removing the file, and creating the network again")
    })
}

/// The file with its lock; `None` where someone else has it and it is not waited for.
fn take(file: File, operation: FlockOperation) -> io::Result<Option<File>> {
    Ok(file_lock::take(&file, operation)?.then_some(file))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// For `map_err`: says which file it was.
fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| {
        let next = format!("`ls -l {path}`, and whether the disk is full; CORACLE_DATA names another directory");
        Failure::new(format!("cannot keep networks in `{path}`"), error, next)
    }
}
