// SPDX-License-Identifier: Apache-2.0
//! One layer laid over those before.

use std::io::{self, Read};

use super::blocks::Extent;
use super::error::{Error, Problem};
use super::format::{Attributes, BLOCK, BLOCK_BYTES, FileType, Inode, Layout, encode_device};
use super::tar::{Entry, Kind, Piece, ReadError, TarReader};
use super::tree::{Leaf, Name, NewDirectory, Node, NodeId, components};
use super::{Limits, Writer};

/// A file whose last block would waste more than this part of the file's size keeps its last bytes with its inode. Others
/// have all in blocks of their own, so that DAX can map them: Linux reads files with bytes beside the inode through the page
/// cache. `docs/erofs.md` has the figures.
const WASTE_PART: u64 = 8;
/// From here on no last block wastes as much.
const LARGE: u64 = WASTE_PART * BLOCK_BYTES;

/// The layers' limit of bytes, as a reader's error.
#[derive(Debug, thiserror::Error)]
#[error("the layers are larger than allowed")]
struct BudgetSpent;

/// Ends with an error after so many bytes.
struct Budget<R> {
    source: R,
    left: u64,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.left = self.left.checked_sub(length as u64).ok_or_else(|| io::Error::other(BudgetSpent))?;
        Ok(length)
    }
}

impl ReadError {
    fn problem(self, limits: &Limits) -> Problem {
        match self {
            Self::Stream(error) if error.get_ref().is_some_and(|inner| inner.is::<BudgetSpent>()) => {
                Problem::Size { what: "what the layers unpack to", limit: limits.layer_bytes }
            }
            Self::Stream(error) => Problem::Read(error),
            Self::Tar(problem) => Problem::Tar(problem),
        }
    }
}

