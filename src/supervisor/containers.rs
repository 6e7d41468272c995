// SPDX-License-Identifier: Apache-2.0
//! The containers of this user, on the disk.
//!
//! ```text
//! containers/ID/config.json   how it was made
//! containers/ID/state.json    how it is
//! containers/ID/lock          held by its monitor for as long as that lives
//! containers/ID/output.log    what its program wrote
//! containers/ID/monitor.log   what its monitor had to say
//! containers.lock             held while one is made, renamed or removed
//! ```
//!
//! Files are replaced as a whole. Who finds a container that is said to run and has no monitor settles that it has
//! ended, so that a monitor can be killed at any moment.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::names;
use super::record::{Config, State};
use super::wire::Exit;
use crate::failure::Failure;
use crate::{file_lock, network, sandbox};

/// The containers of one user.
#[derive(Clone, Debug)]
pub struct Containers {
    root: PathBuf,
}

/// One container.
#[derive(Clone, Debug)]
pub struct Container {
    directory: PathBuf,
    /// How it was made.
    pub config: Config,
}

/// A lock that is held until this is dropped, or its process ends.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

impl Held {
    /// A lock that has been taken on this file.
    pub(super) fn of(file: File) -> Self {
        Self { _file: file }
    }
}

/// Exit status of a program that was killed with its VM.
const KILLED: u8 = 137;

impl Containers {
    /// Those kept below `data`, where images are kept too.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(data: &Path) -> Result<Self, Failure> {
        let root = data.join("containers");
        DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(cannot("open", &root))?;
        Ok(Self { root })
    }

    /// Makes a container. `describe` gets its id, the name that it gets unless one was asked for, and proof
    /// that nobody else makes one meanwhile.
    ///
    /// # Errors
    /// The name is taken or is none, or `describe`'s.
    pub fn create(
        &self,
        name: Option<&str>,
        describe: impl FnOnce(String, String, &Held) -> Result<Config, Failure>,
    ) -> Result<Container, Failure> {
        let held = self.hold()?;
        self.sweep()?;
        let others = self.all()?;
        let name = match name {
            Some(name) => {
                self.check_name(name, &others)?;
                name.to_owned()
            }
            None => names::new_name(|name| others.iter().any(|other| other.config.name == name)).map_err(no_random)?,
        };
        let id = names::new_id().map_err(no_random)?;
        let directory = self.root.join(&id);
        let container = Container { directory, config: describe(id, name, &held)? };
        DirBuilder::new().mode(0o700).create(&container.directory).map_err(cannot("make", &container.directory))?;
        container.save("state.json", &State::default())?;
        // Without this file there is no container.
        container.save("config.json", &container.config)?;
        Ok(container)
    }

    /// All of them, the newest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(&self) -> Result<Vec<Container>, Failure> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(cannot("read", &self.root))? {
            let directory = entry.map_err(cannot("read", &self.root))?.path();
            match read(&directory.join("config.json")) {
                Ok(config) => all.push(Container { directory, config }),
                // One that is being made, or removed.
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => log::warn!("container {} is damaged: {error}", directory.display()),
            }
        }
        all.sort_by(|a, b| b.config.created.cmp(&a.config.created).then_with(|| a.config.id.cmp(&b.config.id)));
        Ok(all)
    }

    /// The one with this name, this id, or the only one whose id begins so.
    ///
    /// # Errors
    /// There is none, or more than one; `what` is what cannot be done therefore.
    pub fn find(&self, text: &str, what: &str) -> Result<Container, Failure> {
        let none = || Failure::new(what, "there is no container of that name or id", "`coracle ps -a`");
        self.look_up(text, what)?.ok_or_else(none)
    }

    /// As [`Containers::find`]; `None` where there is none.
    ///
    /// # Errors
    /// There is more than one.
    pub fn look_up(&self, text: &str, what: &str) -> Result<Option<Container>, Failure> {
        let mut all = self.all()?;
        if let Some(at) = all.iter().position(|one| one.config.name == text || one.config.id == text) {
            return Ok(Some(all.swap_remove(at)));
        }
        all.retain(|one| !text.is_empty() && one.config.id.starts_with(text));
        match (all.pop(), all.pop()) {
            (Some(_), Some(_)) => Err(Failure::new(what, "several ids begin so", "more digits of it; `coracle ps -a`")),
            (found, _) => Ok(found),
        }
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is taken or is none.
    pub fn rename(&self, container: &mut Container, name: &str) -> Result<(), Failure> {
        let _held = self.hold()?;
        self.check_name(name, &self.all()?)?;
        let before = std::mem::replace(&mut container.config.name, name.to_owned());
        container.save("config.json", &container.config)?;
        match container.config.network {
            Some(_) => network::rename(&container.config.id, &before, name),
            None => Ok(()),
        }
    }

    /// Removes what a killed command has left: a directory without `config.json` is no container, nor about to be one
    /// while we hold the lock.
    fn sweep(&self) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.root).map_err(cannot("read", &self.root))? {
            let directory = entry.map_err(cannot("read", &self.root))?.path();
            // One that somebody removes just now is being removed.
            if !directory.join("config.json").exists()
                && let Err(error) = fs::remove_dir_all(&directory)
                && error.kind() != ErrorKind::NotFound
            {
                log::warn!("cannot remove {}: {error}", directory.display());
            }
        }
        Ok(())
    }

    fn check_name(&self, name: &str, others: &[Container]) -> Result<(), Failure> {
        let what = format!("cannot call a container `{name}`");
        if !names::is_name(name) {
            let why = "a name is two letters or digits or more, with `_`, `.` and `-` after the first";
            return Err(Failure::new(what, why, "another --name"));
        }
        if let Some(other) = others.iter().find(|other| other.config.name == name) {
            let why = format!("container {} has that name", other.short());
            return Err(Failure::new(what, why, format!("another name, or `coracle rm {name}` first")));
        }
        Ok(())
    }

    /// Where all is kept of this user's.
    pub fn data(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// While this is held, nobody else makes, renames or removes containers, or the volumes that they use.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub fn hold(&self) -> Result<Held, Failure> {
        let path = self.root.with_extension("lock");
        let file = file_lock::open(&path).and_then(|file| {
            file_lock::take(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        });
        file.map(|file| Held { _file: file }).map_err(cannot("lock", &path))
    }
}

