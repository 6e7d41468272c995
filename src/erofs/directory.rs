// SPDX-License-Identifier: Apache-2.0
//! The last step: directories, the superblock, and all that is known only when the last layer is read.

use super::blocks::Extent;
use super::error::{Error, Problem};
use super::format::{BLOCK, BLOCK_BYTES, DIRENT, FileType, Inode, Layout, ROOT_AT, ROOT_NID, SLOT, Superblock};
use super::tree::{Directory, Node, NodeId};
use super::{Summary, Writer};

/// A directory that has a place.
struct Placed {
    id: NodeId,
    inode: Inode,
    xattrs: Vec<u8>,
    extent: Extent,
}

/// Bytes of a directory whose names have these lengths. Names do not cross blocks, and each block begins with its entries.
fn data_size(lengths: impl Iterator<Item = usize>) -> u64 {
    let (mut blocks, mut used) = (0, 0);
    for length in lengths.map(|length| DIRENT + length) {
        if used + length > BLOCK {
            blocks += 1;
            used = 0;
        }
        used += length;
    }
    blocks * BLOCK_BYTES + used as u64
}

/// Encodes a directory's entries, sorted by name, as [`data_size`] has measured them.
fn encode_entries(entries: &[(&[u8], u64, FileType)]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = |(name, _, _): &&(&[u8], u64, FileType)| {
            used += DIRENT + name.len();
            used <= BLOCK
        };
        let (block, later) = rest.split_at(rest.iter().take_while(fits).count());
        data.resize(data.len().next_multiple_of(BLOCK), 0);
        let mut name_at = block.len() * DIRENT;
        for (name, nid, file_type) in block {
            data.extend(nid.to_le_bytes());
            data.extend(u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
            data.extend([*file_type as u8, 0]);
            name_at += name.len();
        }
        for (name, ..) in block {
            data.extend(*name);
        }
        rest = later;
    }
    data
}

