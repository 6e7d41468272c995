// SPDX-License-Identifier: Apache-2.0
//! What becomes of names when layers are laid over each other.

use super::*;

#[test]
fn nothing_at_all_is_an_empty_directory() {
    let files = build(&[]).expect("no layers");
    assert_eq!(files.len(), 1);
    assert_eq!(files[&b""[..]].mode, 0o040_755);
    assert_eq!(names(&[&[]]), [""; 0]);
}

#[test]
fn missing_parents_are_made() {
    let files =
        build(&[&[Member::file("/a/./b//c", "x"), Member { mode: 0o700, ..Member::directory("./") }]]).expect("valid");
    assert_eq!(files[&b"a/b/c"[..]].data, b"x");
    assert_eq!(files[&b"a/b"[..]].mode, 0o040_755);
    assert_eq!(files[&b""[..]].mode, 0o040_700, "an entry for the root itself");
}

#[test]
fn the_last_one_wins_in_one_layer_and_over_layers() {
    let files = build(&[
        &[Member::file("f", "1"), Member::file("f", "2"), Member::file("g", "1")],
        &[Member { mode: 0o600, ..Member::file("g", "22") }],
    ]);
    let files = files.expect("valid");
    assert_eq!((&files[&b"f"[..]].data[..], &files[&b"g"[..]].data[..]), (&b"2"[..], &b"22"[..]));
    assert_eq!(files[&b"g"[..]].mode, 0o100_600);
}

#[test]
fn directories_are_merged_and_other_types_replaced() {
    let below = [Member::file("d/old", ""), Member::file("x/under", ""), Member::file("y", "")];
    let above = [
        Member { mode: 0o711, mtime: 7, ..Member::directory("d") },
        Member::file("d/new", ""),
        Member::file("x", "now a file"),
        Member::directory("y"),
        Member::file("y/in", ""),
    ];
    let files = build(&[&below, &above]).expect("valid");
    let names: Vec<_> = files.keys().map(|name| String::from_utf8_lossy(name)).collect();
    assert_eq!(names, ["", "d", "d/new", "d/old", "x", "y", "y/in"]);
    assert_eq!((files[&b"d"[..]].mode, files[&b"d"[..]].mtime), (0o040_711, (7, 0)));
}

#[test]
fn whiteouts_take_away_what_is_below_and_no_more() {
    let below =
        [Member::file("a/one", ""), Member::file("a/two", ""), Member::file("b/c/three", ""), Member::file("e", "")];
    assert_eq!(names(&[&below, &[Member::file("a/.wh.one", ""), Member::file(".wh.b", "")]]), ["a", "a/two", "e"]);
    // Whether it comes before or after what its own layer has.
    let after =
        [Member::file("b/new", ""), Member::file(".wh.b", ""), Member::file("e", "2"), Member::file(".wh.e", "")];
    assert_eq!(names(&[&below, &after]), ["a", "a/one", "a/two", "b", "b/new", "e"]);
    let before = [Member::file(".wh.b", ""), Member::file("b/new", "")];
    assert_eq!(names(&[&below, &before]), ["a", "a/one", "a/two", "b", "b/new", "e"]);
    // Nothing to take away, neither in the layer itself nor where nothing is.
    let nothing =
        [Member::file("n", ""), Member::file(".wh.n", ""), Member::file(".wh.no", ""), Member::file("no/.wh.n", "")];
    assert_eq!(names(&[&nothing]), ["n"]);
}

#[test]
fn opaque_directories_hide_all_below() {
    let below = [Member::file("d/one", ""), Member::file("d/e/two", ""), Member::file("f", "")];
    for above in [
        [Member::file("d/.wh..wh..opq", ""), Member::file("d/e/new", "")],
        [Member::file("d/e/new", ""), Member::file("d/.wh..wh..opq", "")],
    ] {
        assert_eq!(names(&[&below, &above]), ["d", "d/e", "d/e/new", "f"]);
    }
    assert_eq!(names(&[&below, &[Member::file(".wh..wh..opq", "")]]), [""; 0]);
    let twice = [Member::file("d/.wh..wh..opq", ""), Member::file("d/x", ""), Member::file("d/.wh..wh..opq", "")];
    assert_eq!(names(&[&below, &twice, &twice]), ["d", "d/x", "f"]);
}

#[test]
fn book_keeping_of_aufs_is_passed_over() {
    let members =
        [Member::directory(".wh..wh.plnk"), Member::file(".wh..wh.plnk/1.2", ""), Member::file(".wh..wh.aufs", "")];
    assert_eq!(names(&[&members]), [""; 0]);
}

#[test]
fn paths_through_symbolic_links_stay_inside() {
    let below =
        [Member::directory("usr/lib"), Member::symlink("lib", "usr/lib"), Member::symlink("up", "../../../usr")];
    let above = [Member::file("lib/x", ""), Member::file("up/y", ""), Member::file("lib/.wh.z", "")];
    let expected = ["lib", "up", "usr", "usr/lib", "usr/lib/x", "usr/y"];
    assert_eq!(names(&[&below, &above]), expected);
    // A directory in the place of the link replaces it; a dangling link makes what it names.
    assert_eq!(names(&[&below[1..2], &[Member::directory("lib"), Member::file("lib/x", "")]]), ["lib", "lib/x"]);
    let dangling = [Member::symlink("l", "/new/place"), Member::file("l/x", "")];
    assert_eq!(names(&[&dangling]), ["l", "new", "new/place", "new/place/x"]);
}

#[test]
fn hard_links_are_one_file() {
    let below = [Member::file("a", "data"), Member::hard_link("d/b", "a"), Member::hard_link("c", "/d/b")];
    let files = build(&[&below]).expect("valid");
    let [a, b, c] = ["a", "d/b", "c"].map(|name| &files[name.as_bytes()]);
    assert_eq!((a.links, a.nid, b.nid), (3, c.nid, c.nid));
    // Across layers; and a name that is replaced takes one link with it.
    let above = [Member::hard_link("e", "a"), Member::file("c", "other"), Member::file("d/.wh.b", "")];
    let files = build(&[&below, &above]).expect("valid");
    assert_eq!((files[&b"a"[..]].links, files[&b"c"[..]].links), (2, 1));
    assert_eq!(files[&b"e"[..]].data, b"data");
    // All names but one gone, in an inode that needs its larger form.
    let other = [Member { mtime: 5, owner: (1 << 20, 0), ..Member::file("p", "x") }, Member::hard_link("q", "p")];
    let files = build(&[&below, &other, &[Member::file(".wh.p", "")]]).expect("valid");
    assert_eq!((files[&b"q"[..]].links, files[&b"q"[..]].owner), (1, (1 << 20, 0)));
    let to_link = [Member::symlink("s", "nowhere"), Member::hard_link("t", "s")];
    assert_eq!(build(&[&to_link]).expect("valid")[&b"t"[..]].links, 2);
}

#[test]
fn names_are_bytes_and_sorted_as_such() {
    let mut odd: Vec<Vec<u8>> =
        (1..=255u8).filter(|byte| *byte != b'/' && *byte != b'.').map(|byte| vec![byte]).collect();
    odd.extend([b"...".to_vec(), vec![b'n'; 255], b"-".repeat(40), vec![0xff, 0xfe, b'\n']]);
    let members: Vec<_> = odd.iter().map(|name| Member::file("x", name).with_pax("path", name)).collect();
    let files = build(&[&members]).expect("valid");
    assert_eq!(files.len(), odd.len() + 1);
    for name in &odd {
        assert_eq!(&files[name].data, name);
    }
}
