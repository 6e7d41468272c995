// SPDX-License-Identifier: Apache-2.0
//! Which images there are, and under which names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Problem, Store, at, sync_directory};
use crate::image::{Digest, Image, Reference};

/// The only version of the file so far.
const VERSION: u32 = 1;

/// All images, by the digest of their manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    version: u32,
    /// The images.
    pub images: BTreeMap<Digest, ImageRecord>,
}

/// What is known of an image beside its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of its configuration, which is its ID.
    pub id: Digest,
    /// References with a tag, in full. An image that has lost them all is still here.
    pub names: BTreeSet<String>,
    /// References with a digest, in full: where it came from. The digest may be that of an index.
    pub sources: BTreeSet<String>,
    /// When it came, in seconds since 1970.
    pub added: u64,
}

/// An image that was looked for.
#[derive(Clone, Debug)]
pub struct Found {
    /// The image.
    pub image: Image,
    /// Its names.
    pub record: ImageRecord,
    /// The name by which it was found, unless that was its ID.
    pub name: Option<Reference>,
}

impl Default for Index {
    fn default() -> Self {
        Self { version: VERSION, images: BTreeMap::new() }
    }
}

impl Index {
    /// The manifest of the image that goes by this reference.
    pub fn find(&self, reference: &Reference) -> Option<Digest> {
        let named = |record: &ImageRecord| match reference.digest() {
            // A tag beside a digest says nothing: content is what its digest says.
            Some(digest) => record.sources.contains(&format!("{}@{digest}", reference.name())),
            None => record.names.contains(&reference.to_string()),
        };
        self.images.iter().find(|(_, record)| named(record)).map(|(manifest, _)| *manifest)
    }

    /// The manifest of the image whose ID begins with these digits.
    ///
    /// # Errors
    /// There are several.
    pub fn find_id(&self, digits: &str) -> Result<Option<Digest>, Problem> {
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let fits = |digest: &Digest| digest.hex().starts_with(digits);
        let found: Vec<_> =
            self.images.iter().filter(|(manifest, record)| fits(&record.id) || fits(manifest)).collect();
        match found[..] {
            [] => Ok(None),
            [(manifest, first), ref rest @ ..] if rest.iter().all(|(_, other)| other.id == first.id) => {
                Ok(Some(*manifest))
            }
            _ => Err(Problem::Ambiguous),
        }
    }

    /// Adds an image, or what is new of it. A tag that another image had is this one's now.
    pub fn add(&mut self, manifest: Digest, id: Digest, names: &[Reference]) {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let new = || ImageRecord { id, names: BTreeSet::new(), sources: BTreeSet::new(), added: now() };
        self.images.entry(manifest).or_insert_with(new);
        for name in names {
            let text = name.to_string();
            if name.digest().is_none() {
                self.images.values_mut().for_each(|record| _ = record.names.remove(&text));
            }
            if let Some(record) = self.images.get_mut(&manifest) {
                let list = if name.digest().is_some() { &mut record.sources } else { &mut record.names };
                list.insert(text);
            }
        }
    }
}

impl Store {
    /// The image that a person means: by one of its names, or by its ID or the beginning of it.
    ///
    /// # Errors
    /// There is none, or more than one, or the store cannot be read.
    pub fn find(&self, text: &str) -> Result<Found, Problem> {
        let index = self.index()?;
        let reference: Option<Reference> = text.parse().ok();
        let named = reference.and_then(|reference| index.find(&reference).map(|manifest| (manifest, Some(reference))));
        let found = match named {
            Some(found) => Some(found),
            None => index.find_id(text)?.map(|manifest| (manifest, None)),
        };
        let (manifest, name) = found.ok_or(Problem::NotHere)?;
        let record = index.images.get(&manifest).ok_or(Problem::NotHere)?.clone();
        Ok(Found { image: self.image(&manifest)?, record, name })
    }

    /// All images as they are now.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn index(&self) -> Result<Index, Problem> {
        let path = self.root.join("images.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(error) => return Err(at(&path)(error)),
        };
        let damaged = |reason: String| Problem::Damaged { path: path.clone(), reason };
        let index: Index = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        match index.version {
            VERSION => Ok(index),
            other => Err(damaged(format!("it has version {other}, and this Coracle knows {VERSION}"))),
        }
    }

    /// Changes the list of images; other processes see either none of the change or all of it.
    ///
    /// # Errors
    /// The list cannot be read or written, or what `change` says; then nothing has changed.
    pub fn change<T>(&self, change: impl FnOnce(&mut Index) -> Result<T, Problem>) -> Result<T, Problem> {
        let _alone = self.index_alone()?;
        let before = self.index()?;
        let mut after = before.clone();
        let result = change(&mut after)?;
        if after != before {
            self.replace_index(&after)?;
        }
        Ok(result)
    }

    fn replace_index(&self, index: &Index) -> Result<(), Problem> {
        // There is only one new list at a time, since the lock is held: one that a killed process left is overwritten.
        let (path, new) = (self.root.join("images.json"), self.root.join("images.json.new"));
        let bytes = serde_json::to_vec_pretty(index).map_err(|error| at(&new)(error.into()))?;
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(at(&new))?;
        sync_directory(&self.root)
    }
}
