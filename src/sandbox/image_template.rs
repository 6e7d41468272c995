// SPDX-License-Identifier: Apache-2.0
//! Image templates: snapshots of VMs whose container is made, up to where its first process waits to be told what to
//! run. They are made of a clone of a base template, in the background, for what is started again and again.
//!
//! Such a template has nothing of a user's: no name, address, environment or argument. It depends on the image's disk,
//! on what its containers have in common, and on the name of the program, whose files are read ahead.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use coracle_protocol::Assembly;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::agent::Agent;
use super::microvm::{Devices, Shape, restore};
use super::template::{self, NO_PLACE, Placeholders, hash, identity, no_template};
use crate::failure::Failure;
use crate::file_lock;
use crate::vmm::process::Vmm;
use crate::vmm::snapshot::NewSnapshot;
use crate::vmm::stages::Stage;

/// After so many starts of the same there is a template of it.
const STARTS: u64 = 3;
/// Most templates of images; one more, and that which has not been used for longest goes.
const MOST: usize = 16;
/// Most things of which starts are counted.
const MOST_COUNTED: usize = 256;
/// Beside a template's snapshot: what it is of. It is touched when the template is used.
const ABOUT: &str = "about.json";
/// How the names of directories start in which one is being made.
const PREFIX: &str = ".image-";
/// Where starts are counted: a byte for each, in a file for each.
const COUNTS: &str = ".starts";

/// What a template is of, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct About {
    /// The image, as it was named.
    pub name: String,
    /// The program that is likely to be run.
    pub program: String,
}

impl About {
    /// That of the template in this directory; `None` for a base template.
    pub(super) fn read(template: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(template.join(ABOUT)).ok()?).ok()
    }
}

/// What of an image is prepared, or could be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepared {
    /// What is made ahead.
    pub assembly: Assembly,
    /// The image, as the user named it.
    pub image: String,
}

/// The template for a container, where there is one.
///
/// # Errors
/// No template would fit these devices.
pub fn find(shape: Shape, devices: &Devices, prepared: &Prepared) -> Result<Option<PathBuf>, Failure> {
    let place = template::own_directory()?.join(key(shape, devices, prepared)?);
    // Which one goes is decided by when each was last used.
    let used = File::open(place.join(ABOUT)).and_then(|about| about.set_modified(SystemTime::now()));
    Ok(used.is_ok().then_some(place))
}

/// Notes a start for which there was no template. Whether one should be made now.
///
/// # Errors
/// Starts cannot be counted.
pub fn is_wanted(shape: Shape, devices: &Devices, prepared: &Prepared) -> Result<bool, Failure> {
    let system = |error: io::Error| no_template(error, NO_PLACE);
    let counts = template::own_directory()?.join(COUNTS);
    fs::create_dir_all(&counts).map_err(system)?;
    let path = counts.join(key(shape, devices, prepared)?);
    let mut count = File::options().append(true).create(true).open(path).map_err(system)?;
    count.write_all(b".").map_err(system)?;
    forget_oldest(&counts, MOST_COUNTED, |path| fs::remove_file(path));
    Ok(count.metadata().map_err(system)?.len() >= STARTS)
}

/// Makes the template for containers of this kind, unless it is there.
///
/// # Errors
/// It cannot be made; `Ok(None)` where others are being made at the moment.
pub fn make(shape: Shape, devices: &Devices, prepared: &Prepared) -> Result<Option<PathBuf>, Failure> {
    let system = |error: io::Error| no_template(error, NO_PLACE);
    let base = template::obtain(shape, devices)?;
    let all = template::directory();
    let key = key(shape, devices, prepared)?;
    let place = all.join(&key);
    // Base templates have another lock: nobody who starts a container waits for this.
    let lock = file_lock::open(&all.join(".image.lock")).map_err(system)?;
    if !file_lock::take(&lock, FlockOperation::NonBlockingLockExclusive).map_err(system)? {
        return Ok(None);
    }
    if place.exists() {
        return Ok(Some(place));
    }
    template::remove_remains(&all, PREFIX);
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&all).map_err(system)?;
    let placeholders = Placeholders::new(folder.path(), devices, 'i')?;
    let own = Devices { rootfs: devices.rootfs.clone(), ..placeholders.devices.clone() };
    let new = NewSnapshot::begin(folder.path()).map_err(system)?;
    let vmm = Vmm::start(restore(&base, &own))?;
    let assemble = || Agent::connect(&own.vsock)?.assemble(&prepared.assembly);
    template::snapshot_of(vmm, Stage::FirstRun, assemble, &new)?;
    let program = String::from_utf8_lossy(&prepared.assembly.program).into_owned();
    let about = json!(About { name: prepared.image.clone(), program });
    fs::write(new.path().join(ABOUT), about.to_string()).map_err(system)?;
    new.publish(&place).map_err(system)?;
    // One that nobody has counted was asked for.
    let _ = fs::remove_file(all.join(COUNTS).join(&key));
    forget_oldest(&all, MOST, |path| fs::remove_dir_all(path));
    Ok(Some(place))
}

/// Everything that it depends on, in one word.
fn key(shape: Shape, devices: &Devices, prepared: &Prepared) -> Result<String, Failure> {
    let Prepared { assembly, image: _ } = prepared;
    let assembly = coracle_protocol::Message::Assemble(Box::new(assembly.clone())).to_frame(0);
    let assembly = assembly.map_err(|error| no_template(error, "a shorter command"))?.payload;
    let all = json!([template::key(shape, devices)?, identity(&devices.rootfs)?, hash(&assembly, 32)]);
    Ok(hash(all.to_string().as_bytes(), 8))
}

/// Of what lies in `directory` and is used now and then, keeps the `most` that were used last.
fn forget_oldest(directory: &Path, most: usize, remove: impl Fn(&Path) -> io::Result<()>) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let used = |path: PathBuf| {
        let about = if path.is_dir() { path.join(ABOUT) } else { path.clone() };
        Some((fs::metadata(about).ok()?.modified().ok()?, path))
    };
    let mut all: Vec<_> = entries.filter(|path| !is_hidden(path)).filter_map(used).collect();
    all.sort();
    all.truncate(all.len().saturating_sub(most));
    for (_, path) in all {
        if let Err(error) = remove(&path) {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_used_last_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for (age, name) in ["newest", "second", "third", "oldest"].iter().enumerate() {
            let template = folder.path().join(name);
            fs::create_dir(&template).unwrap();
            let about = File::create(template.join(ABOUT)).unwrap();
            about.set_modified(now - Duration::from_secs(60 * age as u64)).unwrap();
        }
        // Neither a base template nor what is being made.
        for name in ["base", ".snapshot-new"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        forget_oldest(folder.path(), 2, |path| fs::remove_dir_all(path));
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".snapshot-new", "base", "newest", "second"]);
    }
}
