// SPDX-License-Identifier: Apache-2.0
//! A new volume's first content: what the image has where it is mounted, as Docker has it.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt;
use core::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fsetxattr,
    linkat, mkdirat, mknodat, openat, readlinkat_raw, sendfile, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::files::{PATH_MAX, PIECE, attributes, names};

/// Why a volume was not filled.
#[derive(Debug)]
pub enum Unfilled {
    /// The kernel says so.
    Errno(Errno),
    /// A file belongs to somebody who is nobody where the volume is: without root a host's user can give files to no other.
    Owner(u32, u32),
}

impl From<Errno> for Unfilled {
    fn from(error: Errno) -> Self {
        Self::Errno(error)
    }
}

impl fmt::Display for Unfilled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(error) => write!(formatter, "{error}"),
            Self::Owner(user, group) => write!(
                formatter,
                "the image has a file of user {user} and group {group} there, and the host can give it to its own user only, \
                 who is root here: as root on the host it can, or `nocopy` leaves the volume empty"
            ),
        }
    }
}

type Result<T> = core::result::Result<T, Unfilled>;

/// How many bytes a file counts for in what has been done, besides its own.
const ENTRY: usize = PIECE / 16;

/// Copies all that is in `from` into `to`, if there is nothing yet; both are directories. `progress` is called now and then
/// as it gets on, which may take long.
///
/// # Errors
/// [`Unfilled`].
pub fn fill(from: &OwnedFd, to: &OwnedFd, progress: &mut dyn FnMut()) -> Result<()> {
    if !names(to.as_fd())?.is_empty() {
        return Ok(());
    }
    let mut copy = Copy { root: to.as_fd(), links: Vec::new(), done: 0, progress };
    copy.content(from.as_fd(), to.as_fd(), &mut Vec::new())?;
    let status = statat(from, c"", AtFlags::EMPTY_PATH)?;
    take_over(from.as_fd(), to.as_fd(), &status, to.as_fd(), c".")
}

struct Copy<'a> {
    root: BorrowedFd<'a>,
    /// Device, inode and new path of each file with several names.
    links: Vec<(u64, u64, CString)>,
    /// Bytes since the last word of progress.
    done: usize,
    progress: &'a mut dyn FnMut(),
}

impl Copy<'_> {
    fn has_done(&mut self, bytes: usize) {
        self.done = self.done.saturating_add(bytes);
        if self.done >= PIECE {
            self.done = 0;
            (self.progress)();
        }
    }

    /// `path` is where `to` is below the root, for the names of files that have more of them.
    fn content(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &mut Vec<u8>) -> Result<()> {
        for name in names(from)? {
            let length = path.len();
            path.extend_from_slice(name.to_bytes());
            let outcome = self.entry(from, to, &name, path);
            path.truncate(length);
            outcome?;
            self.has_done(ENTRY);
        }
        Ok(())
    }

    fn entry(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, path: &mut Vec<u8>) -> Result<()> {
        let status = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind != FileType::Directory && status.st_nlink > 1 {
            let known = self.links.iter().find(|link| (link.0, link.1) == (status.st_dev, status.st_ino));
            if let Some((_, _, other)) = known {
                return Ok(linkat(self.root, other.as_c_str(), to, name, AtFlags::empty())?);
            }
            let path = CString::new(path.as_slice()).map_err(|_| Errno::INVAL)?;
            self.links.push((status.st_dev, status.st_ino, path));
        }
        let reading = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                let flags = reading | OFlags::DIRECTORY;
                let (source, new) =
                    (openat(from, name, flags, Mode::empty())?, openat(to, name, flags, Mode::empty())?);
                path.push(b'/');
                self.content(source.as_fd(), new.as_fd(), path)?;
                take_over(source.as_fd(), new.as_fd(), &status, to, name)
            }
            FileType::RegularFile => {
                let source = openat(from, name, reading, Mode::empty())?;
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let new = openat(to, name, flags, Mode::from_raw_mode(0o600))?;
                loop {
                    match sendfile(&new, &source, None, PIECE)? {
                        0 => break,
                        count => self.has_done(count),
                    }
                }
                take_over(source.as_fd(), new.as_fd(), &status, to, name)
            }
            FileType::Symlink => {
                let mut target = [MaybeUninit::uninit(); PATH_MAX];
                let (target, _) = readlinkat_raw(from, name, &mut target)?;
                symlinkat(&*target, to, name)?;
                own(&status, to, name)
            }
            kind => {
                mknodat(to, name, kind, Mode::from_raw_mode(0o600), status.st_rdev)?;
                own(&status, to, name)?;
                Ok(chmodat(to, name, Mode::from_raw_mode(status.st_mode & 0o7777), AtFlags::empty())?)
            }
        }
    }
}

