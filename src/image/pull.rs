// SPDX-License-Identifier: Apache-2.0
//! Bringing an image from a registry into the store.

use std::sync::atomic::AtomicBool;

use oci_spec::image::Descriptor;

use super::document::{self, Manifest};
use super::registry::{Access, Document, Purpose, Registry};
use super::store::Blob;
use super::{Digest, Image, ImageError, Platform, Problem, Reference, Result, Store, limits, parallel};

/// What to pull, and how.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which of an index's images.
    pub platform: Platform,
    /// How to reach the registry.
    pub access: Access,
}

impl Default for PullOptions {
    /// What this host can run, with everything verified.
    fn default() -> Self {
        Self { platform: Platform::native(), access: Access::default() }
    }
}

/// Where a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// It is in the store already.
    Here,
    /// Its turn has not come.
    Pending,
    /// Another process fetches it.
    Waiting,
    /// This many bytes are here.
    Received(u64),
    /// It is complete and verified.
    Complete,
    /// It is to be sent.
    Unsent,
    /// The registry has it already.
    Exists,
    /// It is being sent.
    Sending,
    /// The registry has taken it.
    Sent,
}

/// Who is told how a pull or push goes. Calls come from several threads.
pub trait Progress: Sync {
    /// The registry has answered, and the image will be fetched.
    fn pulling(&self, _reference: &Reference) {}
    /// A layer of `size` bytes has come to a new state.
    fn layer(&self, _digest: &Digest, _size: u64, _state: LayerState) {}
    /// All is done. `digest` is what the registry has under this name: that of a manifest or an index. `is_new` unless
    /// the store had the image under the same name before.
    fn pulled(&self, _reference: &Reference, _digest: &Digest, _is_new: bool) {}
}

/// Tells nobody.
impl Progress for () {}

impl Store {
    /// Brings the image that a registry has under this name, as far as it is not here.
    ///
    /// # Errors
    /// What failed and why. What has come is kept, so that the same call goes on from there.
    pub fn pull(&self, reference: &Reference, options: &PullOptions, progress: &dyn Progress) -> Result<Image> {
        self.pull_image(reference, options, progress)
            .map_err(ImageError::new(format!("cannot pull image {}", reference.familiar())))
    }

    fn pull_image(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> std::result::Result<Image, Problem> {
        // From here on nobody prunes what has come and is not referred to yet.
        let _content = self.hold_content()?;
        let registry = Registry::connect(reference.name(), Purpose::Pull, &options.access)?;
        let wanted = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let named = registry.manifest(&wanted)?;
        progress.pulling(reference);
        let origin = named.digest;
        let document = choose(&registry, named, &options.platform)?;
        let manifest = Manifest::read(&document.bytes)?;
        self.check_space(&manifest)?;
        self.add(&document.bytes)?;
        self.fetch_all(&registry, &manifest, progress)?;
        let image = self.image(&document.digest)?;
        let found = Platform::of(&image.config);
        if !options.platform.accepts(&found) {
            return Err(Problem::Platform { wanted: options.platform.clone(), offered: vec![found.to_string()] });
        }
        let source = Reference::with_digest(reference.name().clone(), origin);
        let names = if reference.digest().is_some() { vec![source] } else { vec![reference.clone(), source] };
        let is_new = self.change(|index| {
            let known = index.find(reference);
            index.add(image.manifest_digest, image.id, &names);
            Ok(known != Some(image.manifest_digest))
        })?;
        progress.pulled(reference, &origin, is_new);
        Ok(image)
    }

    /// Refuses to begin what cannot be finished.
    fn check_space(&self, manifest: &Manifest) -> std::result::Result<(), Problem> {
        let missing = manifest.blobs().filter(|(_, digest)| !self.has(digest));
        let needed = missing.map(|(blob, _)| blob.size()).fold(0, u64::saturating_add);
        let free = self.free_space()?;
        match needed > free {
            true => Err(Problem::NoSpace { needed, free, path: self.root().to_owned() }),
            false => Ok(()),
        }
    }

    /// Fetches the configuration and all layers, several at once.
    fn fetch_all(
        &self,
        registry: &Registry,
        manifest: &Manifest,
        progress: &dyn Progress,
    ) -> std::result::Result<(), Problem> {
        let mut blobs: Vec<(&Descriptor, &Digest)> = manifest.blobs().collect();
        // An image may have a layer twice.
        let mut seen = std::collections::BTreeSet::new();
        blobs.retain(|(_, digest)| seen.insert(**digest));
        for (layer, digest) in blobs.iter().skip(1) {
            let state = if self.has(digest) { LayerState::Here } else { LayerState::Pending };
            progress.layer(digest, layer.size(), state);
        }
        parallel::each(&blobs, |(blob, digest), cancelled| {
            let tell = |state| {
                if **digest != manifest.config_digest {
                    progress.layer(digest, blob.size(), state);
                }
            };
            self.fetch_one(registry, digest, blob.size(), cancelled, &tell)
        })
    }

    fn fetch_one(
        &self,
        registry: &Registry,
        digest: &Digest,
        size: u64,
        cancelled: &AtomicBool,
        tell: &dyn Fn(LayerState),
    ) -> std::result::Result<(), Problem> {
        match self.bring(digest, size, || tell(LayerState::Waiting))? {
            Blob::Here => {}
            Blob::Wanted(partial) => {
                tell(LayerState::Received(partial.received()));
                registry.fetch(digest, size, *partial, cancelled, &|received| tell(LayerState::Received(received)))?;
            }
        }
        tell(LayerState::Complete);
        Ok(())
    }
}

/// The manifest itself, or the one that an index has for this platform.
fn choose(registry: &Registry, named: Document, wanted: &Platform) -> std::result::Result<Document, Problem> {
    let is_index = document::INDEXES.contains(&named.media_type.as_str());
    let found = match is_index {
        false => named,
        true => {
            let index = document::read_index(&named.bytes)?;
            let chosen = document::choose(&index, wanted)?;
            document::too_large("manifest", chosen.size(), limits::MANIFEST)?;
            registry.manifest(chosen.digest().as_ref())?
        }
    };
    match document::MANIFESTS.contains(&found.media_type.as_str()) {
        true => Ok(found),
        false => Err(Problem::MediaType { what: "manifest", media_type: found.media_type }),
    }
}

#[cfg(test)]
#[path = "pull_test.rs"]
mod tests;
