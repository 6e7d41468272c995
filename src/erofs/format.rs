// SPDX-License-Identifier: Apache-2.0
//! The on-disk format, as Linux 5.4 and later read it (`fs/erofs/erofs_fs.h`, and "EROFS" in the kernel's documentation).

/// Bytes of a block, the only size that all kernels read.
pub const BLOCK: usize = 4096;
/// [`BLOCK`] for offsets in files.
pub const BLOCK_BYTES: u64 = 4096;
/// Inodes are numbered by their place, in units of this many bytes.
pub const SLOT: usize = 32;
/// Slots of a block.
pub const SLOTS: u64 = 128;
/// The superblock's place.
pub const SUPERBLOCK_AT: usize = 1024;
/// The root's inode follows the superblock: its number has only 16 bits.
pub const ROOT_AT: usize = SUPERBLOCK_AT + 128;
/// [`ROOT_AT`] as an inode's number.
pub const ROOT_NID: u16 = 36;
/// Bytes of an inode without times and 32-bit owners.
pub const COMPACT: usize = 32;
/// Bytes of an inode with everything.
pub const EXTENDED: usize = 64;
/// Bytes of a directory entry before its name.
pub const DIRENT: usize = 12;

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_SB_CHKSUM: u32 = 1;
/// Inodes hold mtime, not ctime.
const COMPAT_MTIME: u32 = 2;

/// A point in time; `nanoseconds` count forward from `seconds` also before 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Less than 10⁹.
    pub nanoseconds: u32,
}

/// Type of file, as directory entries have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FileType {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    Character = 3,
    /// Block device.
    Block = 4,
    /// Named pipe.
    Fifo = 5,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    /// The type's bits of `st_mode`.
    fn mode(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Character => 0o020_000,
            Self::Block => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Symlink => 0o120_000,
        }
    }
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In blocks of their own: what DAX maps.
    Plain = 0,
    /// Whole blocks apart, what remains right after the inode.
    Inline = 2,
}

/// What all files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions, with set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change.
    pub mtime: Time,
}

/// An inode as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Inode {
    /// Type of file.
    pub file_type: FileType,
    /// Permissions, owner, time.
    pub attributes: Attributes,
    /// Where the bytes are.
    pub layout: Layout,
    /// Bytes of extended attributes that follow, a multiple of 4.
    pub xattrs: usize,
    /// Names that lead here.
    pub links: u32,
    /// Bytes of the file.
    pub size: u64,
    /// The first block, or a device's number.
    pub address: u32,
}

impl Inode {
    /// Whether the smaller form will do: it has 16-bit owners and links, and the superblock's time.
    pub fn is_compact(&self, epoch: Time) -> bool {
        u16::try_from(self.attributes.uid).is_ok()
            && u16::try_from(self.attributes.gid).is_ok()
            && u16::try_from(self.links).is_ok()
            && u32::try_from(self.size).is_ok()
            && self.attributes.mtime == epoch
    }

    /// Bytes of the inode alone.
    pub fn length(&self, epoch: Time) -> usize {
        if self.is_compact(epoch) { COMPACT } else { EXTENDED }
    }

    /// Appends the inode. `serial` is `st_ino` on 32-bit machines.
    pub fn encode(&self, epoch: Time, serial: u32, into: &mut Vec<u8>) {
        let compact = self.is_compact(epoch);
        let format = (self.layout as u16) << 1 | u16::from(!compact);
        // One for the header of 12 bytes, then one for each 4 bytes. The caller keeps it below a block.
        let xattr_count = u16::try_from(self.xattrs.saturating_sub(8) / 4).unwrap_or(u16::MAX);
        let Attributes { mode, uid, gid, mtime } = self.attributes;
        into.extend(format.to_le_bytes());
        into.extend(xattr_count.to_le_bytes());
        into.extend((self.file_type.mode() | mode & 0o7777).to_le_bytes());
        if compact {
            let short = |value| u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
            into.extend(short(self.links));
            into.extend(u32::try_from(self.size).unwrap_or(u32::MAX).to_le_bytes());
            into.extend([0; 4]);
            into.extend(self.address.to_le_bytes());
            into.extend(serial.to_le_bytes());
            into.extend(short(uid));
            into.extend(short(gid));
            into.extend([0; 4]);
        } else {
            into.extend([0; 2]);
            into.extend(self.size.to_le_bytes());
            into.extend(self.address.to_le_bytes());
            into.extend(serial.to_le_bytes());
            into.extend(uid.to_le_bytes());
            into.extend(gid.to_le_bytes());
            into.extend(mtime.seconds.to_le_bytes());
            into.extend(mtime.nanoseconds.to_le_bytes());
            into.extend(self.links.to_le_bytes());
            into.extend([0; 16]);
        }
    }

