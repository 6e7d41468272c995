// SPDX-License-Identifier: Apache-2.0
//! Archives of all dialects, and damaged ones.

use super::testing::{Member, append, archive, header, seal};
use super::*;

/// All entries with their data as stored.
fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ReadError> {
    let mut tar = TarReader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = tar.next_entry()? {
        let mut data = vec![0; usize::try_from(tar.remaining).expect("small")];
        tar.read_data(&mut data)?;
        entries.push((entry, data));
    }
    assert_eq!(tar.position(), bytes.len() as u64, "everything was read");
    Ok(entries)
}

fn problem(bytes: &[u8]) -> TarProblem {
    match read(bytes) {
        Err(ReadError::Tar(problem)) => problem,
        other => panic!("no tar problem: {other:?}"),
    }
}

#[test]
fn a_plain_archive() {
    let members = [
        Member::directory("d/"),
        Member::file("d/f", "hello"),
        Member::symlink("l", "d/f"),
        Member::hard_link("h", "d/f"),
        Member { device: (5, 1), ..Member::new(b'3', "tty") },
        Member { mode: 0o6755, owner: (1000, 2000), ..Member::new(b'6', "pipe") },
    ];
    let entries = read(&archive(&members)).expect("valid");
    let kinds: Vec<Kind> = entries.iter().map(|(entry, _)| entry.kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::File(FileType::Directory),
            Kind::File(FileType::Regular),
            Kind::File(FileType::Symlink),
            Kind::HardLink,
            Kind::File(FileType::Character),
            Kind::File(FileType::Fifo),
        ]
    );
    assert_eq!(entries[1].1, b"hello");
    assert_eq!(entries[2].0.link, b"d/f");
    assert_eq!(entries[4].0.device, (5, 1));
    assert_eq!((entries[5].0.mode, entries[5].0.uid, entries[5].0.gid), (0o6755, 1000, 2000));
    assert_eq!(entries[5].0.mtime, Time { seconds: 1_700_000_000, nanoseconds: 0 });
}

#[test]
fn long_names_in_all_dialects() {
    let long = vec![b'n'; 3000];
    let pax = Member::file("short", "").with_pax("path", &long);
    let gnu_name = Member { data: [&long[..], b"\0"].concat(), ..Member::new(b'L', "././@LongLink") };
    let gnu_link = Member { data: [&long[..], b"\0"].concat(), ..Member::new(b'K', "././@LongLink") };
    let mut bytes = archive(&[pax, gnu_name, gnu_link, Member::symlink("cut", "cut")]);
    bytes.truncate(bytes.len() - 1024);
    let mut prefixed = header(&Member::file("name", ""));
    prefixed[345..351].copy_from_slice(b"prefix");
    seal(&mut prefixed);
    bytes.extend(prefixed);
    let entries = read(&bytes).expect("valid, and without an end");
    let names: Vec<&[u8]> = entries.iter().map(|(entry, _)| &entry.path[..]).collect();
    assert_eq!(names, [&long[..], &long, b"prefix/name"]);
    assert_eq!(entries[1].0.link, long);
}

#[test]
fn extended_headers_win_over_numbers_in_the_header() {
    let member = Member { size: Some(0), ..Member::file("f", "12345") };
    let member = member.with_pax("size", "5").with_pax("uid", "4000000000").with_pax("gid", "70000");
    let entries = read(&archive(&[member.with_pax("mtime", "1.000000001"), Member::file("g", "x")])).expect("valid");
    let (entry, data) = &entries[0];
    assert_eq!((entry.uid, entry.gid, entry.size, &data[..]), (4_000_000_000, 70_000, 5, &b"12345"[..]));
    assert_eq!(entry.mtime, Time { seconds: 1, nanoseconds: 1 });
    assert_eq!(entries[1].0.uid, 0, "an extended header is for one entry");
}

#[test]
fn sizes_of_what_has_no_data_mean_nothing() {
    let link = Member { size: Some(5), ..Member::hard_link("h", "f") };
    let directory = Member { size: Some(4096), ..Member::directory("d") };
    assert_eq!(read(&archive(&[link, directory, Member::file("f", "x")])).expect("valid").len(), 3);
}

