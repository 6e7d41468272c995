// SPDX-License-Identifier: Apache-2.0
//! What `scripts/build-initramfs` writes, read as the kernel reads it (`init/initramfs.c`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Of one entry: what the kernel makes of it.
#[derive(Debug, PartialEq)]
enum Entry {
    Directory,
    Device { major: u32, minor: u32 },
    Link(String),
    File { mode: u32, content: Vec<u8> },
}

/// Reads a newc archive; panics at the first thing that the kernel would refuse.
fn read(archive: &[u8]) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut next = 0;
    loop {
        let at = next;
        assert_eq!(&archive[at..at + 6], b"070701", "magic at {at}");
        let field = |index: usize| {
            let start = at + 6 + 8 * index;
            u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
        let (name, rest) = archive[at + 110..at + 110 + name_size].split_at(name_size - 1);
        assert_eq!(rest, b"\0");
        let name = String::from_utf8(name.to_vec()).unwrap();
        let start = (at + 110 + name_size).next_multiple_of(4);
        let content = archive[start..start + size].to_vec();
        next = (start + size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            assert_eq!(next, archive.len());
            return entries;
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            assert_eq!(entries[parent], Entry::Directory, "{name} comes before its directory");
        }
        assert_eq!((field(2), field(3), field(5)), (0, 0, 0), "owner and time of {name}");
        let entry = match mode & 0o170_000 {
            0o040_000 => Entry::Directory,
            0o020_000 => Entry::Device { major: field(9), minor: field(10) },
            0o120_000 => Entry::Link(String::from_utf8(content).unwrap()),
            0o100_000 => Entry::File { mode: mode & 0o7777, content },
            other => panic!("{name} has the mode {other:o}"),
        };
        assert_eq!(entries.insert(name, entry), None);
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/build-initramfs")
}

fn build(cache: &Path, agent: &Path, busybox: &Path) -> Output {
    let mut command = Command::new(script());
    command.arg("--agent").arg(agent).env("CORACLE_CACHE", cache).env("BUSYBOX", busybox);
    command.output().unwrap()
}

/// Files whose sizes need 1, 2, 3 and 0 bytes of padding.
#[test]
fn archives_hold_what_the_kernel_and_the_agent_need() {
    for size in 5..9 {
        let directory = tempfile::tempdir().unwrap();
        let (agent, busybox) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&agent, vec![b'a'; size]).unwrap();
        fs::write(&busybox, vec![0; size + 1]).unwrap();
        let output = build(directory.path(), &agent, &busybox);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let lean = read(&fs::read(directory.path().join("guest/initramfs.cpio")).unwrap());
        assert_eq!(lean.len(), 4);
        assert_eq!(lean["dev"], Entry::Directory);
        assert_eq!(lean["dev/console"], Entry::Device { major: 5, minor: 1 });
        assert_eq!(lean["dev/port"], Entry::Device { major: 1, minor: 4 });
        assert_eq!(lean["init"], Entry::File { mode: 0o755, content: vec![b'a'; size] });

        let console = read(&fs::read(directory.path().join("guest/console.cpio")).unwrap());
        for (name, entry) in &lean {
            assert_eq!(&console[name], entry);
        }
        assert_eq!(console["bin/busybox"], Entry::File { mode: 0o755, content: vec![0; size + 1] });
        assert_eq!(console["bin/sh"], Entry::Link("busybox".into()));
        assert_eq!(console["dev/null"], Entry::Device { major: 1, minor: 3 });
        assert_eq!(console["dev/kmsg"], Entry::Device { major: 1, minor: 11 });
    }
}

#[test]
fn the_same_input_gives_the_same_files_and_nothing_is_left_over() {
    let directory = tempfile::tempdir().unwrap();
    let (cache, agent) = (directory.path().join("cache"), directory.path().join("agent"));
    fs::write(&agent, "one").unwrap();
    let list = || {
        let entries = fs::read_dir(cache.join("guest")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert!(build(&cache, &agent, &agent).status.success());
    let first = list();
    assert_eq!(first.len(), 4, "{first:?}");
    assert!(build(&cache, &agent, &agent).status.success());
    assert_eq!(list(), first);

    fs::write(&agent, "two").unwrap();
    assert!(build(&cache, &agent, &agent).status.success());
    assert_eq!(list().len(), 6);
    let lean = read(&fs::read(cache.join("guest/initramfs.cpio")).unwrap());
    assert_eq!(lean["init"], Entry::File { mode: 0o755, content: b"two".to_vec() });
}

#[test]
fn what_is_missing_is_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("dynamic");
    fs::write(&program, "\x7fELF /lib64/ld-linux-x86-64.so.2").unwrap();
    let output = build(directory.path(), &program, &program);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(message.contains("is not static") && message.contains("apt-get install busybox-static"), "{message}");

    let output = build(directory.path(), &directory.path().join("none"), &program);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(message.contains("there is no file") && message.contains("--agent"), "{message}");
}
