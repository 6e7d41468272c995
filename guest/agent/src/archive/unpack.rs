// SPDX-License-Identifier: Apache-2.0
//! Reads an archive, and makes what is in it. What it may lead to is the container's own affair: this process sees nothing
//! else.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use coracle_protocol::Unpack;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fcntl_setfl,
    fsetxattr, linkat, makedev, mkdirat, mknodat, open, stat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use super::failed;
use super::format::{BLOCK, Header, Kind, Member, Pending, padding};
use crate::rootfs::make_directories;

/// Bytes that are read and written at once.
const CHUNK: usize = 256 << 10;
/// Files from this size on are written past the page cache: it costs a guest's kernel ten thousand instructions a page to
/// copy data there, and to write it from there later. Smaller ones are not worth a disk's answer each.
const DIRECT: u64 = 64 << 10;
/// What such writes begin at multiples of, in memory and in the file.
const PAGE: usize = 4096;

/// Makes what comes from `input`.
///
/// # Errors
/// What could not be made, or is no archive.
pub fn unpack(unpack: &Unpack, input: BorrowedFd<'_>) -> core::result::Result<(), String> {
    let place = Place::find(unpack)?;
    let mut unpacker = Unpacker { input, keep_owner: unpack.keep_owner, times: Vec::new(), buffer: Vec::new() };
    let mut pending = Pending::default();
    loop {
        let mut block = [0; BLOCK];
        read(input, &mut block)?;
        match pending.header(&block)? {
            Header::End => break,
            Header::Before(flag, length) => {
                let mut data = vec![0; length];
                read(input, &mut data)?;
                unpacker.skip(padding(length as u64) as u64)?;
                pending.take(flag, &data)?;
            }
            Header::Member(member) => unpacker.make(&place, &member)?,
        }
    }
    // What is still there is padding; who writes it is not to find a closed pipe.
    while matches!(rustix::io::read(input, &mut unpacker.piece(PAGE)[..]), Ok(1..) | Err(Errno::INTR)) {}
    // Directories last: what was made in them has changed their times.
    for (path, time) in unpacker.times.iter().rev() {
        set_time(path, *time).map_err(|error| failed(path, error))?;
    }
    Ok(())
}

/// Where members go.
struct Place {
    /// Below this.
    base: Vec<u8>,
    /// Without their first name, which is that of the one thing that is copied.
    renamed: bool,
}

impl Place {
    /// As `cp(1)` and Docker find it: into a directory that is there, else under the name that was said.
    fn find(unpack: &Unpack) -> core::result::Result<Self, String> {
        let path = &unpack.path;
        let kind = stat(path.as_slice()).map(|status| FileType::from_raw_mode(status.st_mode));
        let shown = || String::from_utf8_lossy(path);
        match (kind, &unpack.name) {
            (Ok(FileType::Directory), _) if unpack.content => Ok(Self { base: path.clone(), renamed: true }),
            (Ok(FileType::Directory), Some(name)) => Ok(Self { base: [path, &b"/"[..], name].concat(), renamed: true }),
            (Ok(FileType::Directory), None) => Ok(Self { base: path.clone(), renamed: false }),
            (Ok(_), Some(_)) if !unpack.directory && !path.ends_with(b"/") => {
                Ok(Self { base: path.clone(), renamed: true })
            }
            (Ok(_), _) => Err(format!("{} is no directory", shown())),
            (Err(Errno::NOENT), Some(_)) if unpack.directory || !path.ends_with(b"/") => {
                let bare = path.strip_suffix(b"/").unwrap_or(path);
                let end = bare.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                let parent = bare.get(..end.max(1)).unwrap_or_default();
                stat(parent).map_err(|error| failed(parent, error))?;
                Ok(Self { base: bare.to_vec(), renamed: true })
            }
            (Err(error), _) => Err(failed(path, error)),
        }
    }

    fn of(&self, name: &[u8]) -> core::result::Result<Vec<u8>, String> {
        let mut path = self.base.clone();
        let parts = name.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
        for part in parts.skip(usize::from(self.renamed)) {
            if part == b".." {
                return Err(format!("{} leads out of the archive", String::from_utf8_lossy(name)));
            }
            path.push(b'/');
            path.extend_from_slice(part);
        }
        Ok(path)
    }
}

