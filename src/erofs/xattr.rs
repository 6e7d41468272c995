// SPDX-License-Identifier: Apache-2.0
//! Extended attributes, as they follow an inode or are shared by several.

use std::collections::HashMap;

use super::error::Problem;
use super::tree::Xattrs;

/// Prefixes of names, and their numbers on disk. The two for access lists are whole names.
const NAMESPACES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Overlayfs would take these as its own where the image is its lower layer: a redirect, an opaque directory.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// Bytes of the header before the attributes.
const HEADER: usize = 12;
/// Attributes up to this size are stored with the first file that has them.
const INLINE_MAX: usize = 256;
/// Bytes of attributes that one inode has with it: the root's must fit behind the superblock.
const INLINE_SUM_MAX: usize = 1536;
/// The shared ones of an inode are counted in a byte.
const SHARED_MAX: usize = 255;
/// Bytes of attributes that are remembered after the first time.
const REMEMBERED_MAX: usize = 4 << 20;
/// Bytes of shared attributes: far more than any real image has.
const AREA_MAX: usize = 16 << 20;

#[derive(Clone, Copy, Debug)]
enum Seen {
    Once,
    /// In the shared area, in units of 4 bytes.
    Shared(u32),
}

/// Encodes attributes. What comes a second time, or is long, is shared.
#[derive(Debug, Default)]
pub(super) struct XattrEncoder {
    seen: HashMap<Box<[u8]>, Seen>,
    remembered: usize,
    area: Vec<u8>,
    dropped: u64,
}

impl XattrEncoder {
    /// What follows an inode with these attributes: nothing if there are none.
    ///
    /// # Errors
    /// An attribute is too large, or there are too many.
    pub(super) fn encode(&mut self, xattrs: &Xattrs) -> Result<Vec<u8>, Problem> {
        let (mut shared, mut inline) = (Vec::new(), Vec::new());
        for (name, value) in xattrs {
            let wrong = |problem| Problem::Xattr { name: name.clone(), problem };
            let Some((index, rest)) = split(name) else {
                self.dropped += 1;
                continue;
            };
            let entry = encode_entry(index, rest, value).map_err(wrong)?;
            let fits = entry.len() <= INLINE_MAX && inline.len() + entry.len() <= INLINE_SUM_MAX;
            match self.seen.get(&entry[..]) {
                Some(Seen::Shared(id)) => shared.push(*id),
                None if fits => {
                    if self.remembered + entry.len() <= REMEMBERED_MAX {
                        self.remembered += entry.len();
                        self.seen.insert(entry.clone().into(), Seen::Once);
                    }
                    inline.extend(entry);
                }
                _ => {
                    let id = self.area.len() / 4;
                    let id = u32::try_from(id).ok().filter(|_| self.area.len() + entry.len() <= AREA_MAX);
                    let id = id.ok_or_else(|| wrong("the image has more than 16 MiB of attributes"))?;
                    self.area.extend(&entry);
                    self.seen.insert(entry.into(), Seen::Shared(id));
                    shared.push(id);
                }
            }
            if shared.len() > SHARED_MAX {
                return Err(wrong("the file has too many attributes"));
            }
        }
        if shared.is_empty() && inline.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = vec![0; HEADER];
        body[4] = u8::try_from(shared.len()).unwrap_or(u8::MAX);
        body.extend(shared.iter().flat_map(|id| id.to_le_bytes()));
        body.append(&mut inline);
        Ok(body)
    }

    /// The shared attributes, complete when all inodes are.
    pub(super) fn area(&self) -> &[u8] {
        &self.area
    }

    /// How many attributes were left out: those of overlayfs, and of namespaces that the format does not know.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// The namespace's number, and the rest of the name.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    if name.starts_with(OVERLAY) {
        return None;
    }
    let (prefix, index) = NAMESPACES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = name.get(prefix.len()..)?;
    // The name of an access list is all prefix, all others have something after it.
    (prefix.ends_with(b".") != rest.is_empty()).then_some((*index, rest))
}

fn encode_entry(index: u8, name: &[u8], value: &[u8]) -> Result<Vec<u8>, &'static str> {
    let name_length = u8::try_from(name.len()).map_err(|_| "its name is longer than 255 bytes")?;
    let value_length = u16::try_from(value.len()).map_err(|_| "its value is longer than 65535 bytes")?;
    let mut entry = vec![name_length, index];
    entry.extend(value_length.to_le_bytes());
    entry.extend(name);
    entry.extend(value);
    entry.resize(entry.len().next_multiple_of(4), 0);
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &[u8], value: &[u8]) -> Xattrs {
        Xattrs::from([(name.into(), value.into())])
    }

    #[test]
    fn the_second_time_is_shared() {
        let mut encoder = XattrEncoder::default();
        let label = one(b"security.selinux", b"label");
        let first = encoder.encode(&label).expect("small");
        assert_eq!(first, b"\0\0\0\0\0\0\0\0\0\0\0\0\x07\x06\x05\0selinuxlabel");
        assert!(encoder.area().is_empty());
        for _ in 0..2 {
            let again = encoder.encode(&label).expect("small");
            assert_eq!(again, b"\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0");
            assert_eq!(encoder.area(), b"\x07\x06\x05\0selinuxlabel");
        }
    }

    #[test]
    fn foreign_attributes_are_left_out_and_counted() {
        let mut encoder = XattrEncoder::default();
        for name in
            [&b"trusted.overlay.opaque"[..], b"system.nfs4_acl", b"user.", b"system.posix_acl_access.x", b"btrfs.x"]
        {
            assert_eq!(encoder.encode(&one(name, b"y")).expect("left out"), b"");
        }
        assert_eq!(encoder.dropped(), 5);
        assert!(!encoder.encode(&one(b"system.posix_acl_access", b"")).expect("known").is_empty());
        assert!(!encoder.encode(&one(b"trusted.overlayed", b"")).expect("known").is_empty());
    }

    #[test]
    fn limits_hold() {
        let mut encoder = XattrEncoder::default();
        assert!(encoder.encode(&one(b"user.x", &[0; 65535])).is_ok());
        assert!(encoder.encode(&one(b"user.x", &[0; 65536])).is_err());
        assert!(encoder.encode(&one(&[b"user.", &[b'n'; 256][..]].concat(), b"")).is_err());
        let many: Xattrs = (0..400u32).map(|n| (format!("user.{n}").as_bytes().into(), [0; 300][..].into())).collect();
        assert!(encoder.encode(&many).is_err());
        let some: Xattrs = (0..255u32).map(|n| (format!("user.{n}").as_bytes().into(), [1; 300][..].into())).collect();
        let body = encoder.encode(&some).expect("as many as there can be");
        assert!(body.len() <= HEADER + 4 * SHARED_MAX + INLINE_SUM_MAX);
        let mut large = 0u32..;
        let full = large
            .find(|n| encoder.encode(&one(b"user.large", &[n.to_le_bytes(), [0; 4]].concat().repeat(8000))).is_err());
        assert!(full.is_some_and(|count| count < 300), "the area has a limit");
    }
}
