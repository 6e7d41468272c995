// SPDX-License-Identifier: Apache-2.0
//! Has what a program needs in the page cache before it runs: its file, its interpreter and its libraries, as far as
//! they can be told from the ELF headers (System V ABI, "Program Header" and "Dynamic Section"). What is missed is read
//! when it is needed.
//!
//! Files are an image's, and so hostile: they are only looked at, and what makes no sense is left alone.

use alloc::vec;
use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::{Advice, FileType, Mode, OFlags, fadvise, fstat, stat};

use crate::program::candidates;

/// Files that are looked at.
const MAX_FILES: usize = 64;
/// Bytes that are read ahead of one file, and of all: at most this part of the memory.
const MAX_FILE: u64 = 8 << 20;
const PART_OF_MEMORY: u64 = 8;
/// The kernel reads no more ahead at once.
const PIECE: u64 = 128 << 10;
/// Longest part of a file that is looked at.
const MAX_PART: usize = 64 << 10;
/// Where libraries are, besides what a program says itself (`ld.so(8)`; Debian's and others' names).
const LIBRARIES: [&[u8]; 7] = [
    b"/lib/x86_64-linux-gnu",
    b"/usr/lib/x86_64-linux-gnu",
    b"/lib64",
    b"/usr/lib64",
    b"/lib",
    b"/usr/lib",
    b"/usr/local/lib",
];
/// Where they are looked up.
const LIBRARY_CACHE: &[u8] = b"/etc/ld.so.cache";

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Reads ahead what `program`, looked for in `path`, needs.
pub fn up(program: &[u8], path: &[u8]) {
    let Some(program) = candidates(program, path).map(|file| file.into_bytes()).find(|file| is_file(file)) else {
        return;
    };
    let memory = rustix::system::sysinfo();
    let mut left = memory.totalram.saturating_mul(memory.mem_unit.into()) / PART_OF_MEMORY;
    // The agent's own pages are those that `exec` takes down.
    if let Ok(own) = open(b"/proc/self/exe") {
        read_ahead(&own, &mut left);
    }
    let mut files = vec![program];
    let mut next = 0;
    while let Some(path) = files.get(next).cloned()
        && next < MAX_FILES
    {
        next += 1;
        let Ok(file) = open(&path) else { continue };
        read_ahead(&file, &mut left);
        for more in needed(&file, &path) {
            if next == 1 && !files.iter().any(|file| file == LIBRARY_CACHE) {
                files.push(LIBRARY_CACHE.to_vec());
            }
            if !files.contains(&more) {
                files.push(more);
            }
        }
    }
}

fn is_file(path: &[u8]) -> bool {
    stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Anything but a file may do something when it is opened.
fn open(path: &[u8]) -> rustix::io::Result<OwnedFd> {
    match is_file(path) {
        true => rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()),
        false => Err(rustix::io::Errno::NOENT),
    }
}

/// Has the file read, and waits for it: what is under way in a snapshot is work for each of its clones.
fn read_ahead(file: &OwnedFd, left: &mut u64) {
    let size = fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0).min(MAX_FILE);
    // Each page that this touches is one more that the program's `exec` takes down.
    let mut piece = vec![0; 16 << 10];
    let mut at = 0;
    while at < size && *left > 0 {
        let length = PIECE.min(size - at).min(*left);
        // What is not read ahead is read one page at a time.
        let _ = fadvise(file, at, core::num::NonZeroU64::new(length), Advice::WillNeed);
        // A page that has been read twice counts as active. Else each clone has the kernel find that out at the end of
        // the first process that used it.
        for offset in (0..2 * PIECE).step_by(piece.len()).map(|offset| offset % PIECE).filter(|&one| one < length) {
            let _ = rustix::io::pread(file, &mut piece[..], at + offset);
        }
        at += length;
        *left -= length;
    }
}

/// What a file says that it needs.
fn needed(file: &OwnedFd, path: &[u8]) -> Vec<Vec<u8>> {
    let start = part(file, 0, 4096);
    match start.strip_prefix(b"#!") {
        Some(line) => {
            let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let interpreter = line.split(|byte| *byte == b' ' || *byte == b'\t').find(|word| !word.is_empty());
            interpreter.map(<[u8]>::to_vec).into_iter().collect()
        }
        None => elf(&start, |offset, length| part(file, offset, length), path).unwrap_or_default(),
    }
}

fn part(file: &OwnedFd, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length.min(MAX_PART)];
    let count = rustix::io::pread(file, &mut bytes[..], offset).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

