// SPDX-License-Identifier: Apache-2.0
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::*;

fn image(folder: &Path, name: &str, size: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// The message of the refusal, which must name the path.
fn refusal(path: &Path, read_only: bool) -> (BlockError, String) {
    let error = Disk::open(path, read_only).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(&path.display().to_string()), "{message}");
    (error, message)
}

#[test]
fn a_file_becomes_a_disk_of_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 8 << 20);
    let disk = Disk::open(&path, false).unwrap();
    assert_eq!((disk.size(), disk.read_only()), (8 << 20, false));
    assert_eq!(disk.topology().logical, 512);
    assert!(disk.topology().physical.is_power_of_two() && disk.topology().physical >= 512);
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 << 20);
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(disk.as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}

#[test]
fn what_is_no_disk_is_refused_by_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |name: &str| folder.path().join(name);
    assert!(matches!(refusal(&in_folder("none"), false).0, BlockError::Missing(_)));
    assert!(matches!(refusal(folder.path(), false).0, BlockError::Directory(_)));
    assert!(matches!(refusal(folder.path(), true).0, BlockError::Directory(_)));
    let (error, message) = refusal(&image(folder.path(), "odd", 1000), true);
    assert!(
        matches!(error, BlockError::OddSize { size: 1000, .. }) && message.contains("truncate -s %512"),
        "{message}"
    );
    assert!(matches!(refusal(&image(folder.path(), "empty", 0), false).0, BlockError::Empty(_)));
    assert!(matches!(refusal(Path::new("/dev/null"), false).0, BlockError::FileType { kind: "character device", .. }));
    let socket = in_folder("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert!(matches!(refusal(&socket, false).0, BlockError::FileType { kind: "socket", .. }));
    let pipe = std::ffi::CString::new(in_folder("pipe").to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string that lives through the call.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    assert!(matches!(refusal(&in_folder("pipe"), false).0, BlockError::FileType { kind: "pipe", .. }));
    assert!(matches!(refusal(&image(folder.path(), "x", 512).join("y"), false).0, BlockError::System { .. }));
}

#[test]
fn a_file_that_nobody_may_write_is_not_opened_for_writing() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 4096);
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    assert!(matches!(refusal(&path, false).0, BlockError::ReadOnly { .. }));
    let disk = Disk::open(&path, true).unwrap();
    assert!(disk.read_only() && !disk.clears());
}

#[test]
fn the_systems_refusals_are_told_apart() {
    let error = |number| refused(Path::new("disk"), "reading", io::Error::from_raw_os_error(number));
    assert!(matches!(error(libc::EACCES), BlockError::Permission { access: "reading", .. }));
    assert!(matches!(error(libc::EROFS), BlockError::ReadOnly { .. }));
    assert!(matches!(error(libc::EPERM), BlockError::ReadOnly { .. }));
    assert!(matches!(error(libc::EBUSY), BlockError::InUse(_)));
    assert!(matches!(error(libc::EIO), BlockError::System { .. }));
}

#[test]
fn one_writer_or_many_readers() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 4096);
    let writer = Disk::open(&path, false).unwrap();
    for read_only in [false, true] {
        assert!(matches!(refusal(&path, read_only).0, BlockError::InUse(_)));
    }
    drop(writer);
    let readers = [Disk::open(&path, true).unwrap(), Disk::open(&path, true).unwrap()];
    assert!(matches!(refusal(&path, false).0, BlockError::InUse(_)));
    drop(readers);
    Disk::open(&path, false).unwrap();
}

#[test]
fn a_read_only_disk_has_a_read_only_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path(), "disk", 4096);
    let disk = Disk::open(&path, true).unwrap();
    // SAFETY: the buffer is valid for its length.
    assert_eq!(unsafe { libc::pwrite(disk.as_raw_fd(), [1u8].as_ptr().cast(), 1, 0) }, -1);
}
