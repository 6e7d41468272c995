// SPDX-License-Identifier: Apache-2.0
//! Layers that are refused, with the reason and the place; and those that try to take more than they may.

use std::io::{self, Read};
use std::time::Instant;

use super::*;

/// What is said of the last of these layers.
fn refusal(layers: &[&[Member]]) -> String {
    build(layers).expect_err("refused").to_string()
}

#[test]
fn names_that_lead_out_are_refused() {
    assert_eq!(refusal(&[&[Member::file("../x", "")]]), "layer 0: ../x: the name leads out of the image");
    assert_eq!(
        refusal(&[&[], &[Member::file("/a/../../x", "")]]),
        "layer 1: /a/../../x: the name leads out of the image"
    );
    assert_eq!(
        refusal(&[&[Member::hard_link("x", "../../etc/passwd")]]),
        "layer 0: x: the target of the hard link leads out of the image"
    );
    // What stays inside is only another spelling.
    assert_eq!(names(&[&[Member::file("/a/../b", "")]]), ["b"]);
}

#[test]
fn what_cannot_be_is_refused() {
    assert_eq!(
        refusal(&[&[Member::file("/", "")]]),
        "layer 0: /: the image's root would be something else than a directory"
    );
    assert_eq!(refusal(&[&[Member::file("a", ""), Member::file("a/b", "")]]), "layer 0: a/b: a is not a directory");
    assert_eq!(refusal(&[&[Member::hard_link("x", "y")]]), "layer 0: x: a hard link to y, which does not exist");
    assert_eq!(
        refusal(&[&[Member::file("x", ""), Member::hard_link("x", "x")]]),
        "layer 0: x: a hard link to x, which does not exist"
    );
    assert_eq!(
        refusal(&[&[Member::directory("d"), Member::hard_link("x", "d")]]),
        "layer 0: x: a hard link to d, which is a directory"
    );
    assert_eq!(refusal(&[&[Member::hard_link("x", "/")]]), "layer 0: x: a hard link to /, which is a directory");
    assert_eq!(refusal(&[&[Member::symlink("x", "")]]), "layer 0: x: a symbolic link without a target");
    assert_eq!(
        refusal(&[&[Member { device: (4096, 0), ..Member::new(b'3', "x") }]]),
        "layer 0: x: no device can have the number 4096:0"
    );
    let long = Member::file("x", "").with_pax("path", [b'n'; 256]);
    assert!(refusal(&[&[long]]).ends_with("a part of the name is longer than 255 bytes"));
    let long = Member::file("x", "").with_pax("path", b"n/".repeat(2048));
    assert!(refusal(&[&[long]]).ends_with("the name is longer than 4095 bytes"));
    assert_eq!(
        refusal(&[&[Member::file("\x1b[31m\nx/../..", "")]]),
        "layer 0: \\x1b[31m\\nx/../..: the name leads out of the image"
    );
}

#[test]
fn whiteouts_that_cannot_be_are_refused() {
    for name in [".wh.", "d/.wh..", ".wh...", ".wh.d/x"] {
        let message = refusal(&[&[Member::directory("d")], &[Member::file(name, "")]]);
        assert_eq!(message, format!("layer 1: {name}: not a whiteout that the OCI image specification knows"));
    }
}

#[test]
fn symbolic_links_in_circles_end() {
    let circle = [Member::symlink("a", "b"), Member::symlink("b", "a"), Member::file("a/x", "")];
    assert_eq!(refusal(&[&circle]), "layer 0: a/x: too many symbolic links in the path");
    assert_eq!(
        refusal(&[&[Member::symlink("a", "a/a/a"), Member::file("a/x", "")]]),
        "layer 0: a/x: too many symbolic links in the path"
    );
    let wide = [Member::symlink("w", "cut").with_pax("linkpath", b"d/../".repeat(600)), Member::file("w/x", "")];
    assert_eq!(refusal(&[&wide]), "layer 0: w/x: too many symbolic links in the path");
}

#[test]
fn damage_names_the_layer_and_the_entry() {
    let whole = archive(&[Member::file("first", ""), Member::file("big", [1; 100_000])]);
    let cut = whole[..50_000].to_vec();
    let error = image_of(&[archive(&[]), cut], &Limits::default()).expect_err("cut");
    assert_eq!(error.to_string(), "layer 1: big: the archive ends in the middle of an entry's data");
    let claims = archive(&[Member { size: Some(4 << 30), ..Member::file("liar", "") }]);
    let error = image_of(&[claims], &Limits::default()).expect_err("short");
    assert_eq!(error.to_string(), "layer 0: liar: the archive ends in the middle of an entry's data");
}

#[test]
fn limits_hold() {
    let limits = Limits { names: 10, text_bytes: 1000, image_bytes: 1 << 20, layer_bytes: 100_000 };
    let refusal = |members: &[Member]| image_of(&[archive(members)], &limits).expect_err("too much").to_string();
    let many: Vec<_> = (0..11).map(|n| Member::file(format!("{n}"), "")).collect();
    assert_eq!(refusal(&many), "layer 0: 10: more than the 10 files allowed");
    let long: Vec<_> =
        (0..9).map(|n| Member::symlink(format!("{n}"), [b'l'; 100]).with_pax("linkpath", [b'l'; 200])).collect();
    assert_eq!(refusal(&long), "layer 0: 4: the text of all names would be larger than the 1000 bytes allowed");
    let large = Member::file("large", "").with_pax("GNU.sparse.size", "1048577").with_pax("GNU.sparse.map", "0,0");
    assert_eq!(refusal(&[large]), "layer 0: large: the image would be larger than the 1 MiB allowed");
    assert_eq!(
        refusal(&[Member::file("f", [0; 100_000])]),
        "layer 0: f: what the layers unpack to would be larger than the 100000 bytes allowed"
    );
    // Names that are gone do not count.
    let again: Vec<_> = (0..30).map(|_| Member::file("same", "")).collect();
    image_of(&[archive(&again)], &limits).expect("one name");
}

#[test]
fn an_error_of_the_stream_can_be_told_from_damage() {
    struct Mismatch;
    impl Read for Mismatch {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("digest mismatch"))
        }
    }
    let whole = archive(&[Member::file("f", "x")]);
    let mut output = tempfile::tempfile().expect("temporary file");
    let error = write_image([whole.chain(Mismatch)], &mut output, &Limits::default()).expect_err("broken");
    assert_eq!(error.to_string(), "layer 0: f: cannot read the layer: digest mismatch");
    assert!(matches!(error.problem, crate::erofs::Problem::Read(_)));
}

#[test]
fn a_full_disk_is_told() {
    let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let error = write_image([&archive(&[Member::file("f", "x")])[..]], &mut full, &Limits::default());
    // A device's size cannot be set either; the reason is the system's.
    assert!(matches!(error.expect_err("full").problem, crate::erofs::Problem::Write { .. }));
}

/// Work must grow with the layers' size and not with its square.
#[test]
fn repeated_whiteouts_take_no_quadratic_time() {
    let mut members: Vec<_> = (0..20_000).map(|n| Member::file(format!("d/{n}"), "")).collect();
    members.extend((0..20_000).map(|_| Member::file("d/.wh..wh..opq", "")));
    members.extend((0..20_000).map(|_| Member::file(".wh.d", "")));
    let start = Instant::now();
    assert_eq!(names(&[&members]).len(), 20_001);
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}