/// Gives a new file or directory, open as `new` and called `name` in `directory`, all that the old one has but content.
fn take_over(
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    status: &Stat,
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> Result<()> {
    own(status, directory, name)?;
    // Another owner has taken these away.
    chmodat(directory, name, Mode::from_raw_mode(status.st_mode & 0o7777), AtFlags::empty())?;
    copy_attributes(old, new);
    Ok(utimensat(directory, name, &times(status), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn own(status: &Stat, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let (user, group) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    match chownat(directory, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW) {
        // What `virtiofsd` answers with the host's kernel (user_namespaces(7)).
        Err(Errno::INVAL | Errno::PERM) => return Err(Unfilled::Owner(status.st_uid, status.st_gid)),
        other => other?,
    }
    Ok(utimensat(directory, name, &times(status), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn times(status: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    #[allow(clippy::cast_possible_wrap, reason = "the kernel's own signed numbers")]
    Timestamps {
        last_access: time(status.st_atime, status.st_atime_nsec as i64),
        last_modification: time(status.st_mtime, status.st_mtime_nsec as i64),
    }
}

/// As far as the host's file system takes them.
fn copy_attributes(old: BorrowedFd<'_>, new: BorrowedFd<'_>) {
    for (name, value) in attributes(old) {
        // Not every file system has them.
        let _ = fsetxattr(new, name.as_slice(), &value, XattrFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_tree_is_copied_with_all_that_its_files_are() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::create_dir(&to).unwrap();
        // More than one piece.
        let content: Vec<u8> = (0..PIECE + 4097).map(|n| u8::try_from(n % 251).unwrap()).collect();
        fs::write(from.join("a/large"), &content).unwrap();
        fs::hard_link(from.join("a/large"), from.join("a/b/same")).unwrap();
        fs::set_permissions(from.join("a/large"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(from.join("a/b"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o711)).unwrap();
        symlink("../nowhere", from.join("a/link")).unwrap();
        mknodat(rustix::fs::CWD, from.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
        let mut steps = 0;
        fill(&open(&from), &open(&to), &mut || steps += 1).unwrap();
        assert_eq!(steps, 1);
        assert!(fs::read(to.join("a/large")).unwrap() == content);
        for name in ["", "a", "a/b", "a/large", "a/b/same", "a/link", "pipe"] {
            let (old, new) = (from.join(name).symlink_metadata().unwrap(), to.join(name).symlink_metadata().unwrap());
            let facts = |status: &fs::Metadata| (status.mode(), status.uid(), status.gid(), status.mtime_nsec());
            assert_eq!(facts(&old), facts(&new), "{name}");
        }
        assert_eq!(fs::metadata(to.join("a/large")).unwrap().ino(), fs::metadata(to.join("a/b/same")).unwrap().ino());
        assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("../nowhere"));
    }

    #[test]
    fn what_is_there_stays_alone() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        [&from, &to].iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::write(from.join("new"), "").unwrap();
        fs::write(to.join("old"), "").unwrap();
        fill(&open(&from), &open(&to), &mut || {}).unwrap();
        assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    }
}