    /// The number of links inside an encoded inode: its offset, and its bytes.
    pub fn encode_links(compact: bool, links: u32) -> (u64, Vec<u8>) {
        match u16::try_from(links) {
            Ok(links) if compact => (6, links.to_le_bytes().into()),
            _ => (44, links.to_le_bytes().into()),
        }
    }
}

/// A device's number as Linux encodes it in 32 bits (`new_encode_dev`), if it can have that number.
pub fn encode_device(major: u32, minor: u32) -> Option<u32> {
    (major < 1 << 12 && minor < 1 << 20).then_some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// What the superblock says.
#[derive(Debug)]
pub struct Superblock {
    /// Number of inodes.
    pub inodes: u64,
    /// The time of compact inodes.
    pub epoch: Time,
    /// Blocks of the image.
    pub blocks: u32,
    /// First block of the shared extended attributes.
    pub xattr_block: u32,
    /// The volume's UUID.
    pub uuid: [u8; 16],
}

impl Superblock {
    /// Writes the superblock into the image's first block, with the checksum over what follows it there too.
    pub fn encode(&self, block: &mut [u8; BLOCK]) {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
        bytes.extend([12, 0]);
        bytes.extend(ROOT_NID.to_le_bytes());
        bytes.extend(self.inodes.to_le_bytes());
        bytes.extend(self.epoch.seconds.to_le_bytes());
        bytes.extend(self.epoch.nanoseconds.to_le_bytes());
        bytes.extend(self.blocks.to_le_bytes());
        // Inodes are counted from the image's start.
        bytes.extend([0; 4]);
        bytes.extend(self.xattr_block.to_le_bytes());
        bytes.extend(self.uuid);
        bytes.resize(128, 0);
        let (_, from_superblock) = block.split_at_mut(SUPERBLOCK_AT);
        from_superblock[..128].copy_from_slice(&bytes);
        let checksum = crc32c(from_superblock);
        from_superblock[4..8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32C (Castagnoli) as the kernel computes it: no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_castagnoli() {
        // RFC 3720 B.4, whose values are inverted.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn device_numbers_are_linux_own() {
        assert_eq!(encode_device(5, 1), Some(0x501));
        assert_eq!(encode_device(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(encode_device(0x1000, 0), None);
        assert_eq!(encode_device(0, 0x10_0000), None);
    }

    #[test]
    fn inodes_grow_only_when_they_must() {
        let attributes = Attributes { mode: 0o644, uid: 65535, gid: 0, mtime: Time::default() };
        let inode = Inode {
            file_type: FileType::Regular,
            attributes,
            layout: Layout::Plain,
            xattrs: 0,
            links: 1,
            size: u64::from(u32::MAX),
            address: 0,
        };
        assert_eq!(inode.length(Time::default()), COMPACT);
        let with = |change: fn(&mut Inode)| {
            let mut inode = inode;
            change(&mut inode);
            let mut bytes = Vec::new();
            inode.encode(Time::default(), 1, &mut bytes);
            assert_eq!(bytes.len(), inode.length(Time::default()));
            bytes.len()
        };
        assert_eq!(with(|_| ()), COMPACT);
        assert_eq!(with(|inode| inode.attributes.uid = 65536), EXTENDED);
        assert_eq!(with(|inode| inode.attributes.gid = 65536), EXTENDED);
        assert_eq!(with(|inode| inode.links = 65536), EXTENDED);
        assert_eq!(with(|inode| inode.size = 1 << 32), EXTENDED);
        assert_eq!(with(|inode| inode.attributes.mtime.nanoseconds = 1), EXTENDED);
    }
}
