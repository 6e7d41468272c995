// SPDX-License-Identifier: Apache-2.0
use std::io::Write;

use super::*;

fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn read(mapping: &ReadOnlyMapping, offset: usize, length: usize) -> Vec<u8> {
    assert!(offset + length <= mapping.length());
    // SAFETY: within the mapping, which lives as long as the borrow, and the file does not change meanwhile.
    unsafe { std::slice::from_raw_parts((mapping.host_address() + offset) as *const u8, length).to_vec() }
}

/// What `/proc/self/maps` says of the pages at `address`.
fn permissions(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()).contains(&address)
    });
    line.unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn the_file_is_mapped_and_zeroes_follow_it() {
    let content: Vec<u8> = (0..=250).cycle().take((2 << 20) + 5000).collect();
    let file = file_of(&content);
    let mapping = ReadOnlyMapping::open(file.path()).unwrap();
    assert_eq!((mapping.host_address() % GRANULE, mapping.length()), (0, 4 << 20));
    assert_eq!(read(&mapping, 0, content.len()), content);
    assert!(read(&mapping, content.len(), mapping.length() - content.len()).iter().all(|byte| *byte == 0));
}

#[test]
fn pages_and_descriptor_allow_no_writing() {
    let file = file_of(&[1; 5000]);
    let mapping = ReadOnlyMapping::open(file.path()).unwrap();
    assert_eq!(permissions(mapping.host_address()), "r--s");
    assert_eq!(permissions(mapping.host_address() + mapping.length() - 1), "r--p");
    let error = (&mapping.file).write(&[2]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    // Nor can the mapping be made writable later on: the kernel remembers how the file was opened.
    // SAFETY: the pages are our own, and nothing refers to them.
    let result = unsafe { libc::mprotect(mapping.host_address() as *mut _, 4096, libc::PROT_READ | libc::PROT_WRITE) };
    assert_eq!((result, io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EACCES)));
}

#[test]
fn dropping_unmaps_everything() {
    let file = file_of(&[1; 5000]);
    let mapping = ReadOnlyMapping::open(file.path()).unwrap();
    let name = file.path().file_name().unwrap().to_str().unwrap().to_owned();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&name);
    assert!(mapped());
    drop(mapping);
    assert!(!mapped());
}

#[test]
fn what_cannot_be_mapped_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| ReadOnlyMapping::open(path).unwrap_err().problem;
    assert!(matches!(open(&folder.path().join("none")), PmemProblem::Missing));
    assert!(matches!(open(folder.path()), PmemProblem::FileType("directory")));
    assert!(matches!(open(Path::new("/dev/null")), PmemProblem::FileType("special file")));
    assert!(matches!(open(file_of(&[]).path()), PmemProblem::Empty));
    let socket = folder.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(open(&socket), PmemProblem::FileType("socket")));
    let pipe = folder.path().join("pipe");
    let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert!(matches!(open(&pipe), PmemProblem::FileType("pipe")));
    let error = ReadOnlyMapping::from_file(file_of(&[1]).reopen().unwrap(), Path::new("handed-in")).unwrap_err();
    assert_eq!(error.to_string(), "pmem handed-in: its descriptor allows writing");
}

#[test]
fn readers_share_and_a_writer_excludes() {
    let file = file_of(&[1; 100]);
    let first = ReadOnlyMapping::open(file.path()).unwrap();
    let second = ReadOnlyMapping::open(file.path()).unwrap();
    // SAFETY: as in `lock_shared`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_WRLCK).unwrap();
    let mut write_lock = || {
        // SAFETY: as in `lock_shared`.
        unsafe { libc::fcntl(file.as_file().as_raw_fd(), libc::F_OFD_SETLK, &raw mut lock) }
    };
    assert_eq!(write_lock(), -1);
    drop((first, second));
    assert_eq!(write_lock(), 0);
    assert!(matches!(ReadOnlyMapping::open(file.path()).unwrap_err().problem, PmemProblem::InUse));
}