impl Container {
    /// The container of this directory.
    ///
    /// # Errors
    /// There is none.
    pub fn open(directory: &Path) -> Result<Self, Failure> {
        let config = read(&directory.join("config.json")).map_err(cannot("read", directory))?;
        Ok(Self { directory: directory.to_owned(), config })
    }

    /// It and the others of its user.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn siblings(&self) -> Result<Containers, Failure> {
        Containers::open(self.directory.ancestors().nth(2).unwrap_or(&self.directory))
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The first twelve digits of its id.
    pub fn short(&self) -> &str {
        self.config.id.get(..12).unwrap_or(&self.config.id)
    }

    /// The file with what it wrote.
    pub fn log(&self) -> PathBuf {
        self.directory.join("output.log")
    }

    /// Where the sockets of its monitor and VMM belong: a short name, since that of a socket has 107 bytes at most.
    pub fn socket_directory(&self) -> PathBuf {
        run_directory().join(self.short())
    }

    /// Its monitor's socket while it runs.
    pub fn monitor_socket(state: &State) -> PathBuf {
        state.sockets.join("monitor")
    }

    /// Its VM's vsock while it runs.
    pub fn vsock(state: &State) -> PathBuf {
        sandbox::vsock(&state.sockets)
    }

    /// How it is. One that lost its monitor is settled first.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub fn state(&self) -> Result<State, Failure> {
        let state = self.saved_state()?;
        if !state.is_looked_after() {
            return Ok(state);
        }
        match self.try_claim()? {
            None => Ok(state),
            // Its monitor may have ended in order just now.
            Some(_held) => {
                let mut state = self.saved_state()?;
                if state.is_looked_after() {
                    self.settle(&mut state)?;
                }
                Ok(state)
            }
        }
    }

    /// Whether a monitor looks after it, also before it runs and after.
    ///
    /// # Errors
    /// The lock cannot be opened.
    pub fn has_monitor(&self) -> Result<bool, Failure> {
        Ok(self.try_claim()?.is_none())
    }

    /// What a monitor does first: from here on it alone changes the state.
    ///
    /// # Errors
    /// There is another.
    pub fn claim(&self) -> Result<Held, Failure> {
        // Whoever looks whether there is a monitor holds the lock for a moment.
        for _ in 0..100 {
            if let Some(held) = self.try_claim()? {
                return Ok(held);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let what = format!("cannot start container {}", self.config.name);
        Err(Failure::new(what, "it is being started, or runs already", "`coracle ps`"))
    }

    fn try_claim(&self) -> Result<Option<Held>, Failure> {
        let path = self.directory.join("lock");
        let file = file_lock::open(&path).map_err(cannot("lock", &path))?;
        let taken = file_lock::take(&file, FlockOperation::NonBlockingLockExclusive).map_err(cannot("lock", &path))?;
        Ok(taken.then_some(Held { _file: file }))
    }

    /// Replaces its state; for its monitor.
    ///
    /// # Errors
    /// The file system's.
    pub fn set_state(&self, state: &State) -> Result<(), Failure> {
        self.save("state.json", state)
    }

    fn settle(&self, state: &mut State) -> Result<(), Failure> {
        // The VMM ends with its monitor; the sockets are what is left.
        self.reap();
        remove_sockets(&state.sockets);
        let ended = match state.status.is_up() {
            true => State { exit: Exit { status: KILLED, out_of_memory: false }, ..state.clone().ended() },
            false => State { sockets: PathBuf::new(), ..state.clone() },
        };
        *state = State { error: "its monitor was killed".to_owned(), ..ended };
        // It has lost its lock, by which the networks know that it is dead.
        if self.config.network.is_some()
            && let Err(failure) = network::reconcile()
        {
            log::warn!("{failure}");
        }
        self.set_state(state)
    }

    /// Ends what a killed monitor has left running where there is no VM to end with it.
    fn reap(&self) {
        if self.config.isolation.is_container()
            && let Err(error) = sandbox::container::reap(&self.config.id)
        {
            log::warn!("cannot end all of container {}: {error}", self.config.name);
        }
    }

    /// Removes it from the disk. Nobody may look after it.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self) -> Result<(), Failure> {
        // From here on there is no container, whatever becomes of the rest.
        match fs::remove_file(self.directory.join("config.json")) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot("remove", &self.directory)(error)),
            _ => {}
        }
        self.reap();
        // A monitor may have been killed before it wrote down where they are.
        remove_sockets(&self.socket_directory());
        if self.config.network.is_some() {
            network::forget(&self.config.id)?;
        }
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(cannot("remove", &self.directory)(error)),
            _ => Ok(()),
        }
    }

    /// Bytes that it takes: its disk, as far as it was written, and its logs.
    pub fn bytes(&self) -> u64 {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|status| status.blocks() * 512).sum()
    }

    fn saved_state(&self) -> Result<State, Failure> {
        let path = self.directory.join("state.json");
        read(&path).map_err(cannot("read", &path))
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<(), Failure> {
        let path = self.directory.join(name);
        let written = tempfile::NamedTempFile::new_in(&self.directory).and_then(|mut file| {
            file.write_all(&serde_json::to_vec_pretty(value)?)?;
            file.persist(&path).map_err(|error| error.error)
        });
        written.map(drop).map_err(cannot("write", &path))
    }
}

/// Where this user's directories for sockets are.
pub(super) fn run_directory() -> PathBuf {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = rustix::process::geteuid();
    set("CORACLE_RUN").unwrap_or_else(|| match (user.is_root(), set("XDG_RUNTIME_DIR")) {
        (true, _) => PathBuf::from("/run/coracle"),
        (false, Some(runtime)) => runtime.join("coracle"),
        (false, None) => env::temp_dir().join(format!("coracle-{}", user.as_raw())),
    })
}

/// Removes the sockets of a container that runs no more.
pub fn remove_sockets(directory: &Path) {
    // An empty path is that of a container that never ran.
    if !directory.as_os_str().is_empty()
        && let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != ErrorKind::NotFound
    {
        log::warn!("cannot remove {}: {error}", directory.display());
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

fn cannot(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let what = format!("cannot {verb} {}", path.display());
    move |error| Failure::new(what, error, "look at the directory's owner and the space left there")
}

fn no_random(error: io::Error) -> Failure {
    Failure::new("cannot make up a container's id", error, "a kernel with getrandom(2)")
}
