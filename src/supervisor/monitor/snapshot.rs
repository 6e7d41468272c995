// SPDX-License-Identifier: Apache-2.0
//! Taking a snapshot of the container that runs.
//!
//! Its processes are stopped first, by the guest's own kernel, so that each clone can be made one of its own before any
//! of them goes on. Then the VM stands still, its devices come to rest, and memory and disk are written at that moment:
//! what the guest has not written to its disk yet is in the memory that goes with it, so that nothing need be flushed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{Monitor, storage};
use crate::failure::{EXIT_FAILURE, Failure};
use crate::image::{ImageError, Store};
use crate::sandbox::Agent;
use crate::supervisor::containers::Container;
use crate::supervisor::names;
use crate::supervisor::record::{Config, Origin, Status};
use crate::supervisor::snapshots::{Begun, Snapshot, Snapshots};
use crate::supervisor::wire::Reply;
use crate::vmm::control::{Client, Request};
use crate::vmm::file_identity::FileIdentity;
use crate::vmm::snapshot::{MEMORY_FILE, Scope, check_base};

impl Monitor {
    /// Takes one of this name; the container goes on, as it does where that fails.
    pub(super) fn snapshot(&self, name: &str, scope: Scope) -> Reply {
        let what = format!("cannot take snapshot {name} of container {}", self.container.config.name);
        match self.running().map(|_| self.take_snapshot(name, scope, &what)) {
            Ok(Ok(())) => Reply::Done,
            Ok(Err(failure)) => Reply::Failed { failure, status: EXIT_FAILURE },
            Err(ended) => ended,
        }
    }

    fn take_snapshot(&self, name: &str, scope: Scope, what: &str) -> Result<(), Failure> {
        let config = &self.container.config;
        if config.isolation.is_container() {
            let why = "its processes are in no VM of their own, of which one could be taken";
            return Err(Failure::new(what, why, "a container without `--isolation container`"));
        }
        if let Some(mount) = config.mounts.first() {
            let why = format!("{} is a volume or a path of the host's, which cannot be in it", mount.target);
            let next = format!(
                "a container with `--tmpfs {0}`, or without that volume; its data then is in the snapshot",
                mount.target
            );
            return Err(Failure::new(what, why, next));
        }
        let _alone = self.standing.lock().expect("no thread panics while it holds this");
        let snapshots = Snapshots::beside(&self.container.siblings()?)?;
        let begun = snapshots.begin(name, what)?;
        let base = match scope {
            Scope::Whole => None,
            Scope::Difference => Some(self.base(&snapshots, what)?),
        };
        let rootfs =
            identity(&rootfs(config)?.1).map_err(|error| Failure::new(what, error, "`coracle pull` the image"))?;
        let state = self.container.state()?;
        let still = (state.status != Status::Paused).then(|| Still::make(&self.vsock)).transpose()?;
        self.write_snapshot(&begun, scope, what)?;
        drop(still);
        if base.is_some() {
            check_base(begun.new.directory()).map_err(|error| {
                Failure::new(what, error, "the same without --diff, since what it was started from is no more")
            })?;
        }
        let id = names::new_id().map_err(|error| Failure::new(what, error, "a kernel with getrandom(2)"))?;
        let copy = begun.new.directory().join(storage::FILE);
        // On disk before it has a name.
        let sync =
            |path: PathBuf| File::open(path).and_then(|file| file.sync_all().and_then(|()| FileIdentity::of(&file)));
        let disk = config.storage_size.map(|_| sync(copy)).transpose();
        let record = Snapshot {
            name: name.to_owned(),
            id,
            created: Timestamp::now(),
            config: config.clone(),
            addresses: state.addresses,
            rootfs,
            disk: disk.map_err(|error| no_room(what, &error))?,
            base,
        };
        begun.publish(&record, what)
    }

    /// The snapshot whose memory file the VM has its memory from.
    fn base(&self, snapshots: &Snapshots, what: &str) -> Result<Origin, Failure> {
        let info = self.vmm(what)?.ask(&Request::Info).map_err(|why| Failure::new(what, why, "`coracle ps -a`"))?;
        let file = info.get("origin").and_then(|origin| origin.as_str()).map(Path::new);
        let name = file.and_then(|file| Some(file.parent()?.file_name()?.to_str()?.to_owned()));
        match name.filter(|name| Some(&*snapshots.place(name).join(MEMORY_FILE)) == file) {
            Some(name) => snapshots.find(&name, what).map(|found| Origin { snapshot: name, id: found.id }),
            None => {
                let why = "it was not started from a snapshot, and there is none that it could differ from";
                Err(Failure::new(what, why, "the same without --diff, or a container of `coracle run --from`"))
            }
        }
    }