struct Unpacker<'a> {
    input: BorrowedFd<'a>,
    keep_owner: bool,
    /// Directories, and when they were last changed.
    times: Vec<(Vec<u8>, u64)>,
    /// For data, as long as the longest piece so far.
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn make(&mut self, place: &Place, member: &Member) -> core::result::Result<(), String> {
        let path = place.of(&member.path)?;
        let link = if member.kind == Kind::HardLink { place.of(&member.link)? } else { member.link.clone() };
        let mut outcome = self.make_at(&path, member, &link);
        if matches!(outcome, Err(Errno::NOENT)) {
            // Not every archive has the directories of its files.
            let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
            make_directories(path.get(..end).unwrap_or_default());
            outcome = self.make_at(&path, member, &link);
        }
        let file = outcome.map_err(|error| failed(&path, error))?;
        if let Some(file) = &file {
            self.copy(file, member.size).map_err(|why| format!("{}: {why}", String::from_utf8_lossy(&path)))?;
        }
        self.finish(&path, member, file.as_ref()).map_err(|error| failed(&path, error))
    }

    /// Makes it, without its content; gives the file where there is to be some.
    fn make_at(&self, path: &[u8], member: &Member, link: &[u8]) -> Result<Option<OwnedFd>> {
        if member.kind == Kind::Directory {
            return match mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
                // Another name for a directory is one.
                Err(Errno::EXIST) if is_directory(path) => Ok(None),
                other => other.map(|()| None),
            };
        }
        match unlinkat(CWD, path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let mode = Mode::from_raw_mode(0o600);
        let device = makedev(member.device.0, member.device.1);
        match member.kind {
            Kind::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                return open(path, flags, mode).map(Some);
            }
            Kind::HardLink => linkat(CWD, link, CWD, path, AtFlags::empty()),
            Kind::Symlink => symlinkat(link, CWD, path),
            Kind::Character => mknodat(CWD, path, FileType::CharacterDevice, mode, device),
            Kind::Block => mknodat(CWD, path, FileType::BlockDevice, mode, device),
            Kind::Fifo => mknodat(CWD, path, FileType::Fifo, mode, 0),
            Kind::Directory => Ok(()),
        }
        .map(|()| None)
    }

    fn finish(&mut self, path: &[u8], member: &Member, file: Option<&OwnedFd>) -> Result<()> {
        if member.kind == Kind::HardLink {
            return Ok(());
        }
        let (user, group) = if self.keep_owner { (member.user, member.group) } else { (0, 0) };
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        chownat(CWD, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
        if member.kind != Kind::Symlink {
            chmodat(CWD, path, Mode::from_raw_mode(member.mode), AtFlags::empty())?;
        }
        for (name, value) in &member.attributes {
            if let Some(file) = file {
                // Not every file system has them, and not all of them.
                let _ = fsetxattr(file, name.as_slice(), value, XattrFlags::empty());
            }
        }
        match member.kind {
            Kind::Directory => self.times.push((path.to_vec(), member.time)),
            _ => set_time(path, member.time)?,
        }
        Ok(())
    }

    fn copy(&mut self, file: &OwnedFd, size: u64) -> core::result::Result<(), String> {
        let mut direct = size >= DIRECT && fcntl_setfl(file, OFlags::DIRECT).is_ok();
        let (input, mut left) = (self.input, size);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let piece = self.piece(count);
            read(input, piece)?;
            write(file, piece, &mut direct).map_err(|error| failed(b"its content", error))?;
            left = left.saturating_sub(count as u64);
        }
        self.skip(padding(size) as u64)
    }

    /// Room for so many bytes, from the beginning of a page on.
    fn piece(&mut self, count: usize) -> &mut [u8] {
        if self.buffer.len() < count + PAGE {
            self.buffer = vec![0; count + PAGE];
        }
        let start = self.buffer.as_ptr().align_offset(PAGE);
        self.buffer.get_mut(start..start + count).unwrap_or_default()
    }

    fn skip(&self, count: u64) -> core::result::Result<(), String> {
        read(self.input, &mut vec![0; usize::try_from(count).unwrap_or(0)])
    }
}

fn read(input: BorrowedFd<'_>, mut buffer: &mut [u8]) -> core::result::Result<(), String> {
    while !buffer.is_empty() {
        match rustix::io::read(input, &mut *buffer) {
            Ok(0) => return Err("the archive ends in the middle".into()),
            Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(format!("the archive cannot be read: {error}")),
        }
    }
    Ok(())
}

/// Writes all of a piece that begins with a page; past the page cache as long as `direct` says so.
fn write(file: &OwnedFd, mut bytes: &[u8], direct: &mut bool) -> Result<()> {
    while !bytes.is_empty() {
        let whole = bytes.len() - bytes.len() % PAGE;
        let piece = if *direct && whole > 0 { bytes.get(..whole).unwrap_or_default() } else { bytes };
        match rustix::io::write(file, piece) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // The end of a file is not of whole pages; and not every file system that lets it be asked for can do it.
            Err(Errno::INVAL) if *direct => {
                *direct = false;
                fcntl_setfl(file, OFlags::empty())?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_directory(path: &[u8]) -> bool {
    statat(CWD, path, AtFlags::empty())
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Directory)
}

fn set_time(path: &[u8], time: u64) -> Result<()> {
    let time = Timespec { tv_sec: i64::try_from(time).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}
