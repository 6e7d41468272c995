// SPDX-License-Identifier: Apache-2.0
//! Bringing an image from the store to a registry.

use super::parallel;
use super::registry::{Access, Purpose, Registry, retry};
use super::{Digest, Image, ImageError, LayerState, Problem, Progress, Reference, Result, Store, limits};

impl Store {
    /// Brings an image to a registry under this name, as far as it is not there; gives the digest of its manifest.
    ///
    /// # Errors
    /// The registry does not take it, or the image is damaged.
    pub fn push(&self, image: &Image, to: &Reference, access: &Access, progress: &dyn Progress) -> Result<Digest> {
        self.push_image(image, to, access, progress)
            .map_err(ImageError::new(format!("cannot push image {}", to.familiar())))
    }

    fn push_image(
        &self,
        image: &Image,
        to: &Reference,
        access: &Access,
        progress: &dyn Progress,
    ) -> std::result::Result<Digest, Problem> {
        let _content = self.hold_content()?;
        let tag = to.tag().ok_or_else(|| Problem::Protocol("an image is pushed under a tag, not a digest".into()))?;
        let registry = Registry::connect(to.name(), Purpose::Push, access)?;
        let manifest = self.read(&image.manifest_digest, limits::MANIFEST)?;
        let mut blobs: Vec<&Digest> = image.content().collect();
        blobs.sort();
        blobs.dedup();
        let tell = |digest: &Digest, state| {
            let size = self.blob_path(digest).metadata().map_or(0, |metadata| metadata.len());
            if *digest != image.id {
                progress.layer(digest, size, state);
            }
        };
        blobs.iter().for_each(|digest| tell(digest, LayerState::Unsent));
        parallel::each(&blobs, |digest, _| {
            if registry.has_blob(digest)? {
                tell(digest, LayerState::Exists);
                return Ok(());
            }
            tell(digest, LayerState::Sending);
            retry(|| registry.send_blob(digest, &self.blob_path(digest)))?;
            tell(digest, LayerState::Sent);
            Ok(())
        })?;
        registry.send_manifest(tag, &self.media_type_of(image)?, &manifest)?;
        let source = Reference::with_digest(to.name().clone(), image.manifest_digest);
        // So that it is known here by the name that others will pull.
        self.change(|index| {
            if index.images.contains_key(&image.manifest_digest) {
                index.add(image.manifest_digest, image.id, &[source]);
            }
            Ok(())
        })?;
        Ok(image.manifest_digest)
    }
}
