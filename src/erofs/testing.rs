// SPDX-License-Identifier: Apache-2.0
//! Reads images for tests, by the format's own description and with none of the writer's code, and checks what a reader
//! relies on: order, bounds, and that no byte belongs to two files.

use std::collections::{BTreeMap, HashMap, HashSet};

const BLOCK: usize = 4096;

/// A file of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// `st_mode`, type included.
    pub mode: u16,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// `st_nlink`.
    pub links: u32,
    /// Content, or target of a link.
    pub data: Vec<u8>,
    /// `st_rdev` as Linux encodes it.
    pub device: u32,
    /// By full name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The inode's number.
    pub nid: u64,
    /// Whether DAX can map it.
    pub plain: bool,
}

/// An image that is being read.
struct Image<'i> {
    bytes: &'i [u8],
    epoch: (i64, u32),
    xattr_block: usize,
    /// Bytes that belong to an inode or its data: start to end, and whose.
    taken: BTreeMap<usize, (usize, u64)>,
    inodes: HashMap<u64, File>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn size(value: u64) -> usize {
    usize::try_from(value).expect("64-bit host")
}

fn narrow<T: TryFrom<u64>>(value: u64) -> T {
    T::try_from(value).ok().expect("fits its field")
}

/// All files by path; the root is the empty path. Panics where the image is wrong.
pub fn read_image(bytes: &[u8]) -> BTreeMap<Vec<u8>, File> {
    let superblock = &bytes[1024..];
    assert_eq!(number::<4>(superblock, 0), 0xe0f5_e1e2, "magic number");
    assert_eq!(superblock[12], 12, "block size");
    assert_eq!(number::<4>(superblock, 36) * 4096, bytes.len() as u64, "number of blocks");
    assert_eq!(number::<4>(superblock, 40), 0, "metadata starts at 0");
    assert_eq!(number::<4>(superblock, 80), 0, "nothing that old kernels do not know");
    let mut image = Image {
        bytes,
        epoch: (number::<8>(superblock, 24).cast_signed(), narrow(number::<4>(superblock, 32))),
        xattr_block: size(number::<4>(superblock, 44)),
        taken: BTreeMap::from([(0, (1024 + 128, 0))]),
        inodes: HashMap::new(),
    };
    let mut files = BTreeMap::new();
    let mut directories = HashSet::new();
    let root = number::<2>(superblock, 14);
    let mut pending = vec![(Vec::new(), root, root)];
    while let Some((path, nid, parent)) = pending.pop() {
        let file = image.inode(nid);
        if file.mode & 0o170_000 == 0o040_000 {
            assert!(directories.insert(nid), "a directory has one name");
            pending.extend(entries(&file, &path, parent, &mut image));
        }
        files.insert(path, file);
    }
    assert_eq!(number::<8>(superblock, 16), image.inodes.len() as u64, "number of inodes");
    files
}

/// Entries of a directory, checked: path, inode, and the directory itself.
fn entries(directory: &File, path: &[u8], parent: u64, image: &mut Image<'_>) -> Vec<(Vec<u8>, u64, u64)> {
    let mut found: Vec<(Vec<u8>, u64)> = Vec::new();
    let mut below = Vec::new();
    for block in directory.data.chunks(BLOCK) {
        let count = size(number::<2>(block, 8)) / 12;
        for at in (0..count).map(|entry| entry * 12) {
            let start = size(number::<2>(block, at + 8));
            let end = if at + 12 < count * 12 { size(number::<2>(block, at + 12 + 8)) } else { block.len() };
            let name = block[start..end].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
            assert!(!name.is_empty() && name.len() <= 255);
            let nid = number::<8>(block, at);
            let file_type = image.inode(nid).mode >> 12;
            let expected = [(1, 5), (2, 3), (4, 2), (6, 4), (8, 1), (10, 7)];
            assert!(expected.contains(&(file_type, block[at + 10])), "type of {}", name.escape_ascii());
            found.push((name, nid));
        }
    }
    assert!(found.is_sorted_by(|(a, _), (b, _)| a < b), "names in order, each once");
    let has = |name: &[u8], nid| found.iter().any(|(found, to)| found == name && *to == nid);
    assert!(has(b".", directory.nid) && has(b"..", parent));
    let mut directories = 0;
    for (name, nid) in found.iter().filter(|(name, _)| !matches!(&name[..], b"." | b"..")) {
        directories += u32::from(image.inode(*nid).mode & 0o170_000 == 0o040_000);
        let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
        below.push((path, *nid, directory.nid));
    }
    assert_eq!(directory.links, directories + 2, "links of {}", path.escape_ascii());
    below
}

