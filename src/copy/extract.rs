// SPDX-License-Identifier: Apache-2.0
//! What a container's agent sends, as files of the host.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, linkat,
    mkdirat, open, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::erofs::tar::{Entry, Kind, ReadError, TarReader};
use crate::erofs::{FileType, Time};

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// Where files go, and how.
#[derive(Clone, Debug)]
pub struct Extraction {
    /// A directory that is there, or the path that the one thing of the archive is to have.
    pub to: PathBuf,
    /// Name of that one thing in a directory; `None` where what is in it is meant, rather than itself.
    pub name: Option<OsString>,
    /// Whether files belong to whom the archive says, and keep all of their mode.
    pub archive: bool,
}

/// What is not made: names within the archive, and why.
pub type Left = Vec<(PathBuf, &'static str)>;

/// Makes files of the archive that comes from `source`, in which everything begins with one name; gives what was left out.
///
/// # Errors
/// The archive is none, or the host's file system refuses.
pub fn extract(source: impl Read, how: &Extraction) -> io::Result<Left> {
    let mut reader = TarReader::new(source);
    let mut place: Option<Place> = None;
    let (mut left, mut directories) = (Left::new(), Vec::new());
    while let Some(entry) = reader.next_entry().map_err(broken)? {
        let names = names(&entry.path)?;
        let place = match &mut place {
            Some(place) => place,
            none => none.insert(Place::find(how, entry.kind == Kind::File(FileType::Directory))?),
        };
        let what = |error: io::Error| {
            let path: PathBuf = names.iter().collect();
            io::Error::new(error.kind(), format!("{}: {error}", how.to.join(path).display()))
        };
        match place.make(&names, &entry, &mut reader, how.archive).map_err(what)? {
            Made::Directory(status) => directories.push(status),
            Made::Other => {}
            Made::Nothing(why) => left.push((names.iter().collect(), why)),
        }
    }
    let Some(place) = place else {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "the archive is empty"));
    };
    // Last, since files that are made in a directory change its time, and a mode may forbid to make them.
    for status in directories.iter().rev() {
        place.finish_directory(status, how.archive)?;
    }
    Ok(left)
}

