// SPDX-License-Identifier: Apache-2.0
//! What users ask to be mounted in a container, in Docker's words: `-v`, `--mount`, and an image's `VOLUME`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names;

/// Something of the host's that is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountUse {
    /// Where in the container.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// The container cannot write there.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountSource {
    /// A directory or a file of the host's.
    Bind {
        /// Absolute.
        path: PathBuf,
        /// Make it, as a directory, if it is missing.
        create: bool,
    },
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// It was made for this container, and goes with it.
        anonymous: bool,
        /// While it is empty it gets what the image has there.
        copy: bool,
    },
}

impl MountUse {
    /// Name of the volume, if it is one.
    pub fn volume(&self) -> Option<&str> {
        match &self.source {
            MountSource::Volume { name, .. } => Some(name),
            MountSource::Bind { .. } => None,
        }
    }

    /// Whether it is a volume that was made for this container alone.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.source, MountSource::Volume { anonymous: true, .. })
    }
}

/// What a word of the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Where in the container: absolute, and as short as it can be said.
    pub target: String,
    /// What.
    pub what: Wished,
    /// The container cannot write there.
    pub read_only: bool,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wished {
    /// A directory or a file of the host's; relative ones begin with a dot.
    Bind {
        /// As it was given.
        path: PathBuf,
        /// Make it if it is missing.
        create: bool,
    },
    /// A volume; without a name one for this container alone.
    Volume {
        /// Its name.
        name: Option<String>,
        /// While it is empty it gets what the image has there.
        copy: bool,
    },
    /// A file system in memory, with options of `mount(8)`.
    Memory(String),
}

/// Why a word is not understood, and what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misunderstood {
    /// Why.
    pub why: String,
    /// What to say instead.
    pub instead: &'static str,
}

const FORMS: &str = "-v VOLUME:/DIR, -v /HOST/PATH:/DIR or -v /DIR, with :ro after it for no writing";
const KEYS: &str = "--mount type=bind,source=/HOST/PATH,target=/DIR[,readonly]";

fn wrong<T>(why: impl Into<String>, instead: &'static str) -> Result<T, Misunderstood> {
    Err(Misunderstood { why: why.into(), instead })
}

impl Wish {
    /// `-v`: `[VOLUME|PATH:]TARGET[:OPTIONS]`.
    ///
    /// # Errors
    /// [`Misunderstood`].
    pub fn volume(text: &str) -> Result<Self, Misunderstood> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts[..] {
            [target] => (None, target, ""),
            [source, target] => (Some(source), target, ""),
            [source, target, options] => (Some(source), target, options),
            _ => return wrong(format!("`{text}` has too many colons"), FORMS),
        };
        let target = target_of(target, FORMS)?;
        let mode = Mode::read(options)?;
        let what = match source {
            None => Wished::Volume { name: None, copy: mode.copy },
            Some("") => return wrong(format!("`{text}` names nothing to mount"), FORMS),
            Some(path) if path.starts_with(['/', '.']) => Wished::Bind { path: path.into(), create: true },
            Some(name) => Wished::Volume { name: Some(volume_name(name, FORMS)?), copy: mode.copy },
        };
        Ok(Self { target, what, read_only: mode.read_only })
    }

    /// `--mount`: `KEY=VALUE` or `KEY`, with commas between them.
    ///
    /// # Errors
    /// [`Misunderstood`].
    pub fn mount(text: &str) -> Result<Self, Misunderstood> {
        let (mut kind, mut source, mut target) = ("volume".to_owned(), None, None);
        let (mut read_only, mut copy, mut memory) = (false, true, Vec::new());
        for field in fields(text)? {
            let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
            let some = || value.map_or_else(|| wrong(format!("`{key}` wants a value: `{key}=…`"), KEYS), Ok);
            match key.to_ascii_lowercase().as_str() {
                "type" => kind = some()?.to_ascii_lowercase(),
                "source" | "src" => source = Some(some()?.to_owned()),
                "target" | "dst" | "destination" => target = Some(some()?.to_owned()),
                "readonly" | "ro" => read_only = truth(key, value)?,
                "volume-nocopy" => copy = !truth(key, value)?,
                "volume-driver" if matches!(value, Some("local" | "")) => {}
                "volume-driver" => return wrong("`local` is the only driver of volumes", KEYS),
                "tmpfs-size" => memory.push(format!("size={}", some()?)),
                "tmpfs-mode" => memory.push(format!("mode={}", some()?)),
                "bind-propagation" if matches!(value, Some("private" | "rprivate")) => {}
                "bind-propagation" => return wrong("mounts do not propagate between a host and a VM", KEYS),
                // Of no meaning on Linux.
                "consistency" => {}
                _ => return wrong(format!("`{key}` is not known of a mount"), KEYS),
            }
        }
        let Some(target) = target else { return wrong(format!("`{text}` has no target"), KEYS) };
        let target = target_of(&target, KEYS)?;
        let source = source.filter(|source| !source.is_empty());
        let what = match (kind.as_str(), source) {
            ("bind", Some(path)) if path.starts_with(['/', '.']) => Wished::Bind { path: path.into(), create: false },
            ("bind", Some(path)) => return wrong(format!("`{path}` is no absolute path"), KEYS),
            ("bind", None) => return wrong("a bind mount has a source", KEYS),
            ("volume", name) => {
                let name = name.map(|name| volume_name(&name, KEYS)).transpose()?;
                Wished::Volume { name, copy }
            }
            ("tmpfs", None) => {
                memory.extend(read_only.then(|| "ro".to_owned()));
                Wished::Memory(memory.join(","))
            }
            ("tmpfs", Some(_)) => return wrong("a tmpfs has no source", "--mount type=tmpfs,target=/DIR"),
            (kind, _) => return wrong(format!("`{kind}` is no type of mount: bind, volume or tmpfs"), KEYS),
        };
        if kind != "tmpfs" && !memory.is_empty() {
            return wrong(format!("a mount of type {kind} has no options of a tmpfs"), KEYS);
        }
        Ok(Self { target, what, read_only })
    }

    /// A volume that an image wants.
    ///
    /// # Errors
    /// The image's path is none.
    pub fn of_image(target: &str) -> Result<Self, Misunderstood> {
        let target = target_of(target, "-v with the same path, in another image")?;
        Ok(Self { target, what: Wished::Volume { name: None, copy: true }, read_only: false })
    }
}