impl Image<'_> {
    fn take(&mut self, start: usize, length: usize, nid: u64) {
        let end = start + length;
        assert!(end <= self.bytes.len(), "inside the image");
        if length == 0 {
            return;
        }
        let before = self.taken.range(..end).next_back();
        assert!(before.is_none_or(|(_, (before, _))| *before <= start), "{nid} overlaps {before:?}");
        self.taken.insert(start, (end, nid));
    }

    fn inode(&mut self, nid: u64) -> File {
        if let Some(file) = self.inodes.get(&nid) {
            return file.clone();
        }
        let at = size(nid) * 32;
        let bytes = &self.bytes[at..];
        let format = number::<2>(bytes, 0);
        let extended = format & 1 == 1;
        let layout = format >> 1;
        let mode: u16 = narrow(number::<2>(bytes, 4));
        let count = size(number::<2>(bytes, 2));
        let xattrs = if count == 0 { 0 } else { 12 + 4 * (count - 1) };
        let (length, bytes_of_file, owner, mtime, links) = if extended {
            let owner = (narrow(number::<4>(bytes, 24)), narrow(number::<4>(bytes, 28)));
            let mtime = (number::<8>(bytes, 32).cast_signed(), narrow(number::<4>(bytes, 40)));
            (64, number::<8>(bytes, 8), owner, mtime, number::<4>(bytes, 44))
        } else {
            let owner = (narrow(number::<2>(bytes, 24)), narrow(number::<2>(bytes, 26)));
            (32, number::<4>(bytes, 8), owner, self.epoch, number::<2>(bytes, 6))
        };
        let address = number::<4>(bytes, 16);
        let has_data = matches!(mode >> 12, 4 | 8 | 10);
        let total = if has_data { size(bytes_of_file) } else { 0 };
        let tail = match layout {
            0 => 0,
            2 => total % BLOCK,
            other => panic!("layout {other}"),
        };
        assert!(layout == 0 || tail > 0);
        let beside = length + xattrs + tail;
        assert!(at % BLOCK + beside <= BLOCK, "an inode crosses a block's end");
        self.take(at, beside, nid);
        let start = size(address) * BLOCK;
        let whole = total - tail;
        let mut data = Vec::new();
        if has_data && whole > 0 {
            self.take(start, whole.next_multiple_of(BLOCK), nid);
            data.extend(&self.bytes[start..start + whole]);
            assert!(self.bytes[start + whole..start + whole.next_multiple_of(BLOCK)].iter().all(|byte| *byte == 0));
        }
        data.extend(&self.bytes[at + length + xattrs..at + beside]);
        let file = File {
            mode,
            owner,
            mtime,
            links: narrow(links),
            data,
            device: if matches!(mode >> 12, 2 | 6) { narrow(address) } else { 0 },
            xattrs: self.xattrs(at + length, xattrs),
            nid,
            plain: layout == 0,
        };
        self.inodes.insert(nid, file.clone());
        file
    }

    fn xattrs(&self, at: usize, length: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        if length == 0 {
            return found;
        }
        let body = &self.bytes[at..at + length];
        let shared = usize::from(body[4]);
        for id in 0..shared {
            let offset = self.xattr_block * BLOCK + size(number::<4>(body, 12 + 4 * id)) * 4;
            xattr(&self.bytes[offset..], &mut found);
        }
        let mut rest = &body[12 + 4 * shared..];
        while !rest.is_empty() {
            rest = &rest[xattr(rest, &mut found)..];
        }
        found
    }
}

/// Reads an attribute; returns its length with padding.
fn xattr(entry: &[u8], into: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
    let prefix: &[u8] = match entry[1] {
        1 => b"user.",
        2 => b"system.posix_acl_access",
        3 => b"system.posix_acl_default",
        4 => b"trusted.",
        6 => b"security.",
        other => panic!("namespace {other}"),
    };
    let name_end = 4 + usize::from(entry[0]);
    let end = name_end + size(number::<2>(entry, 2));
    let name = [prefix, &entry[4..name_end]].concat();
    assert!(into.insert(name, entry[name_end..end].to_vec()).is_none(), "an attribute twice");
    end.next_multiple_of(4)
}
