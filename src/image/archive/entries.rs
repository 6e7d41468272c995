// SPDX-License-Identifier: Apache-2.0
//! Named files in a directory or in a tar archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::{Problem, bad, file};

/// The most entries that an archive may have.
const ENTRIES: usize = 100_000;

/// How many links one after the other are followed.
const LINKS: usize = 8;

/// Named files.
#[derive(Debug)]
pub enum Entries {
    /// Below a directory.
    Directory(PathBuf),
    /// In a tar archive that is not packed.
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is in it.
        entries: BTreeMap<String, Entry>,
    },
}

/// What an archive has under a name.
#[derive(Clone, Debug)]
pub enum Entry {
    /// Bytes of the archive.
    File {
        /// Where they begin.
        offset: u64,
        /// How many.
        size: u64,
    },
    /// The same as under another name.
    Link(String),
}

impl Entries {
    /// The files of a directory.
    pub fn directory(path: &Path) -> Self {
        Self::Directory(path.to_owned())
    }

    /// Finds all entries of a tar archive.
    pub fn archive(path: &Path) -> Result<Self, Problem> {
        let mut archive = tar::Archive::new(BufReader::new(File::open(path).map_err(file(path))?));
        let mut entries = BTreeMap::new();
        let broken = |error: io::Error| bad(format!("it is no tar archive, or is damaged: {error}"));
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let name = entry.path().map_err(broken)?;
            let Some(name) = plain(&name) else { continue };
            let kind = entry.header().entry_type();
            let found = if kind.is_file() {
                Entry::File { offset: entry.raw_file_position(), size: entry.size() }
            } else if kind.is_symlink() || kind.is_hard_link() {
                let target = entry.link_name().map_err(broken)?.unwrap_or_default();
                // A symbolic link begins in its own directory, a hard link at the top.
                let below =
                    Path::new(&name).parent().filter(|_| kind.is_symlink()).map(Path::to_owned).unwrap_or_default();
                match plain(&below.join(target)) {
                    Some(target) => Entry::Link(target),
                    None => continue,
                }
            } else {
                continue;
            };
            entries.insert(name, found);
            if entries.len() > ENTRIES {
                return Err(bad(format!("it has more than {ENTRIES} entries")));
            }
        }
        Ok(Self::Archive { path: path.to_owned(), entries })
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(path) => path.join(name).is_file(),
            Self::Archive { entries, .. } => entries.contains_key(name),
        }
    }

    /// Opens a file; gives its size in bytes too. `name` is a plain path.
    pub fn open(&self, name: &str) -> Result<(Box<dyn Read>, u64), Problem> {
        let missing = || bad(format!("it has no {name}"));
        match self {
            Self::Directory(directory) => {
                let path = directory.join(name);
                let opened = File::open(&path).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => missing(),
                    _ => file(&path)(error),
                })?;
                let size = opened.metadata().map_err(file(&path))?.len();
                Ok((Box::new(opened), size))
            }
            Self::Archive { path, entries } => {
                let mut found = entries.get(name);
                for _ in 0..LINKS {
                    match found {
                        Some(Entry::Link(target)) => found = entries.get(target),
                        _ => break,
                    }
                }
                let Some(Entry::File { offset, size }) = found else { return Err(missing()) };
                let mut archive = File::open(path).map_err(file(path))?;
                archive.seek(SeekFrom::Start(*offset)).map_err(file(path))?;
                Ok((Box::new(archive.take(*size)), *size))
            }
        }
    }

    /// All of a small file.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Problem> {
        let (reader, size) = self.open(name)?;
        if size > limit {
            return Err(bad(format!("its {name} has {size} bytes, and {limit} are allowed")));
        }
        let mut bytes = Vec::new();
        reader
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| bad(format!("its {name} cannot be read: {error}")))?;
        Ok(bytes)
    }
}

/// A relative path without `.` and `..`, which are resolved; `None` if it leads out.
pub fn plain(path: &Path) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => _ = parts.pop()?,
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}