/// What the options of `-v` say.
struct Mode {
    read_only: bool,
    copy: bool,
}

impl Mode {
    fn read(options: &str) -> Result<Self, Misunderstood> {
        let mut mode = Self { read_only: false, copy: true };
        let mut access = None;
        for option in options.split(',').filter(|_| !options.is_empty()) {
            match option {
                "ro" | "rw" if access.is_some() => return wrong(format!("`{options}` says twice how to write"), FORMS),
                "ro" | "rw" => access = Some(option),
                "nocopy" => mode.copy = false,
                // There is no SELinux between the guest's users, no propagation, and one kind of consistency.
                "z" | "Z" | "private" | "rprivate" | "cached" | "delegated" | "consistent" => {}
                "shared" | "rshared" | "slave" | "rslave" => {
                    return wrong("mounts do not propagate between a host and a VM", FORMS);
                }
                _ => return wrong(format!("`{option}` is no option: ro, rw or nocopy"), FORMS),
            }
        }
        mode.read_only = access == Some("ro");
        Ok(mode)
    }
}

fn target_of(text: &str, instead: &'static str) -> Result<String, Misunderstood> {
    if !text.starts_with('/') {
        return wrong(format!("`{text}` is no absolute path in the container"), instead);
    }
    match clean(text) {
        path if path == "/" => wrong("the container's root is the image's", instead),
        path if path.contains('\0') => wrong("a path has no zero bytes", instead),
        path => Ok(path),
    }
}

fn volume_name(text: &str, instead: &'static str) -> Result<String, Misunderstood> {
    match names::is_name(text) {
        true => Ok(text.to_owned()),
        false => wrong(
            format!("`{text}` is no name of a volume, which is [a-zA-Z0-9][a-zA-Z0-9_.-]+, and no absolute path"),
            instead,
        ),
    }
}

/// An absolute path without `.`, `..` and empty parts, as Go's `path.Clean`.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn truth(key: &str, value: Option<&str>) -> Result<bool, Misunderstood> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => wrong(format!("`{key}={other}` is neither true nor false"), KEYS),
    }
}

/// A line of comma-separated values (RFC 4180): one with a comma in it is in quotes, a quote in it is written twice.
fn fields(text: &str) -> Result<Vec<String>, Misunderstood> {
    let (mut fields, mut letters) = (Vec::new(), text.chars().peekable());
    loop {
        let mut field = String::new();
        if letters.next_if_eq(&'"').is_some() {
            loop {
                match letters.next() {
                    Some('"') if letters.next_if_eq(&'"').is_none() => break,
                    Some(letter) => field.push(letter),
                    None => return wrong("a quote is not closed", KEYS),
                }
            }
        } else {
            while let Some(letter) = letters.next_if(|letter| *letter != ',') {
                field.push(letter);
            }
        }
        fields.push(field);
        match letters.next() {
            None => return Ok(fields),
            Some(',') => {}
            Some(_) => return wrong("after a closing quote there is a comma, or the end", KEYS),
        }
    }
}

/// How deep a path is: what is mounted deeper is mounted later.
pub fn depth(target: &str) -> usize {
    Path::new(target).components().count()
}

#[cfg(test)]
#[path = "mounts_test.rs"]
mod tests;
