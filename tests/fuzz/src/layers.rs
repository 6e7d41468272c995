// SPDX-License-Identifier: Apache-2.0
//! Image layers: whatever they hold, there is an error or a sound image.
#![no_main]

use std::io::{Read, Seek};

use arbitrary::Arbitrary;
use coracle::erofs::{Limits, write_image};
use libfuzzer_sys::fuzz_target;

#[path = "../../../src/erofs/tar/testing.rs"]
#[allow(dead_code)]
mod archive;
#[path = "../../../src/erofs/testing.rs"]
#[allow(dead_code)]
mod image;

use archive::Member;

#[derive(Arbitrary, Debug)]
struct Entry {
    flag: u8,
    name: Vec<u8>,
    link: Vec<u8>,
    mode: u16,
    owner: (u16, u16),
    device: (u16, u16),
    length: u16,
    size: Option<u32>,
    pax: Vec<(Key, Vec<u8>)>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Key {
    Path,
    Link,
    Size,
    Owner,
    Time,
    UserXattr,
    Capability,
    Overlay,
    SparseMap,
    SparseSize,
    SparseMajor,
    SparseName,
}

impl Key {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Path => b"path",
            Self::Link => b"linkpath",
            Self::Size => b"size",
            Self::Owner => b"uid",
            Self::Time => b"mtime",
            Self::UserXattr => b"SCHILY.xattr.user.x",
            Self::Capability => b"SCHILY.xattr.security.capability",
            Self::Overlay => b"SCHILY.xattr.trusted.overlay.redirect",
            Self::SparseMap => b"GNU.sparse.map",
            Self::SparseSize => b"GNU.sparse.size",
            Self::SparseMajor => b"GNU.sparse.major",
            Self::SparseName => b"GNU.sparse.name",
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Layer {
    /// Headers that are right, mostly, so that the fuzzer gets behind the checksum.
    Entries(Vec<Entry>),
    Bytes(Vec<u8>),
}

impl Entry {
    fn member(self) -> Member {
        let letters = |name: Vec<u8>| -> Vec<u8> {
            // Few different bytes, so that names meet each other.
            name.iter().take(40).map(|byte| b"abc/./.wh..opq\xff"[usize::from(byte % 15)]).collect()
        };
        let flags = b"0001235567gxLKS";
        Member {
            flag: if self.flag < 240 { flags[usize::from(self.flag) % flags.len()] } else { self.flag },
            name: letters(self.name),
            mode: self.mode.into(),
            owner: (self.owner.0.into(), self.owner.1.into()),
            mtime: self.mode.into(),
            link: letters(self.link),
            device: (self.device.0.into(), self.device.1.into()),
            data: (0..self.length).map(|at| at.to_le_bytes()[0]).collect(),
            size: self.size.map(u64::from),
            pax: self.pax.into_iter().take(8).map(|(key, value)| (key.name().into(), value)).collect(),
        }
    }
}

fuzz_target!(|layers: Vec<Layer>| {
    let layers = layers.into_iter().map(|layer| match layer {
        Layer::Bytes(bytes) => bytes,
        Layer::Entries(entries) => archive::archive(&entries.into_iter().map(Entry::member).collect::<Vec<_>>()),
    });
    let layers: Vec<Vec<u8>> = layers.collect();
    let mut output = tempfile::tempfile().expect("temporary file");
    let limits = Limits { names: 1000, text_bytes: 1 << 20, image_bytes: 16 << 20, layer_bytes: 16 << 20 };
    let Ok(summary) = write_image(layers.iter().map(|layer| &layer[..]), &mut output, &limits) else { return };
    let mut bytes = Vec::new();
    output.rewind().expect("rewind");
    output.read_to_end(&mut bytes).expect("read back");
    assert_eq!(summary.bytes, bytes.len() as u64);
    image::read_image(&bytes);
});
