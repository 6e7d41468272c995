// SPDX-License-Identifier: Apache-2.0
//! Images as the kernel sees them, against what umoci unpacks of the same layers.
//!
//! These tests mount and make devices: they need root.

#[path = "../src/erofs/tar/testing.rs"]
#[allow(dead_code)] // The unit tests use the rest.
mod archive;
#[path = "erofs/torture.rs"]
mod torture;
#[path = "erofs/tree.rs"]
mod tree;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use archive::Member;
use coracle::erofs::{Limits, Summary, write_image};
use coracle::image::{PullOptions, PullPolicy, Store};
use tempfile::TempDir;
use tree::{Seen, differences, look};

/// Runs a command that must succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `scripts/setup test` installs it");
    });
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}", output.status);
    text
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Where there is room for extended attributes and devices, which not each `/tmp` has.
fn workplace() -> TempDir {
    assert!(rustix::process::geteuid().is_root(), "these tests mount and make devices: run them as root");
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// An image that the kernel has mounted.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Self {
        fs::create_dir(at).expect("a directory");
        run("mount", &["-t", "erofs", "-o", "loop,ro", text(image), text(at)]);
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn write(layers: &[PathBuf], image: &Path) -> Summary {
    let layers = layers.iter().map(|layer| File::open(layer).expect("a layer"));
    let mut output = File::create(image).expect("an image");
    write_image(layers, &mut output, &Limits::default()).expect("valid layers")
}

/// What umoci makes of the layers.
fn unpack(layers: &[PathBuf], workplace: &Path) -> BTreeMap<PathBuf, Seen> {
    let layout = workplace.join("layout");
    let image = format!("{}:test", text(&layout));
    run("umoci", &["init", "--layout", text(&layout)]);
    run("umoci", &["new", "--image", &image]);
    for layer in layers {
        run("umoci", &["raw", "add-layer", "--image", &image, text(layer)]);
    }
    let bundle = workplace.join("bundle");
    run("umoci", &["unpack", "--image", &image, text(&bundle)]);
    look(&bundle.join("rootfs"))
}

/// Checks an image of these layers in every way.
fn check(layers: &[PathBuf], workplace: &Path) -> Summary {
    let (image, again) = (workplace.join("image"), workplace.join("again"));
    let summary = write(layers, &image);
    assert_eq!(write(layers, &again), summary);
    assert!(fs::read(&image).expect("image") == fs::read(&again).expect("image"), "the same layers, other bytes");
    run("fsck.erofs", &["--extract", text(&image)]);
    let found = {
        let mounted = Mounted::new(&image, &workplace.join("mounted"));
        look(&mounted.0)
    };
    let differences = differences(&unpack(layers, workplace), &found);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    let firsts = found.iter().filter(|(path, seen)| **path == seen.first).count();
    assert_eq!(summary.inodes, firsts as u64);
    summary
}

fn save(layers: &[Vec<u8>], workplace: &Path) -> Vec<PathBuf> {
    let path = |number| workplace.join(format!("layer-{number}.tar"));
    for (number, layer) in layers.iter().enumerate() {
        fs::write(path(number), layer).expect("room");
    }
    (0..layers.len()).map(path).collect()
}

#[test]
fn a_torture_image_is_what_umoci_unpacks() {
    let workplace = workplace();
    let layers = save(&torture::layers(), workplace.path());
    let summary = check(&layers, workplace.path());
    assert_eq!(summary.dropped_xattrs, 0);
}

/// Debian's minimal system, made once and kept in the cache.
fn debian() -> PathBuf {
    let directory = coracle::cache::directory().join("test");
    let layer = directory.join("debian-minbase.tar");
    if !layer.exists() {
        fs::create_dir_all(&directory).expect("the cache");
        let unfinished = directory.join(format!("debian-minbase.{}.tar", std::process::id()));
        run("mmdebstrap", &["--quiet", "--variant=minbase", "bookworm", text(&unfinished)]);
        fs::rename(&unfinished, &layer).expect("the cache");
    }
    layer
}

#[test]
fn debian_with_changes_is_what_umoci_unpacks() {
    let workplace = workplace();
    let changes = [
        Member::file("usr/share/.wh.doc", ""),
        Member::file("var/lib/apt/.wh..wh..opq", ""),
        Member::file("etc/hostname", "changed\n"),
        Member { owner: (33, 33), ..Member::directory("srv/www") },
        Member::file("bin/through-usr-merge", "#!/bin/sh\n"),
        Member::file("usr/bin/.wh.perl", ""),
    ];
    let mut layers = vec![debian()];
    layers.extend(save(&[archive::archive(&changes)], workplace.path()));
    let summary = check(&layers, workplace.path());
    assert!(summary.inodes > 3000);
}

/// The disks that containers get, of all images that tests and examples run.
#[test]
fn real_images_are_what_umoci_unpacks() {
    for name in ["busybox", "debian", "nginx", "redis", "postgresql", "python"] {
        let layout = coracle::cache::directory().join("images").join(name);
        assert!(layout.exists(), "{} is missing: run scripts/test-images {name}", layout.display());
        let workplace = workplace();
        let store = Store::open_at(&workplace.path().join("store")).expect("a store");
        let source = format!("oci:{}", layout.display());
        let options = PullOptions::default();
        let image = store.obtain(&source, PullPolicy::Missing, &options, &()).expect("an image");
        let disk = store.rootfs(&image).expect("its disk");
        run("fsck.erofs", &["--extract", text(&disk)]);
        let bundle = workplace.path().join("bundle");
        run("umoci", &["unpack", "--image", &format!("{}:latest", layout.display()), text(&bundle)]);
        let mounted = Mounted::new(&disk, &workplace.path().join("mounted"));
        let (expected, found) = (look(&bundle.join("rootfs")), look(&mounted.0));
        let differences = differences(&expected, &found);
        assert!(differences.is_empty(), "{name}: {} differences:\n{}", differences.len(), differences.join("\n"));
        eprintln!("{name}: {} files are equal", found.len());
    }
}

#[test]
fn files_beyond_4_gib_are_whole() {
    let workplace = workplace();
    let size = (5u64 << 30) + 3;
    let sparse = Member::file("large", "end").with_pax("GNU.sparse.size", size.to_string());
    let sparse = sparse.with_pax("GNU.sparse.map", format!("{},3", size - 3));
    let layers = save(&[archive::archive(&[sparse])], workplace.path());
    let image = workplace.path().join("image");
    assert!(write(&layers, &image).bytes > size);
    let mounted = Mounted::new(&image, &workplace.path().join("mounted"));
    let file = File::open(mounted.0.join("large")).expect("the file");
    assert_eq!(file.metadata().expect("a file").len(), size);
    let mut end = [1; 6];
    file.read_exact_at(&mut end, size - 6).expect("the end");
    assert_eq!(&end, b"\0\0\0end");
}

/// A reader of an endless layer is not kept waiting for memory: what is written is what was read.
#[test]
fn memory_does_not_grow_with_files() {
    // Other tests share this process, and its memory.
    if std::env::var_os("CORACLE_TEST_ALONE").is_none() {
        let alone = ["memory_does_not_grow_with_files", "--exact"];
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let output = command.args(alone).env("CORACLE_TEST_ALONE", "1").output().expect("this program starts");
        // Captured, or its verdict would be counted as one more test.
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let before = peak();
    let workplace = workplace();
    let size = 1u64 << 30;
    let header = archive::header(&Member { size: Some(size), ..Member::new(b'0', "large") });
    let layer = io::Read::chain(&header[..], io::Read::take(io::repeat(7), size));
    let mut output = File::create(workplace.path().join("image")).expect("an image");
    let summary = write_image([layer], &mut output, &Limits::default()).expect("a layer");
    assert!(summary.bytes >= size);
    let grown = peak() - before;
    assert!(grown < 16 << 10, "{grown} KiB more for a file of 1 GiB");
}

/// Peak of resident memory so far, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