#[test]
fn sparse_files_in_all_formats() {
    let map = [(512u64, 3u64), (4096, 2)];
    // 0.0 has records by the piece, 0.1 one list, 1.0 a list before the data.
    let mut first =
        Member::file("a", "abcde").with_pax("GNU.sparse.size", "5000").with_pax("GNU.sparse.numblocks", "2");
    for (offset, length) in map {
        first =
            first.with_pax("GNU.sparse.offset", offset.to_string()).with_pax("GNU.sparse.numbytes", length.to_string());
    }
    let second = Member::file("x/GNUSparseFile.1/b", "abcde").with_pax("GNU.sparse.name", "b");
    let second = second.with_pax("GNU.sparse.size", "5000").with_pax("GNU.sparse.map", "512,3,4096,2");
    let mut data = b"2\n512\n3\n4096\n2\n".to_vec();
    data.resize(512, 0);
    data.extend(b"abcde");
    let third = Member::file("x/GNUSparseFile.1/c", data).with_pax("GNU.sparse.major", "1");
    let third = third.with_pax("GNU.sparse.minor", "0").with_pax("GNU.sparse.name", "c");
    let third = third.with_pax("GNU.sparse.realsize", "5000");
    let mut bytes = archive(&[first, second, third]);
    bytes.truncate(bytes.len() - 1024);
    // The old one has the map in the header, and one more record for the second piece.
    let mut old = header(&Member { size: Some(5), ..Member::new(b'S', "d") });
    old[257..265].copy_from_slice(b"ustar  \0");
    old[345..].fill(0);
    let pair = |(offset, length): (u64, u64)| format!("{offset:011o}\0{length:011o}\0").into_bytes();
    old[386..410].copy_from_slice(&pair(map[0]));
    old[482] = 1;
    old[483..495].copy_from_slice(format!("{:011o}\0", 5000).as_bytes());
    seal(&mut old);
    bytes.extend(old);
    let mut more = [0; 512];
    more[..24].copy_from_slice(&pair(map[1]));
    bytes.extend(more);
    bytes.extend(b"abcde");
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    append(&mut bytes, &Member::file("after", ""));

    let entries = read(&bytes).expect("valid");
    let names: Vec<&[u8]> = entries.iter().map(|(entry, _)| &entry.path[..]).collect();
    assert_eq!(names, [&b"a"[..], b"b", b"c", b"d", b"after"]);
    for (entry, data) in &entries[..4] {
        assert_eq!((entry.size, &data[..]), (5000, &b"abcde"[..]));
        let pieces = map.map(|(offset, length)| Piece { offset, length });
        assert_eq!(entry.pieces.as_deref(), Some(&pieces[..]), "{}", entry.path.escape_ascii());
    }
}

#[test]
fn damage_is_named() {
    let whole = archive(&[Member::file("f", [1; 600])]);
    assert!(matches!(problem(&whole[..100]), TarProblem::Truncated("a header")));
    assert!(matches!(problem(&whole[..700]), TarProblem::Truncated("an entry's data")));
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(problem(&flipped), TarProblem::Header { offset: 0, .. }));
    let only_extension = archive(&[Member { data: b"9 path=a\n".to_vec(), ..Member::new(b'x', "pax") }]);
    assert!(matches!(problem(&only_extension), TarProblem::Truncated("an entry's headers")));
    let claims = archive(&[Member { size: Some(4 << 30), ..Member::new(b'0', "f") }]);
    assert!(matches!(problem(&claims), TarProblem::Truncated("an entry's data")));
    for flag in [b'x', b'L', b'K'] {
        let huge = archive(&[Member { size: Some(4 << 30), ..Member::new(flag, "f") }]);
        assert!(matches!(problem(&huge), TarProblem::ExtensionSize { size: 0x1_0000_0000, .. }));
    }
    assert!(matches!(problem(&archive(&[Member::new(b'M', "f")])), TarProblem::Type(b'M')));
    assert!(matches!(problem(&[&[0; 512][..], &whole].concat()), TarProblem::Header { offset: 0, .. }));
    let nobody = Member::file("f", "").with_pax("uid", "4294967295");
    assert!(matches!(problem(&archive(&[nobody])), TarProblem::Number("owner")));
    assert!(matches!(problem(b"\x1f\x8b\x08not a tar"), TarProblem::Truncated("a header")));
}

#[test]
fn comments_for_the_whole_archive_are_passed_over() {
    let comment = Member { data: b"20 comment=01234567\n".to_vec(), ..Member::new(b'g', "pax_global_header") };
    assert_eq!(read(&archive(&[comment, Member::file("f", "")])).expect("valid").len(), 1);
}

#[test]
fn the_streams_own_errors_come_through() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "digest mismatch"))
        }
    }
    let bytes = archive(&[Member::file("f", [1; 600])]);
    let mut tar = TarReader::new(bytes[..600].chain(Broken));
    tar.next_entry().expect("a header").expect("an entry");
    match tar.next_entry() {
        Err(ReadError::Stream(error)) => assert_eq!(error.to_string(), "digest mismatch"),
        other => panic!("{other:?}"),
    }
}
