// SPDX-License-Identifier: Apache-2.0
//! How files are stored: layout, attributes, room.

use super::*;

const BLOCK: usize = 4096;

fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn files_of_all_sizes_come_back() {
    let sizes = [
        0,
        1,
        4000,
        4032,
        4033,
        4064,
        4065,
        4095,
        4096,
        4097,
        8191,
        8192,
        16383,
        16384,
        16385,
        32_700,
        32_768,
        32_769,
        100_000,
        3 << 20,
    ];
    let members: Vec<_> =
        sizes.iter().zip(0u8..).map(|(size, seed)| Member::file(format!("f{size}"), noise(*size, seed))).collect();
    let files = build(&[&members]).expect("valid");
    for (size, seed) in sizes.iter().zip(0u8..) {
        let file = &files[format!("f{size}").as_bytes()];
        assert!(file.data == noise(*size, seed), "{size}");
        // DAX can map it unless its last block would waste more than an eighth of its size.
        let wasted = size.next_multiple_of(BLOCK) - size;
        assert!(file.plain || wasted > size / 8, "{size}");
        assert!(!file.plain || wasted <= size / 8 || size % BLOCK > BLOCK - 96, "{size}");
    }
}

#[test]
fn attributes_survive() {
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let members = [
        Member { mode: 0o4755, owner: (70_000, 0), ..Member::file("ping", "x") }
            .with_pax("gid", "2147483648")
            .with_pax("SCHILY.xattr.security.capability", capability)
            .with_pax("SCHILY.xattr.user.long", [7; 3000])
            .with_pax("mtime", "-1.5"),
        Member::directory("d")
            .with_pax("SCHILY.xattr.user.a", "1")
            .with_pax("SCHILY.xattr.system.posix_acl_default", [2; 28]),
        Member::directory(".").with_pax("SCHILY.xattr.user.root", "r"),
        Member { device: (0xfff, 0xf_ffff), mode: 0o600, ..Member::new(b'4', "disk") }.with_pax("mtime", "9.123456789"),
        Member { device: (1, 3), ..Member::new(b'3', "null") },
        Member::new(b'6', "pipe"),
        Member::symlink("s", [b't'; 100]).with_pax("SCHILY.xattr.trusted.t", "t"),
        Member::symlink("cut", "cut").with_pax("linkpath", [b'l'; 4095]),
    ];
    let files = build(&[&members]).expect("valid");
    let ping = &files[&b"ping"[..]];
    assert_eq!((ping.mode, ping.owner, ping.mtime), (0o104_755, (70_000, 1 << 31), (-2, 500_000_000)));
    assert_eq!(ping.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(ping.xattrs[&b"user.long"[..]], [7; 3000]);
    assert_eq!(files[&b"d"[..]].xattrs.len(), 2);
    assert_eq!(files[&b""[..]].xattrs[&b"user.root"[..]], b"r");
    let disk = &files[&b"disk"[..]];
    assert_eq!((disk.mode, disk.device, disk.mtime), (0o060_600, u32::MAX, (9, 123_456_789)));
    assert_eq!(files[&b"null"[..]].device, 0x103);
    assert_eq!(files[&b"pipe"[..]].mode, 0o010_644);
    assert_eq!((files[&b"s"[..]].mode, &files[&b"s"[..]].data[..]), (0o120_777, &[b't'; 100][..]));
    assert_eq!(files[&b"s"[..]].xattrs[&b"trusted.t"[..]], b"t");
    assert_eq!(files[&b"cut"[..]].data, [b'l'; 4095]);
}

#[test]
fn shared_attributes_are_found_from_each_file() {
    let member =
        |n: u32| Member::file(format!("f{n}"), "").with_pax("SCHILY.xattr.security.selinux", format!("label{}", n % 7));
    let members: Vec<_> = (0..500).map(member).collect();
    let files = build(&[&members]).expect("valid");
    for n in 0..500 {
        let label = &files[format!("f{n}").as_bytes()].xattrs[&b"security.selinux"[..]];
        assert_eq!(label, format!("label{}", n % 7).as_bytes());
    }
}

#[test]
fn the_root_keeps_its_place_with_many_names_and_attributes() {
    let mut root = Member::directory(".");
    for n in 0..200 {
        root = root.with_pax(&format!("SCHILY.xattr.user.{n:0>90}"), [b'v'; 50]);
    }
    let mut members = vec![root];
    members.extend((0..3000).map(|n| Member::file(format!("a-name-of-some-length-{n}"), "")));
    let files = build(&[&members]).expect("valid");
    assert_eq!((files.len(), files[&b""[..]].xattrs.len()), (3001, 200));
}

#[test]
fn sparse_files_are_whole() {
    let sparse = |name: &str, size: usize, at: usize| {
        Member::file(name, "abc")
            .with_pax("GNU.sparse.size", size.to_string())
            .with_pax("GNU.sparse.map", format!("{at},3"))
    };
    let dirt = [Member::file("dirt", [0xff; 300_000])];
    let members = [sparse("small", 9000, 5000), sparse("large", 200_000, 123_456), Member::file(".wh.dirt", "")];
    let last = [sparse("reused", 200_000, 123_456)];
    let files = build(&[&dirt, &members, &last]).expect("valid");
    for (name, size, at) in [("small", 9000, 5000), ("large", 200_000, 123_456), ("reused", 200_000, 123_456)] {
        let mut expected = vec![0; size];
        expected[at..at + 3].copy_from_slice(b"abc");
        assert!(files[name.as_bytes()].data == expected, "{name}");
    }
}

#[test]
fn a_layer_that_changes_owners_takes_no_room() {
    let member = |n: usize, uid| Member { owner: (uid, 0), ..Member::file(format!("f{n}"), noise(n * 700, 1)) };
    let once: Vec<_> = (0..100).map(|n| member(n, 0)).collect();
    let again: Vec<_> = (0..100).map(|n| member(n, 1000)).collect();
    let size = |layers: &[&[Member]]| {
        let layers: Vec<_> = layers.iter().map(|members| archive(members)).collect();
        let (summary, bytes) = image_of(&layers, &Limits::default()).expect("valid");
        assert_eq!(read_image(&bytes).len(), 101);
        (summary.bytes, summary.unused_bytes)
    };
    let (one, _) = size(&[&once]);
    let (two, unused) = size(&[&once, &again]);
    assert!(two - unused <= one + one / 50, "{two} bytes, {unused} unused, against {one}");
    assert!(two <= one + one / 10, "{two} bytes against {one}");
}

#[test]
fn the_same_layers_give_the_same_bytes() {
    let members: Vec<_> =
        (0..50u8).map(|n| Member::file(format!("d{}/f{n}", n % 3), noise(usize::from(n) * 999, n))).collect();
    let removal = [Member::file(".wh.d1", ""), Member::file("d2/.wh..wh..opq", "")];
    let layers = [archive(&members), archive(&removal)];
    let (first, bytes) = image_of(&layers, &Limits::default()).expect("valid");
    let (second, again) = image_of(&layers, &Limits::default()).expect("valid");
    assert!(bytes == again && first == second);
    // One bit of one file is another image.
    let mut other = members.clone();
    other[49].data[30_000] ^= 1;
    let (other, _) = image_of(&[archive(&other), archive(&removal)], &Limits::default()).expect("valid");
    assert_ne!(first.uuid, other.uuid);
}

#[test]
fn zeroes_take_no_disk() {
    let layer =
        archive(&[Member::file("a", [1; 5000]), Member::file("zeroes", vec![0; 20 << 20]), Member::file("z", "z")]);
    let mut output = tempfile::NamedTempFile::new().expect("temporary file");
    write_image([&layer[..]], output.as_file_mut(), &Limits::default()).expect("valid");
    let metadata = output.as_file().metadata().expect("a file");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&metadata);
    assert!(metadata.len() > 20 << 20 && blocks * 512 < 4 << 20, "{} bytes on {blocks} sectors", metadata.len());
    let image = std::fs::read(output.path()).expect("an image");
    assert!(read_image(&image)[&b"zeroes"[..]].data.iter().all(|byte| *byte == 0));
}

#[test]
fn what_was_removed_is_not_in_the_image() {
    let secret = b"an old secret".repeat(4 * BLOCK / 13 + 1);
    let mut members =
        vec![Member::file("a", [1; 5000]), Member::file("secret", &secret), Member::file("z", [2; 50_000])];
    // Small ones share blocks with others, some of which are written before the removal and some after it.
    for n in 0..300 {
        members.push(Member::file(format!("small-{n}"), "an old secret".repeat(30)));
        members.push(Member::file(format!("other-{n}"), "no secret".repeat(30)));
    }
    let mut removals = vec![Member::file(".wh.secret", "")];
    removals.extend((0..300).map(|n| Member::file(format!(".wh.small-{n}"), "")));
    removals.push(Member::file("other-7", "new"));
    let layers = [archive(&members), archive(&removals)];
    let (summary, bytes) = image_of(&layers, &Limits::default()).expect("valid");
    assert!(summary.unused_bytes > 0);
    assert_eq!(read_image(&bytes).len(), 1 + 2 + 300);
    assert!(!bytes.windows(13).any(|window| window == b"an old secret"));
}