impl Writer<'_> {
    /// Writes directories and superblock. Nothing is synced to disk.
    ///
    /// # Errors
    /// The image would be too large, or cannot be written.
    pub fn finish(mut self) -> Result<Summary, Error> {
        let directories = self.place_directories()?;
        let xattr_block = self.write_shared_xattrs()?;
        self.metadata.close_all(&mut self.blocks, &mut self.output)?;
        let mut first = [0; BLOCK];
        for placed in &directories {
            self.write_directory(placed, &mut first)?;
        }
        let leaves = self.write_links()?;
        let checksum = std::mem::take(&mut self.checksum).finalize();
        self.metadata.identify(&checksum.to_le_bytes());
        let free: Vec<Extent> = self.blocks.free().collect();
        for extent in &free {
            self.output.punch(*extent)?;
        }
        let blocks = self.blocks.end();
        let summary = Summary {
            bytes: u64::from(blocks) * BLOCK_BYTES,
            inodes: leaves + directories.len() as u64,
            unused_bytes: free.iter().map(|extent| extent.length()).sum(),
            dropped_xattrs: self.xattrs.dropped(),
            uuid: uuid(self.metadata.identity()),
        };
        let epoch = self.epoch.unwrap_or_default();
        Superblock { inodes: summary.inodes, epoch, blocks, xattr_block, uuid: summary.uuid }.encode(&mut first);
        self.output.write(0, &first)?;
        self.output.finish(summary.bytes)?;
        Ok(summary)
    }

    /// Gives all directories their places, those above before those below, and neighbours side by side.
    fn place_directories(&mut self) -> Result<Vec<Placed>, Problem> {
        let mut placed = Vec::new();
        let mut pending = vec![NodeId::ROOT];
        while let Some(id) = pending.pop() {
            let Some(directory) = self.tree.directory(id) else { continue };
            let below: Vec<NodeId> = directory.children.values().map(|child| child.node).collect();
            let below: Vec<NodeId> = below.into_iter().filter(|child| self.tree.directory(*child).is_some()).collect();
            let links = u32::try_from(below.len() + 2).unwrap_or(u32::MAX);
            placed.extend(self.place_directory(id, links)?);
            pending.extend(below.iter().rev());
        }
        Ok(placed)
    }

    fn place_directory(&mut self, id: NodeId, links: u32) -> Result<Option<Placed>, Problem> {
        let Some(directory) = self.tree.directory(id) else { return Ok(None) };
        let xattrs = self.xattrs.encode(&directory.xattrs)?;
        let size = data_size(sorted(directory, 0, 0, |_| (0, FileType::Directory)).iter().map(|(name, ..)| name.len()));
        let attributes = directory.attributes;
        let file_type = FileType::Directory;
        let mut inode =
            Inode { file_type, attributes, layout: Layout::Plain, xattrs: xattrs.len(), links, size, address: 0 };
        let epoch = self.epoch_for(attributes.mtime);
        let beside = inode.length(epoch) + xattrs.len();
        let tail = usize::try_from(size % BLOCK_BYTES).unwrap_or(0);
        let room = if id == NodeId::ROOT { BLOCK - ROOT_AT } else { BLOCK };
        let inline = tail > 0 && beside + tail <= room;
        if inline {
            inode.layout = Layout::Inline;
        }
        let extent = self.blocks.allocate(if inline { size / BLOCK_BYTES } else { size.div_ceil(BLOCK_BYTES) })?;
        inode.address = extent.start;
        let nid = if id == NodeId::ROOT {
            ROOT_NID.into()
        } else {
            // The bytes come when all directories have their numbers.
            let bytes = vec![0; beside + if inline { tail } else { 0 }];
            self.metadata.place(&bytes, &mut self.blocks, &mut self.output)?
        };
        if let Some(directory) = self.tree.directory_mut(id) {
            directory.nid = nid;
        }
        Ok(Some(Placed { id, inode, xattrs, extent }))
    }

    fn write_directory(&mut self, placed: &Placed, first: &mut [u8; BLOCK]) -> Result<(), Problem> {
        let Some(directory) = self.tree.directory(placed.id) else { return Ok(()) };
        let above = self.tree.directory(directory.parent).map_or(u64::from(ROOT_NID), |parent| parent.nid);
        let entries = sorted(directory, directory.nid, above, |child| match self.tree.node(child) {
            Node::Directory(directory) => (directory.nid, FileType::Directory),
            Node::Leaf(leaf) => (leaf.nid, leaf.file_type),
            Node::Unused => (0, FileType::Regular),
        });
        let data = encode_entries(&entries);
        let nid = directory.nid;
        let whole = usize::try_from(placed.extent.length()).unwrap_or(usize::MAX).min(data.len());
        let (blocks, tail) = data.split_at(whole);
        self.output.write(placed.extent.offset(), blocks)?;
        self.output.write_zeroes(placed.extent.offset() + whole as u64, placed.extent.length() - whole as u64)?;
        let mut bytes = Vec::new();
        self.encode_inode(&placed.inode, &mut bytes);
        bytes.extend(&placed.xattrs);
        bytes.extend(tail);
        self.metadata.identify(&bytes);
        self.metadata.identify(blocks);
        if placed.id == NodeId::ROOT {
            first[ROOT_AT..ROOT_AT + bytes.len()].copy_from_slice(&bytes);
            return Ok(());
        }
        self.output.write(nid * SLOT as u64, &bytes)
    }

    /// Returns the first block of the shared attributes, which is 0 when there are none.
    fn write_shared_xattrs(&mut self) -> Result<u32, Problem> {
        let area = self.xattrs.area();
        let extent = self.blocks.allocate((area.len() as u64).div_ceil(BLOCK_BYTES))?;
        self.output.write(extent.offset(), area)?;
        self.output.write_zeroes(extent.offset() + area.len() as u64, extent.length() - area.len() as u64)?;
        self.metadata.identify(area);
        Ok(extent.start)
    }

    /// Tells inodes with several names how many. Returns how many inodes there are that are not directories.
    fn write_links(&mut self) -> Result<u64, Problem> {
        let mut count = 0;
        for id in self.tree.node_ids() {
            let Node::Leaf(leaf) = self.tree.node(id) else { continue };
            count += 1;
            if leaf.links != 1 {
                let (offset, bytes) = Inode::encode_links(leaf.compact, leaf.links);
                self.output.write(leaf.nid * SLOT as u64 + offset, &bytes)?;
            }
        }
        Ok(count)
    }
}

/// A directory's entries with `.` and `..`, by name.
fn sorted(
    directory: &Directory,
    itself: u64,
    above: u64,
    child: impl Fn(NodeId) -> (u64, FileType),
) -> Vec<(&[u8], u64, FileType)> {
    let mut entries: Vec<(&[u8], u64, FileType)> = Vec::with_capacity(directory.children.len() + 2);
    entries.push((b".", itself, FileType::Directory));
    entries.push((b"..", above, FileType::Directory));
    entries.extend(directory.children.iter().map(|(name, entry)| {
        let (nid, file_type) = child(entry.node);
        (&name[..], nid, file_type)
    }));
    entries.sort_unstable_by_key(|(name, ..)| *name);
    entries
}

/// Makes a UUID of a digest (RFC 9562, version 8).
fn uuid(digest: [u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
