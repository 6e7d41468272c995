// SPDX-License-Identifier: Apache-2.0
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::string::String;
use std::vec::Vec;

use coracle_protocol::{Pack, Unpack};
use rustix::fd::AsFd;

use super::format::{BLOCK, Header, Pending};
use super::{pack, unpack};

fn tree(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    // Longer than a header has room for, and not of one block.
    let long = root.join("a").join("n".repeat(200));
    fs::write(&long, [7; 1300]).unwrap();
    fs::set_permissions(&long, fs::Permissions::from_mode(0o4750)).unwrap();
    fs::hard_link(&long, root.join("a/b/same")).unwrap();
    symlink("t".repeat(150), root.join("a/link")).unwrap();
    fs::write(root.join("empty"), "").unwrap();
    // Of several pieces, and no whole number of pages: more than is written past the page cache.
    let large: Vec<u8> = (0..600_001u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    fs::write(root.join("a/large"), large).unwrap();
}

fn same(one: &Path, other: &Path) {
    for name in ["", "a", "a/b", "a/b/same", "a/link", "a/large", "empty", &["a/", &"n".repeat(200)].concat()] {
        let (one, other) = (one.join(name), other.join(name));
        let facts = |path: &Path| {
            let status = path.symlink_metadata().unwrap();
            (status.mode(), status.mtime(), status.is_file().then(|| fs::read(path).unwrap()))
        };
        assert_eq!(facts(&one), facts(&other), "{name}");
    }
    let inode = |name: &str| fs::metadata(other.join("a").join(name)).unwrap().ino();
    assert_eq!(inode("b/same"), inode(&"n".repeat(200)));
}

fn packed(path: &Path, name: &str, to: &Path) {
    let file = fs::File::create(to).unwrap();
    let wish = Pack { path: path.as_os_str().as_bytes().to_vec(), name: name.into(), follow: false };
    pack::pack(&wish, file.as_fd()).unwrap();
}

fn unpacked(archive: &[u8], wish: &Unpack) -> Result<(), String> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(archive).unwrap();
    file.rewind().unwrap();
    unpack::unpack(wish, file.as_fd())
}

fn into(path: &Path, name: Option<&str>, directory: bool) -> Unpack {
    let name = name.map(|name| name.as_bytes().to_vec());
    Unpack { path: path.as_os_str().as_bytes().to_vec(), name, directory, content: false, keep_owner: true }
}

#[test]
fn tar_reads_what_is_packed_and_we_what_tar_packs() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    tree(&at("from"));
    packed(&at("from"), "x", &at("ours.tar"));
    let tar =
        |words: &[&str]| assert!(Command::new("tar").args(words).current_dir(place.path()).status().unwrap().success());
    fs::create_dir(at("out")).unwrap();
    tar(&["-xpf", "ours.tar", "-C", "out"]);
    same(&at("from"), &at("out/x"));
    for (format, number) in ["gnu", "pax", "ustar"].iter().zip(0..) {
        let to = at(&std::format!("{number}"));
        fs::create_dir(&to).unwrap();
        if *format == "ustar" {
            // It has no room for the long target.
            fs::remove_file(at("from/a/link")).unwrap();
            symlink("short", at("from/a/link")).unwrap();
            fs::rename(at("from/a").join("n".repeat(200)), at("from/a/n")).unwrap();
        }
        tar(&["-cf", "tar.tar", "--format", format, "from"]);
        unpacked(&fs::read(at("tar.tar")).unwrap(), &into(&to, None, false)).unwrap();
        match *format {
            "ustar" => assert_eq!(fs::read_link(to.join("from/a/link")).unwrap(), Path::new("short")),
            _ => same(&at("from"), &to.join("from")),
        }
    }
}

#[test]
fn where_it_goes_is_found_as_cp_finds_it() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    tree(&at("from"));
    packed(&at("from"), "x", &at("tree.tar"));
    packed(&at("from/empty"), "x", &at("file.tar"));
    let (tree, file) = (fs::read(at("tree.tar")).unwrap(), fs::read(at("file.tar")).unwrap());
    fs::create_dir(at("there")).unwrap();
    unpacked(&tree, &into(&at("there"), Some("from"), true)).unwrap();
    same(&at("from"), &at("there/from"));
    unpacked(&tree, &into(&at("new"), Some("from"), true)).unwrap();
    same(&at("from"), &at("new"));
    unpacked(&tree, &Unpack { content: true, ..into(&at("there"), Some("from"), true) }).unwrap();
    same(&at("from"), &at("there"));
    unpacked(&file, &into(&at("there"), Some("empty"), false)).unwrap();
    fs::write(at("full"), "12").unwrap();
    unpacked(&file, &into(&at("full"), Some("empty"), false)).unwrap();
    assert_eq!((fs::metadata(at("full")).unwrap().len(), at("there/empty").exists()), (0, true));
    for (archive, wish, why) in [
        (&tree, into(&at("full"), Some("x"), true), "no directory"),
        (&tree, into(&at("full"), None, false), "no directory"),
        (&file, into(&at("not/there"), Some("x"), false), "no such file"),
        (&file, into(&at("not/"), Some("x"), false), "no such file"),
    ] {
        let error = unpacked(archive, &wish).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn broken_archives_are_refused_and_none_panics() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    tree(&at("from"));
    packed(&at("from"), "x", &at("good.tar"));
    let mut good = Vec::new();
    fs::File::open(at("good.tar")).unwrap().read_to_end(&mut good).unwrap();
    fs::create_dir(at("to")).unwrap();
    let error = unpacked(&good[..good.len() - 2 * BLOCK], &into(&at("to"), None, false)).unwrap_err();
    assert!(error.contains("in the middle"), "{error}");
    let error = unpacked(&[b'x'; BLOCK], &into(&at("to"), None, false)).unwrap_err();
    assert!(error.contains("no tar archive"), "{error}");
    // Each byte of the first header wrong in turn: refused, or of no meaning.
    for byte in (0..BLOCK).filter(|byte| *byte != 155) {
        let mut block: [u8; BLOCK] = good[..BLOCK].try_into().unwrap();
        block[byte] ^= 0x55;
        assert!(Pending::default().header(&block).is_err(), "{byte}");
    }
    for records in
        [&b"9 path=x\n"[..], b"7 path=x\n", b"99999999999999999999 a=b\n", b" a=b\n", b"12 size=-1xx\n", b"x"]
    {
        let fine = Pending::default().take(b'x', records);
        assert_eq!(fine.is_ok(), records == b"9 path=x\n", "{records:?}");
    }
    assert_eq!(Pending::default().header(&[0; BLOCK]), Ok(Header::End));
}