/// What became of an entry.
enum Made {
    Directory(DirectoryStatus),
    Other,
    Nothing(&'static str),
}

struct DirectoryStatus {
    names: Vec<OsString>,
    mode: u16,
    owner: (u32, u32),
    time: Time,
}

/// The directory in which all happens, and the name in it that stands for the archive's first.
struct Place {
    root: OwnedFd,
    top: Option<OsString>,
}

impl Place {
    /// As `cp(1)` and Docker find it.
    fn find(how: &Extraction, is_directory: bool) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let at = |path: &Path| open(path, flags, Mode::empty()).map_err(io::Error::from);
        let wants_directory = how.to.as_os_str().as_bytes().ends_with(b"/");
        match fs::metadata(&how.to) {
            Ok(status) if status.is_dir() => Ok(Self { root: at(&how.to)?, top: how.name.clone() }),
            Ok(_) if is_directory || wants_directory => {
                Err(io::Error::new(ErrorKind::NotADirectory, format!("{} is no directory", how.to.display())))
            }
            outcome => {
                // A link to a file stands for it.
                let to = if outcome.is_ok() { fs::canonicalize(&how.to)? } else { how.to.clone() };
                if let Err(error) = outcome
                    && (error.kind() != ErrorKind::NotFound || (wants_directory && !is_directory))
                {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", how.to.display())));
                }
                let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let root = at(parent)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", parent.display())))?;
                let name = to.file_name().ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "it has no name"))?;
                Ok(Self { root, top: Some(name.to_owned()) })
            }
        }
    }

    /// The directory that something is in, and its name there; links on the way are not followed.
    fn find_parent(&self, names: &[OsString]) -> io::Result<(OwnedFd, OsString)> {
        let rest = names.get(1..).unwrap_or_default();
        let path: Vec<&OsStr> = self.top.iter().chain(rest).map(OsString::as_os_str).collect();
        let (name, parents) = match path.split_last() {
            Some((name, parents)) => (name.to_os_string(), parents.iter().collect::<PathBuf>()),
            None => (".".into(), PathBuf::new()),
        };
        let parents = if parents.as_os_str().is_empty() { Path::new(".") } else { &parents };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.root, parents, flags, Mode::empty(), inside) {
            Ok(parent) => Ok((parent, name)),
            Err(Errno::LOOP) => Err(io::Error::new(ErrorKind::InvalidInput, "a link is in the way")),
            Err(error) => Err(error.into()),
        }
    }

    fn make<R: Read>(
        &self,
        names: &[OsString],
        entry: &Entry,
        reader: &mut TarReader<R>,
        archive: bool,
    ) -> io::Result<Made> {
        if matches!(entry.kind, Kind::File(FileType::Character | FileType::Block | FileType::Fifo)) {
            return Ok(Made::Nothing("it is a device or a pipe"));
        }
        let (parent, name) = self.find_parent(names)?;
        if entry.kind == Kind::File(FileType::Directory) {
            match mkdirat(&parent, &name, Mode::from_raw_mode(0o700)) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    let there = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    if rustix::fs::FileType::from_raw_mode(there.st_mode) != rustix::fs::FileType::Directory {
                        return Err(io::Error::new(ErrorKind::NotADirectory, "there is a file of that name"));
                    }
                    // That of the user is as it is; it is not the container's.
                    if name == "." {
                        return Ok(Made::Other);
                    }
                }
                Err(error) => return Err(error.into()),
            }
            let (names, owner) = (names.to_vec(), (entry.uid, entry.gid));
            return Ok(Made::Directory(DirectoryStatus { names, mode: entry.mode, owner, time: entry.mtime }));
        }
        match unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match entry.kind {
            Kind::HardLink => {
                let (other_parent, other) = self.find_parent(&self::names(&entry.link)?)?;
                linkat(&other_parent, &other, &parent, &name, AtFlags::empty())?;
            }
            Kind::File(FileType::Symlink) => {
                symlinkat(OsStr::from_bytes(&entry.link), &parent, &name)?;
                if archive {
                    let (user, group) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
                    chownat(&parent, &name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                utimensat(&parent, &name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            Kind::File(_) => {
                if entry.pieces.is_some() {
                    return Err(io::Error::new(ErrorKind::InvalidData, "a sparse file, which the agent does not send"));
                }
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut file = File::from(openat(&parent, &name, flags, Mode::from_raw_mode(0o600))?);
                copy(reader, &mut file, entry.size)?;
                if archive {
                    fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
                }
                fchmod(&file, mode(entry.mode, archive))?;
                futimens(file.as_fd(), &times(entry.mtime))?;
            }
        }
        Ok(Made::Other)
    }

    fn finish_directory(&self, status: &DirectoryStatus, archive: bool) -> io::Result<()> {
        let (parent, name) = self.find_parent(&status.names)?;
        // Opened without following, so that nothing but the directory itself is changed.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&parent, &name, flags, Mode::empty())?;
        if archive {
            let (user, group) = status.owner;
            fchown(&directory, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        futimens(&directory, &times(status.time))?;
        Ok(fchmod(&directory, mode(status.mode, archive))?)
    }
}

/// Set-user-ID bits of a stranger's file would be the user's own.
fn mode(mode: u16, archive: bool) -> Mode {
    Mode::from_raw_mode((mode & if archive { 0o7777 } else { 0o1777 }).into())
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn copy<R: Read>(reader: &mut TarReader<R>, file: &mut File, size: u64) -> io::Result<()> {
    let (mut buffer, mut left) = (vec![0; CHUNK], size);
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let piece = buffer.get_mut(..count).unwrap_or_default();
        reader.read_data(piece).map_err(broken)?;
        file.write_all(piece)?;
        left -= count as u64;
    }
    Ok(())
}

/// Names on the way to an entry; `..` and absolute paths are refused, whatever they lead to.
fn names(path: &[u8]) -> io::Result<Vec<OsString>> {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let name = |part: Component<'_>| match part {
        Component::Normal(name) if !name.as_bytes().contains(&0) => Some(Ok(name.to_owned())),
        Component::CurDir => None,
        _ => Some(Err(io::Error::new(ErrorKind::InvalidData, "a name in the archive leads out of it"))),
    };
    path.components().filter_map(name).collect()
}

fn broken(error: ReadError) -> io::Error {
    match error {
        ReadError::Stream(error) => error,
        ReadError::Tar(problem) => io::Error::new(ErrorKind::InvalidData, problem.to_string()),
    }
}

#[cfg(test)]
#[path = "extract_test.rs"]
mod tests;
