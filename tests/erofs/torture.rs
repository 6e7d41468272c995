// SPDX-License-Identifier: Apache-2.0
//! Layers with everything that a layer can have and that umoci unpacks.

use super::archive::{Member, archive};

fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

/// An access list as Linux has it in extended attributes: version 2, then tag, permissions and ID.
fn access_list() -> Vec<u8> {
    let entries = [(1u16, 6u16, u32::MAX), (2, 7, 1000), (4, 4, u32::MAX), (16, 7, u32::MAX), (32, 4, u32::MAX)];
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn kinds() -> Vec<Member> {
    let mut members = vec![
        Member { mode: 0o750, ..Member::directory("./") },
        Member { mode: 0o1777, ..Member::directory("tmp/") },
        Member { mode: 0o2755, owner: (5, 6), ..Member::directory("kinds") },
        Member { device: (5, 1), mode: 0o620, ..Member::new(b'3', "kinds/console") },
        Member { device: (259, 300_000), ..Member::new(b'4', "kinds/nvme") }.with_pax("mtime", "1.000000001"),
        Member { mode: 0o600, ..Member::new(b'6', "kinds/fifo") },
        Member::symlink("kinds/dangling", "../../nowhere"),
        Member::symlink("kinds/absolute", "/tmp"),
        Member::symlink("kinds/longest", "x").with_pax("linkpath", b"l/".repeat(2047)),
        Member::symlink("kinds/almost-a-block", "x").with_pax("linkpath", b"l/".repeat(2010)),
        Member { mode: 0o4755, ..Member::file("kinds/setuid", "x") },
        Member { owner: (65_535, 65_534), ..Member::file("kinds/owner-16", "x") },
        Member::file("kinds/owner-32", "x").with_pax("uid", "65536").with_pax("gid", "4294967294"),
        Member::file("kinds/nanoseconds", "x").with_pax("mtime", "1350244992.023960108"),
        Member::file("kinds/before-1970", "x").with_pax("mtime", "-86400.25"),
        Member { mtime: 0, ..Member::file("kinds/at-1970", "x") },
        Member { mtime: 4_000_000_000, ..Member::file("kinds/after-2038", "x") },
        Member::directory("links"),
        Member::file("links/one", noise(5000, 1)),
        Member::hard_link("links/two", "links/one"),
        Member::hard_link("links/three", "./links/two"),
        Member::symlink("links/soft", "one"),
        Member::hard_link("links/hard-to-soft", "links/soft"),
        Member::hard_link("links/fifo", "kinds/fifo"),
    ];
    members.push(Member::directory("xattrs").with_pax("SCHILY.xattr.user.on-a-directory", "yes"));
    members.push(Member::file("xattrs/capability", "x").with_pax("SCHILY.xattr.security.capability", CAPABILITY));
    members.push(Member::file("xattrs/again", "x").with_pax("SCHILY.xattr.security.capability", CAPABILITY));
    members.push(Member::file("xattrs/and-again", "x").with_pax("SCHILY.xattr.security.capability", CAPABILITY));
    members.push(Member::symlink("xattrs/link", "x").with_pax("SCHILY.xattr.trusted.on-a-link", "yes"));
    let list = access_list();
    members.push(
        Member { mode: 0o674, ..Member::file("xattrs/list", "x") }
            .with_pax("SCHILY.xattr.system.posix_acl_access", &list)
            .with_pax("SCHILY.xattr.user.empty", "")
            .with_pax("SCHILY.xattr.user.binary", b"\0=\n\xff")
            .with_pax("SCHILY.xattr.trusted.long", noise(2000, 2)),
    );
    members.push(Member::directory("xattrs/default").with_pax("SCHILY.xattr.system.posix_acl_default", &list));
    members
}

fn sizes() -> Vec<Member> {
    let mut members = vec![Member::directory("sizes")];
    let sizes = [0, 1, 31, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097, 8192, 12_287, 16_383, 16_384, 16_385];
    for (size, seed) in sizes.iter().zip(0..) {
        members.push(Member::file(format!("sizes/{size}"), noise(*size, seed)));
    }
    members.push(Member::file("sizes/large", noise(5_000_001, 3)));
    members.push(Member::file("sizes/zeroes", vec![0; 300_000]));
    members
}

fn names() -> Vec<Member> {
    let mut members = vec![Member::directory("names"), Member::directory("many")];
    for byte in (1..=255u8).filter(|byte| !matches!(byte, b'/' | b'.')) {
        members.push(Member::file("x", [byte]).with_pax("path", [b"names/", &[byte][..]].concat()));
    }
    members.push(Member::file("x", "255").with_pax("path", [&b"names/"[..], &[b'n'; 255]].concat()));
    members.push(Member::file("x", "utf-8").with_pax("path", "names/größe ✓"));
    // Deep, and longer than a header's 255 bytes.
    let mut deep = b"names/deep".to_vec();
    members.push(Member::directory(&deep));
    for _ in 0..15 {
        deep.extend([&b"/"[..], &[b'd'; 200]].concat());
        members.push(Member::directory("x").with_pax("path", &deep));
    }
    members.push(Member::file("x", "deep").with_pax("path", [&deep[..], b"/file"].concat()));
    members.extend((0..4000).map(|n| Member::file(format!("many/entry-{n}"), "")));
    members.extend((0..300).map(|n| Member::directory(format!("many/directory-{n}"))));
    members
}

/// Sparse files in the formats that umoci knows: PAX 0.1 and 1.0.
fn sparse() -> Vec<Member> {
    let old =
        Member::file("sizes/GNUSparseFile.1/sparse-0.1", noise(600, 4)).with_pax("GNU.sparse.name", "sizes/sparse-0.1");
    let old = old.with_pax("GNU.sparse.size", "200000").with_pax("GNU.sparse.numblocks", "1");
    let mut data = b"2\n4096\n512\n1000000\n0\n".to_vec();
    data.resize(512, 0);
    data.extend(noise(512, 5));
    let new = Member::file("sizes/GNUSparseFile.1/sparse-1.0", data).with_pax("GNU.sparse.major", "1");
    let new = new.with_pax("GNU.sparse.minor", "0").with_pax("GNU.sparse.name", "sizes/sparse-1.0");
    vec![old.with_pax("GNU.sparse.map", "81920,600"), new.with_pax("GNU.sparse.realsize", "1000000")]
}

/// What the second layer is laid over.
fn to_be_changed() -> Vec<Member> {
    let mut members = vec![Member::directory("usr"), Member::directory("usr/lib"), Member::symlink("lib", "usr/lib")];
    members.push(Member::symlink("loop-out", "../../../../usr"));
    for directory in ["gone", "opaque", "kept", "becomes-file", "becomes-link", "both", "both/sub"] {
        members.push(Member::directory(directory));
        members.push(Member::file(format!("{directory}/old"), noise(3000, 6)));
        members.push(Member::file(format!("{directory}/old-large"), noise(30_000, 7)));
    }
    members.push(Member::file("becomes-directory", "x"));
    members.push(Member::symlink("link-becomes-directory", "kept"));
    members.push(Member::file("replaced", noise(20_000, 8)));
    members.push(Member::file("linked", noise(40_000, 9)));
    members
}

fn second() -> Vec<Member> {
    vec![
        Member::file(".wh.gone", ""),
        Member::file("opaque/new", "1"),
        Member::file("opaque/.wh..wh..opq", ""),
        Member::file("opaque/newer", "2"),
        Member::file("kept/.wh.old", ""),
        Member::file("becomes-file", "a file"),
        Member::symlink("becomes-link", "kept"),
        Member { owner: (1, 2), mtime: 99, ..Member::directory("becomes-directory") },
        Member::file("becomes-directory/in", "x"),
        Member { mode: 0o500, ..Member::directory("link-becomes-directory") },
        Member::file("link-becomes-directory/in", "x"),
        Member { mode: 0o700, owner: (3, 4), mtime: 98, ..Member::directory("both") },
        Member::file("both/new", "x"),
        Member::file("both/sub/new", "x"),
        Member::file("replaced", noise(10_000, 10)),
        Member::hard_link("links/from-above", "linked"),
        Member::file("lib/through-a-link", "x"),
        Member::file("loop-out/through-another", "x"),
        Member::directory("xattrs"),
        Member::file("twice", "first"),
        Member::file("twice", "second"),
        Member::file("links/.wh.two", ""),
        Member::file(".wh.never-was", ""),
    ]
}

fn third() -> Vec<Member> {
    let mut members = vec![
        Member::directory("gone"),
        Member::file("gone/back", "x"),
        Member::file(".wh.both", ""),
        Member::file("opaque/.wh.new", ""),
        Member::file(".wh.linked", ""),
        Member { owner: (1000, 1000), ..Member::directory("sizes") },
    ];
    // As a recursive chown does.
    members.extend(sizes().into_iter().skip(1).map(|member| Member { owner: (1000, 1000), ..member }));
    members
}

/// The layers, the bottom one first.
pub fn layers() -> Vec<Vec<u8>> {
    let first = archive(&[kinds(), sizes(), sparse(), names(), to_be_changed()].concat());
    vec![first, archive(&second()), archive(&third())]
}