impl Writer<'_> {
    /// Lays a layer over those so far. It is read to the end of the stream, also beyond the end of the archive, so that the
    /// caller can check a digest over all of it.
    ///
    /// # Errors
    /// See [`Problem`]; the image is then of no use.
    pub fn layer(mut self, tar: impl Read) -> Result<Self, Error> {
        let layer = self.layers;
        self.layers += 1;
        self.tree.next_layer();
        let mut tar = TarReader::new(Budget { source: tar, left: self.spare_bytes });
        let mut last = None;
        loop {
            let entry = match tar.next_entry() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => {
                    // The entry whose data was read last is the best hint at where the trouble is.
                    return Err(Error { layer: Some(layer), path: last, problem: error.problem(&self.limits) });
                }
            };
            let path: Box<[u8]> = entry.path.as_slice().into();
            if let Err(problem) = self.entry(entry, &mut tar) {
                return Err(Error { layer: Some(layer), path: Some(path), problem });
            }
            last = Some(path);
        }
        self.spare_bytes = self.spare_bytes.saturating_sub(tar.position());
        Ok(self)
    }

    fn entry<R: Read>(&mut self, entry: Entry, tar: &mut TarReader<R>) -> Result<(), Problem> {
        let parts = components(&entry.path, "name")?;
        let Some((name, directories)) = parts.split_last() else {
            // The root itself.
            if entry.kind != Kind::File(FileType::Directory) {
                return Err(Problem::Root);
            }
            let new = new_directory(&entry);
            self.tree.change_directory(NodeId::ROOT, new);
            return Ok(());
        };
        match Name::of(directories, name)? {
            Name::Plain(name) => {
                let parent = self.tree.make_directories(directories)?;
                self.put(parent, name, &entry, tar)?;
            }
            Name::Whiteout(hidden) => {
                if let Some(parent) = self.tree.find_directory(directories)? {
                    self.tree.whiteout(parent, hidden);
                }
            }
            Name::Opaque => {
                if let Some(parent) = self.tree.find_directory(directories)? {
                    self.tree.purge(parent);
                }
            }
            Name::Ignored => {}
        }
        self.bury()?;
        self.check_limits()
    }

    /// Gives the entry its name; whatever had it before goes first, except that a directory stays a directory.
    fn put<R: Read>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        tar: &mut TarReader<R>,
    ) -> Result<(), Problem> {
        let file_type = match entry.kind {
            Kind::File(FileType::Directory) => {
                self.tree.put_directory(parent, name, new_directory(entry));
                return Ok(());
            }
            Kind::File(file_type) => file_type,
            Kind::HardLink => {
                self.tree.remove(parent, name);
                return self.put_link(parent, name, &entry.link);
            }
        };
        self.tree.remove(parent, name);
        // Its blocks are free for the new file: a layer that only changes owners takes no room.
        self.bury()?;
        let leaf = self.write_leaf(file_type, entry, tar)?;
        self.tree.put_leaf(parent, name, leaf);
        Ok(())
    }

    fn put_link(&mut self, parent: NodeId, name: &[u8], target: &[u8]) -> Result<(), Problem> {
        let parts = components(target, "target of the hard link")?;
        let Some((last, directories)) = parts.split_last() else {
            return Err(Problem::LinkToDirectory(target.into()));
        };
        let directory = self.tree.find_directory(directories)?;
        let found = directory.and_then(|directory| self.tree.child(directory, last));
        let found = found.ok_or_else(|| Problem::LinkTarget(target.into()))?;
        match self.tree.node(found.node) {
            // What the smaller form of an inode can count, and what ext4 allows.
            Node::Leaf(leaf) if leaf.links >= 65_000 => {
                Err(Problem::Limit { what: "hard links to one file", limit: 65_000 })
            }
            Node::Leaf(_) => self.tree.put_link(parent, name, found.node),
            _ => Err(Problem::LinkToDirectory(target.into())),
        }
    }

    /// Frees what files had that lost their last name.
    fn bury(&mut self) -> Result<(), Problem> {
        for leaf in self.tree.take_dead() {
            self.metadata.forget(leaf.nid, leaf.length, &mut self.blocks, &mut self.output)?;
            self.blocks.release(leaf.extent);
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Problem> {
        let limits = &self.limits;
        if self.tree.names() > limits.names {
            return Err(Problem::Limit { what: "files", limit: limits.names });
        }
        if self.tree.text() > limits.text_bytes {
            return Err(Problem::Size { what: "the text of all names", limit: limits.text_bytes });
        }
        Ok(())
    }

    /// Writes the inode, and the data, of anything but a directory.
    fn write_leaf<R: Read>(
        &mut self,
        file_type: FileType,
        entry: &Entry,
        tar: &mut TarReader<R>,
    ) -> Result<Leaf, Problem> {
        let xattrs = self.xattrs.encode(&entry.xattrs)?;
        let mut inode = Inode {
            file_type,
            attributes: attributes(entry),
            layout: Layout::Plain,
            xattrs: xattrs.len(),
            links: 1,
            size: 0,
            address: 0,
        };
        let epoch = self.epoch_for(inode.attributes.mtime);
        let mut target = None;
        let mut extent = Extent::default();
        let mut tail = Vec::new();
        match file_type {
            FileType::Regular => {
                inode.size = entry.size;
                let wasted = entry.size.wrapping_neg() % BLOCK_BYTES;
                let wastes = wasted > entry.size / WASTE_PART;
                let room = if wastes { BLOCK - inode.length(epoch) - xattrs.len() } else { 0 };
                (extent, tail) = if entry.size < LARGE {
                    self.write_small(entry, room, tar)?
                } else {
                    (self.write_large(entry, tar)?, Vec::new())
                };
            }
            FileType::Symlink => {
                let link = check_symlink(&entry.link)?;
                inode.size = link.len() as u64;
                let beside = inode.length(epoch) + xattrs.len();
                (extent, tail) = self.write_bytes(link, BLOCK - beside)?;
                target = Some(link.into());
            }
            FileType::Character | FileType::Block => {
                let (major, minor) = entry.device;
                inode.address = encode_device(major, minor).ok_or(Problem::Device { major, minor })?;
            }
            FileType::Fifo | FileType::Directory => {}
        }
        if extent.count > 0 {
            inode.address = extent.start;
        }
        if !tail.is_empty() {
            inode.layout = Layout::Inline;
        }
        let mut bytes = Vec::with_capacity(BLOCK);
        self.encode_inode(&inode, &mut bytes);
        bytes.extend(xattrs);
        bytes.append(&mut tail);
        let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        let nid = self.metadata.place(&bytes, &mut self.blocks, &mut self.output)?;
        Ok(Leaf { file_type, compact: inode.is_compact(epoch), links: 1, nid, length, extent, target })
    }

    /// Writes a file of less than [`LARGE`] bytes.
    fn write_small<R: Read>(
        &mut self,
        entry: &Entry,
        room: usize,
        tar: &mut TarReader<R>,
    ) -> Result<(Extent, Vec<u8>), Problem> {
        let mut content = vec![0; usize::try_from(entry.size).unwrap_or(0)];
        let whole = [Piece { offset: 0, length: entry.size }];
        for piece in entry.pieces.as_deref().unwrap_or(&whole) {
            let range = usize::try_from(piece.offset).ok().zip(usize::try_from(piece.offset + piece.length).ok());
            // Pieces lie inside the file, as the reader has checked.
            let into = range.and_then(|(start, end)| content.get_mut(start..end)).unwrap_or(&mut []);
            tar.read_data(into).map_err(|error| error.problem(&self.limits))?;
        }
        self.write_bytes(&content, room)
    }

    /// Writes whole blocks, and returns what remains if `room` bytes beside the inode suffice for it.
    fn write_bytes(&mut self, content: &[u8], room: usize) -> Result<(Extent, Vec<u8>), Problem> {
        let rest = content.len() % BLOCK;
        let (whole, tail) = content.split_at(content.len() - if rest <= room { rest } else { 0 });
        let extent = self.blocks.allocate((whole.len() as u64).div_ceil(BLOCK_BYTES))?;
        self.checksum.update(whole);
        self.output.write(extent.offset(), whole)?;
        self.output.write_zeroes(extent.offset() + whole.len() as u64, extent.length() - whole.len() as u64)?;
        Ok((extent, tail.to_vec()))
    }

    /// Writes a file into blocks of its own while it is read.
    fn write_large<R: Read>(&mut self, entry: &Entry, tar: &mut TarReader<R>) -> Result<Extent, Problem> {
        let unwritten = u64::from(self.blocks.unwritten()) * BLOCK_BYTES;
        let extent = self.blocks.allocate(entry.size.div_ceil(BLOCK_BYTES))?;
        let whole = [Piece { offset: 0, length: entry.size }];
        let mut at = 0;
        for piece in entry.pieces.as_deref().unwrap_or(&whole) {
            self.write_hole(extent.offset() + at, piece.offset - at, unwritten)?;
            at = piece.offset;
            let end = piece.offset + piece.length;
            while at < end {
                let room = self.output.room(extent.offset() + at, end - at)?;
                tar.read_data(room).map_err(|error| error.problem(&self.limits))?;
                self.checksum.update(room);
                at += room.len() as u64;
            }
        }
        self.write_hole(extent.offset() + at, extent.length() - at, unwritten)?;
        Ok(extent)
    }

    /// Makes a range zero. Blocks that never were written are zero already, and take no room on the disk.
    fn write_hole(&mut self, offset: u64, length: u64, unwritten: u64) -> Result<(), Problem> {
        if length < BLOCK_BYTES || offset < unwritten {
            return self.output.write_zeroes(offset, length);
        }
        Ok(())
    }
}

fn attributes(entry: &Entry) -> Attributes {
    Attributes {
        // Linux gives all permissions on links, and tar whatever it likes.
        mode: if entry.kind == Kind::File(FileType::Symlink) { 0o777 } else { entry.mode },
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
    }
}

fn new_directory(entry: &Entry) -> NewDirectory {
    NewDirectory { attributes: attributes(entry), xattrs: entry.xattrs.clone() }
}

fn check_symlink(target: &[u8]) -> Result<&[u8], Problem> {
    match target.len() {
        0 => Err(Problem::EmptySymlink),
        1..=4095 => Ok(target),
        _ => Err(Problem::PathTooLong { what: "target of the symbolic link" }),
    }
}
