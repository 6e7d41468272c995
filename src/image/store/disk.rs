// SPDX-License-Identifier: Apache-2.0
//! Disks made of images' layers, made once and shared by all VMs of all images with these layers.

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::lock::claim;
use super::{Problem, Store, at, remove, sync_directory};
use crate::image::{Digest, Image, ImageError, LayerReader, Result};

impl Store {
    /// The disk of an image's layers in a format, made with `build` if it is not here. `format` names what `build`
    /// writes, with its version: `erofs-1`. While another process makes the same disk, this waits for it.
    ///
    /// `build` gets an empty file and the layers, lowest first, which verify themselves as they are read to their end.
    ///
    /// # Errors
    /// `build`'s, or the disk cannot be written; then there is none.
    pub fn disk<E>(
        &self,
        image: &Image,
        format: &str,
        build: impl FnOnce(&mut File, Vec<LayerReader>) -> std::result::Result<(), E>,
    ) -> Result<PathBuf>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let what = || format!("cannot make a disk of image {}", image.id.short());
        self.make_disk(image, format, build).map_err(ImageError::new(what()))
    }

    fn make_disk<E>(
        &self,
        image: &Image,
        format: &str,
        build: impl FnOnce(&mut File, Vec<LayerReader>) -> std::result::Result<(), E>,
    ) -> std::result::Result<PathBuf, Problem>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let path = self.disk_path(&image.chain(), format);
        if path.is_file() {
            return Ok(path);
        }
        // The layers are not to be pruned meanwhile.
        let _content = self.hold_content()?;
        let new = path.with_extension("new");
        let mut file = claim(&new, || log::info!("another process makes {}", path.display())).map_err(at(&new))?;
        if path.is_file() {
            remove(&new)?;
            return Ok(path);
        }
        // A killed process may have left a part.
        file.set_len(0).map_err(at(&new))?;
        let built = image.layer_readers(self).and_then(|layers| {
            let verdicts: Vec<_> = layers.iter().map(LayerReader::verdict).collect();
            build(&mut file, layers).map_err(|error| Problem::Disk(error.into()))?;
            // A tar stream may end before its layer does, and only the whole layer has a digest.
            if !verdicts.iter().all(|verified| verified.load(Ordering::Relaxed)) {
                return Err(Problem::Disk("a layer was not read to its end, and so not verified".into()));
            }
            let finished = file.set_permissions(Permissions::from_mode(0o400)).and_then(|()| file.sync_all());
            finished.map_err(at(&new))?;
            fs::rename(&new, &path).map_err(at(&path))?;
            sync_directory(&self.root.join("disks"))
        });
        if built.is_err() {
            // The first error is the one to tell.
            let _ = remove(&new);
        }
        built.map(|()| path)
    }

    pub(super) fn disk_path(&self, chain: &Digest, format: &str) -> PathBuf {
        self.root.join("disks").join(format!("{}-{format}", chain.hex()))
    }
}