    fn vmm(&self, what: &str) -> Result<Client, Failure> {
        let gone = |error| Failure::new(what, format!("its VMM does not answer: {error}"), "`coracle ps -a`");
        Client::connect(&self.control).map_err(gone)
    }

    /// Memory, state and disk, with the VM standing still.
    fn write_snapshot(&self, begun: &Begun, scope: Scope, what: &str) -> Result<(), Failure> {
        let mut vmm = self.vmm(what)?;
        let ask =
            |vmm: &mut Client, request| vmm.ask(&request).map_err(|why| Failure::new(what, why, "`coracle ps -a`"));
        ask(&mut vmm, Request::Pause)?;
        let request = Request::Snapshot { memory: scope };
        let written = vmm.ask_with(&request, begun.new.files()).map_err(|why| Failure::new(what, why, ROOM));
        let written = written.and_then(|_| match self.container.config.storage_size {
            Some(_) => storage::copy(
                &self.container.directory().join(storage::FILE),
                &begun.new.directory().join(storage::FILE),
            )
            .map_err(|error| no_room(what, &error)),
            None => Ok(()),
        });
        // A VMM that has gone has taken the guest with it, and that is what there is to say then.
        ask(&mut vmm, Request::Resume).and(written)
    }
}

const ROOM: &str = "room on the file system of the snapshots";

fn no_room(what: &str, error: &io::Error) -> Failure {
    Failure::new(what, format!("cannot copy its disk: {error}"), ROOM)
}

/// The disk of a container's image, and what keeps that from being removed.
pub(super) fn rootfs(config: &Config) -> Result<(impl Sized, PathBuf), Failure> {
    let what = format!("cannot find the image of container {}", config.name);
    let explain = |problem| Failure::from(ImageError::new(&what)(problem));
    let store = Store::open().map_err(explain)?;
    // Nobody removes the image while this is held.
    let content = store.hold_content().map_err(explain)?;
    let image = store.image(&config.image.manifest).map_err(explain)?;
    let rootfs = store.rootfs(&image).map_err(Failure::from)?;
    Ok((content, rootfs))
}

/// A snapshot that the container goes on from.
pub(super) struct Snapshotted {
    /// What it was taken of.
    pub snapshot: Snapshot,
    /// Its directory.
    pub place: PathBuf,
    /// The memory file that its own differs from, if it does not hold all of it.
    pub base: Option<PathBuf>,
}

impl Snapshotted {
    /// The one that a container was made from, with all that goes with it as it was.
    ///
    /// # Errors
    /// It is no more, or damaged; the disk of the image, or the copy of the container's, has changed since.
    pub fn find(container: &Container, origin: &Origin, rootfs: &Path, what: &str) -> Result<Self, Failure> {
        let snapshots = Snapshots::beside(&container.siblings()?)?;
        let snapshot = snapshots.origin(origin, what)?;
        let place = snapshots.place(&snapshot.name);
        check(&snapshot.rootfs, rootfs)
            .map_err(|why| Failure::new(what, format!("the disk of its image is not what it was: {why}"), ANOTHER))?;
        if let Some(disk) = &snapshot.disk {
            check(disk, &place.join(storage::FILE)).map_err(|why| {
                let why = format!("the disk in snapshot {} is not what it was: {why}", snapshot.name);
                Failure::new(what, why, ANOTHER)
            })?;
        }
        // By its record, which is the user's own, and not by what its state says.
        let base = snapshot.base.as_ref().map(|base| snapshots.origin(base, what)).transpose()?;
        let base = base.map(|base| snapshots.place(&base.name).join(MEMORY_FILE));
        Ok(Self { snapshot, place, base })
    }
}

const ANOTHER: &str = "take another snapshot";

fn check(then: &FileIdentity, path: &Path) -> Result<(), String> {
    let now = identity(path).map_err(|error| error.to_string())?;
    then.has_same_content(&now).map_err(str::to_owned)
}

fn identity(path: &Path) -> io::Result<FileIdentity> {
    FileIdentity::of(&File::open(path)?)
}

/// The container's processes stand still for as long as this is there.
struct Still<'a>(&'a Path);

impl<'a> Still<'a> {
    fn make(vsock: &'a Path) -> Result<Self, Failure> {
        Agent::connect(vsock)?.pause(true)?;
        Ok(Self(vsock))
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        // An agent that has gone has taken the processes with it.
        if let Err(failure) = Agent::connect(self.0).and_then(|mut agent| agent.pause(false)) {
            log::warn!("{failure}");
        }
    }
}
