// SPDX-License-Identifier: Apache-2.0
//! The disk that a VM of an image has for its root.

use std::path::PathBuf;

use super::{Image, Result, Store};
use crate::erofs;

/// What the disks are, and the version of what writes them: another version makes new ones beside the old.
pub const FORMAT: &str = "erofs-1";

impl Store {
    /// The image's files as one read-only EROFS disk, made if it is not here. VMs of all images with the same layers share
    /// it.
    ///
    /// # Errors
    /// The layers are damaged or not what an image may have, or the disk cannot be written.
    pub fn rootfs(&self, image: &Image) -> Result<PathBuf> {
        self.disk(image, FORMAT, |file, layers| erofs::write_image(layers, file, &erofs::Limits::default()).map(drop))
    }
}
