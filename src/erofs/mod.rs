// SPDX-License-Identifier: Apache-2.0
//! Image layers, as tar streams, become one read-only disk image: EROFS, uncompressed, flattened.
//!
//! Each layer is read once, from the bottom layer up, and file data goes to the image as it comes: memory grows with the
//! number of names, never with the size of files. The same layers always give the same bytes. `docs/erofs.md` says why
//! the image is made this way.
//!
//! Layers come from strangers: nothing of them touches the host's own file tree, and [`Limits`] hold for all that they
//! could ask for.

mod blocks;
mod directory;
mod error;
mod format;
mod layer;
mod metadata;
mod output;
pub mod tar;
mod tree;
mod xattr;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;

use blocks::Blocks;
pub use error::{Error, Problem};
use format::{BLOCK_BYTES, Inode};
pub use format::{FileType, Time};
use metadata::Metadata;
use output::Output;
use tree::Tree;
use xattr::XattrEncoder;

/// How much layers may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Names that the image may have at any time; each takes some 150 bytes of memory.
    pub names: u64,
    /// Bytes of these names, and of the targets of symbolic links, all of which are in memory.
    pub text_bytes: u64,
    /// Bytes of the image, holes of sparse files included.
    pub image_bytes: u64,
    /// Bytes of all layers together, unpacked.
    pub layer_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { names: 1 << 20, text_bytes: 128 << 20, image_bytes: 64 << 30, layer_bytes: 128 << 30 }
    }
}

/// What became of the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image, a multiple of 4096.
    pub bytes: u64,
    /// Files, directories and so on, hard links counted once.
    pub inodes: u64,
    /// Bytes of the image that nothing uses, because a layer replaced or removed what another had.
    pub unused_bytes: u64,
    /// Extended attributes that were left out: overlayfs's own, and those in namespaces that EROFS does not know.
    pub dropped_xattrs: u64,
    /// The volume's UUID, made of its content.
    pub uuid: [u8; 16],
}

/// Makes an image of layers, the bottom one first.
///
/// What `output` held before is lost. It is not synced to disk.
///
/// # Errors
/// See [`Problem`]; `output` is then of no use.
pub fn write_image<L: Read>(
    layers: impl IntoIterator<Item = L>,
    output: &mut File,
    limits: &Limits,
) -> Result<Summary, Error> {
    let mut writer = Writer::new(output, limits)?;
    for layer in layers {
        writer = writer.layer(layer)?;
    }
    writer.finish()
}

/// An image that is being made.
pub struct Writer<'f> {
    output: Output<'f>,
    blocks: Blocks,
    metadata: Metadata,
    xattrs: XattrEncoder,
    tree: Tree,
    /// The time that compact inodes have: that of the first file, which many share in images that are built to be the same
    /// each time.
    epoch: Option<Time>,
    /// Inodes encoded so far.
    serial: u32,
    /// Of the data in blocks, for the image's identity: that is not what protects it, and a longer digest would take
    /// longer than all the rest.
    checksum: crc32fast::Hasher,
    limits: Limits,
    /// What remains of the limit of the layers' bytes.
    spare_bytes: u64,
    layers: usize,
}

impl<'f> Writer<'f> {
    /// Starts an image in `output`, whose content is lost.
    ///
    /// # Errors
    /// `output` cannot be written.
    pub fn new(output: &'f mut File, limits: &Limits) -> Result<Self, Error> {
        let limit = u32::try_from(limits.image_bytes / BLOCK_BYTES).unwrap_or(u32::MAX);
        Ok(Self {
            output: Output::new(output)?,
            blocks: Blocks::new(1, limit),
            metadata: Metadata::default(),
            xattrs: XattrEncoder::default(),
            tree: Tree::new(),
            epoch: None,
            serial: 0,
            checksum: crc32fast::Hasher::new(),
            limits: limits.clone(),
            spare_bytes: limits.layer_bytes,
            layers: 0,
        })
    }

    /// Encodes an inode; the first one decides the time of compact inodes.
    fn encode_inode(&mut self, inode: &Inode, into: &mut Vec<u8>) {
        self.serial = self.serial.wrapping_add(1);
        inode.encode(self.epoch_for(inode.attributes.mtime), self.serial, into);
    }

    fn epoch_for(&mut self, mtime: Time) -> Time {
        *self.epoch.get_or_insert(mtime)
    }
}