/// The interpreter and the libraries of a 64-bit ELF file that starts like this.
fn elf(start: &[u8], read: impl Fn(u64, usize) -> Vec<u8>, path: &[u8]) -> Option<Vec<Vec<u8>>> {
    start.strip_prefix(b"\x7fELF\x02\x01")?;
    let (table, size, count) = (word(start, 32)?, half(start, 54)?, half(start, 56)?);
    if size != 56 {
        return None;
    }
    let headers = read(table, usize::from(size) * usize::from(count));
    let segments: Vec<Segment> = headers.chunks(usize::from(size)).filter_map(Segment::parse).collect();
    let content = |segment: &Segment| read(segment.offset, usize::try_from(segment.size).unwrap_or(usize::MAX));
    let mut found: Vec<Vec<u8>> = Vec::new();
    let of_kind = |kind: u32| segments.iter().find(move |segment| segment.kind == kind);
    found.extend(of_kind(PT_INTERP).map(|segment| text(&content(segment))).filter(|name| !name.is_empty()));
    let Some(dynamic) = of_kind(PT_DYNAMIC).map(content) else { return Some(found) };
    let entries: Vec<(u64, u64)> =
        dynamic.chunks(16).map_while(|entry| Some((word(entry, 0)?, word(entry, 8)?))).collect();
    let value = |tag: u64| entries.iter().find(|(other, _)| *other == tag).map(|(_, value)| *value);
    let (address, length) = (value(DT_STRTAB)?, value(DT_STRSZ)?);
    let place = segments.iter().find_map(|segment| segment.file_offset(address))?;
    let strings = read(place, usize::try_from(length).ok()?);
    let string = |at: u64| Some(text(strings.get(usize::try_from(at).ok()?..)?));
    let own = value(DT_RUNPATH).or_else(|| value(DT_RPATH)).and_then(string).unwrap_or_default();
    let here = path.iter().rposition(|byte| *byte == b'/').and_then(|end| path.get(..end)).unwrap_or_default();
    let own = own
        .split(|byte| *byte == b':')
        .filter(|one| !one.is_empty())
        .map(|one| one.strip_prefix(b"$ORIGIN").map_or_else(|| one.to_vec(), |rest| [here, rest].concat()));
    let directories: Vec<Vec<u8>> = own.chain(LIBRARIES.iter().map(|one| one.to_vec())).collect();
    for (_, name) in entries.iter().filter(|(tag, _)| *tag == DT_NEEDED) {
        let name = string(*name)?;
        let places = directories.iter().map(|directory| [directory.as_slice(), b"/", &name].concat());
        found.extend(places.into_iter().find(|place| is_file(place)));
    }
    Some(found)
}

/// A program header.
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    /// In the file.
    size: u64,
}

impl Segment {
    fn parse(header: &[u8]) -> Option<Self> {
        let kind = u32::from_le_bytes(header.get(..4)?.try_into().ok()?);
        Some(Self { kind, offset: word(header, 8)?, address: word(header, 16)?, size: word(header, 32)? })
    }

    /// Where in the file the byte is that is loaded at this address.
    fn file_offset(&self, address: u64) -> Option<u64> {
        let into = address.checked_sub(self.address).filter(|into| self.kind == PT_LOAD && *into < self.size)?;
        self.offset.checked_add(into)
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    /// What this machine's shell, which is a dynamic program, is said to need.
    #[test]
    fn interpreter_and_libraries_are_found() {
        let file = open(b"/bin/sh").unwrap();
        let needed = needed(&file, b"/bin/sh");
        let names: Vec<_> = needed.iter().map(|path| String::from_utf8_lossy(path)).collect();
        assert!(names.first().is_some_and(|name| name.contains("/ld-linux")), "{names:?}");
        assert!(names.iter().any(|name| name.ends_with("/libc.so.6")), "{names:?}");
    }

    #[test]
    fn a_script_needs_its_interpreter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("script");
        std::fs::write(&path, "#! /bin/sh -e\nexit 1\n").unwrap();
        let path = path.to_str().unwrap().as_bytes();
        assert_eq!(needed(&open(path).unwrap(), path), [b"/bin/sh"]);
        up(path, b"");
    }

    #[test]
    fn nonsense_needs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let shell = std::fs::read("/bin/sh").unwrap();
        // Each byte of the headers in turn, and a file that is cut off anywhere in them.
        for at in 0..1024 {
            let mut broken = shell.clone();
            broken[at] = !broken[at];
            std::fs::write(&path, broken).unwrap();
            let path = path.to_str().unwrap().as_bytes();
            assert!(needed(&open(path).unwrap(), path).len() < MAX_PART);
        }
        for length in 0..256 {
            std::fs::write(&path, &shell[..length]).unwrap();
            let path = path.to_str().unwrap().as_bytes();
            assert_eq!(needed(&open(path).unwrap(), path), [[]; 0] as [[u8; 0]; 0]);
        }
        assert!(open(b"/dev/null").is_err());
    }
}
