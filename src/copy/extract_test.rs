// SPDX-License-Identifier: Apache-2.0
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::super::pack;
use super::*;
use crate::erofs::tar::testing::{Member, archive};

fn extraction(to: &Path, name: Option<&str>) -> Extraction {
    Extraction { to: to.to_owned(), name: name.map(OsString::from), archive: false }
}

/// Extracts these members as a directory `d` of a new place beside one that nothing may get into.
fn outcome(members: &[Member]) -> (io::Result<Left>, tempfile::TempDir) {
    let place = tempfile::tempdir().unwrap();
    ["in", "out"].iter().for_each(|name| fs::create_dir(place.path().join(name)).unwrap());
    fs::write(place.path().join("out/file"), "untouched").unwrap();
    let how = extraction(&place.path().join("in"), Some("d"));
    let outcome = extract(&archive(members)[..], &how);
    assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), 1);
    assert_eq!(fs::read(place.path().join("out/file")).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);
    (outcome, place)
}

#[test]
fn nothing_leads_out() {
    let root = || Member::directory("x/");
    let absolute = Member::symlink("x/link", "/");
    for members in [
        vec![root(), Member::file("x/../../out/new", "bad")],
        vec![root(), Member::file("/out/new", "bad")],
        vec![root(), Member::file("../out/new", "bad")],
        vec![root(), Member::symlink("x/link", "../../out"), Member::file("x/link/new", "bad")],
        vec![root(), Member::symlink("x/link", "../../out"), Member::directory("x/link/new")],
        vec![root(), absolute, Member::file("x/link/tmp/new", "bad")],
        vec![root(), Member::symlink("x/link", "../../out/file"), Member::hard_link("x/new", "x/link/../file")],
        vec![root(), Member::hard_link("x/new", "x/../../out/file"), Member::file("x/new", "bad")],
        vec![Member::symlink("x", "../out"), Member::file("x/new", "bad")],
    ] {
        let (outcome, _place) = outcome(&members);
        assert!(outcome.is_err(), "{:?}", outcome);
    }
    // A link is replaced, not written through; nor is what a hard link to it shows.
    let link = Member::symlink("x/link", "../../out/file");
    let (done, place) = outcome(&[root(), link, Member::hard_link("x/other", "x/link"), Member::file("x/link", "own")]);
    assert_eq!(done.unwrap(), []);
    assert_eq!(fs::read(place.path().join("in/d/link")).unwrap(), b"own");
}

#[test]
fn devices_are_left_out_and_rights_of_others_too() {
    let device = Member { ..Member::new(b'4', "x/disk") };
    let mut file = Member::file("x/tool", "#!");
    file.mode = 0o6755;
    let (done, place) = outcome(&[Member::directory("x/"), device, file]);
    assert_eq!(done.unwrap(), [(PathBuf::from("x/disk"), "it is a device or a pipe")]);
    assert_eq!(fs::metadata(place.path().join("in/d/tool")).unwrap().mode() & 0o7777, 0o755);
    assert!(!place.path().join("in/d/disk").exists());
}

#[test]
fn where_it_goes_is_found_as_cp_finds_it() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let file = archive(&[Member::file("x", "new")]);
    let tree = archive(&[Member::directory("x/"), Member::file("x/a", "1")]);
    fs::create_dir(at("there")).unwrap();
    fs::write(at("full"), "old").unwrap();
    symlink("full", at("link")).unwrap();
    let put = |bytes: &[u8], to: &str, name: Option<&str>| extract(bytes, &extraction(Path::new(&at(to)), name));
    put(&file, "there", Some("n")).unwrap();
    put(&file, "link", Some("n")).unwrap();
    put(&file, "other", Some("n")).unwrap();
    put(&tree, "there", Some("t")).unwrap();
    put(&tree, "copy", Some("t")).unwrap();
    put(&tree, "there", None).unwrap();
    for name in ["there/n", "full", "other"] {
        assert_eq!(fs::read(at(name)).unwrap(), b"new", "{name}");
    }
    for name in ["there/t/a", "copy/a", "there/a"] {
        assert_eq!(fs::read(at(name)).unwrap(), b"1", "{name}");
    }
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    for (bytes, to) in [(&tree, "full"), (&file, "not/there"), (&file, "not/"), (&file, "full/"), (&Vec::new(), "x")] {
        assert!(put(bytes, to, Some("n")).is_err(), "{to}");
    }
}

#[test]
fn what_is_packed_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("from/deep/er")).unwrap();
    fs::write(at("from/deep").join("n".repeat(180)), vec![5; 70_000]).unwrap();
    symlink("../no", at("from/deep/er/link")).unwrap();
    fs::write(at("from/tool"), "x").unwrap();
    fs::set_permissions(at("from/tool"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(at("from/deep"), fs::Permissions::from_mode(0o500)).unwrap();
    let mut bytes = Vec::new();
    pack(&at("from"), &mut bytes).unwrap();
    let how = Extraction { archive: true, ..extraction(&at("to"), Some("from")) };
    assert_eq!(extract(&bytes[..], &how).unwrap(), []);
    for name in ["", "deep", "tool", "deep/er", "deep/er/link", &["deep/", &"n".repeat(180)].concat()] {
        let status = |root: &str| fs::symlink_metadata(at(root).join(name)).unwrap();
        let facts = |root: &str| (status(root).mode(), status(root).mtime(), status(root).uid());
        assert_eq!(facts("from"), facts("to"), "{name}");
    }
    assert_eq!(fs::read(at("to/deep").join("n".repeat(180))).unwrap(), vec![5; 70_000]);
}
