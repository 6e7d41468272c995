// SPDX-License-Identifier: Apache-2.0
//! Writes a file, or a directory with all that is in it, as an archive.

use alloc::string::String;
use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;

use coracle_protocol::Pack;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, major, minor, openat, readlinkat_raw, statat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use super::format::{BLOCK, Kind, Member, encode, padding};
use super::{failed, write_all};
use crate::files::{PATH_MAX, attributes, names};

/// Bytes of data that are written at once: those of the longest packet of vsock. What `sendfile` would copy less it would
/// pay for with a packet for each page.
const CHUNK: usize = 64 << 10;

/// Writes it.
///
/// # Errors
/// What could not be read, or that nobody reads the archive any more.
pub fn pack(pack: &Pack, output: BorrowedFd<'_>) -> core::result::Result<(), String> {
    let mut packer = Packer { output, links: Vec::new(), path: pack.name.clone(), buffer: Vec::new() };
    let last = |at: &Packer<'_>, error| if error == Errno::PIPE { String::new() } else { failed(&at.path, error) };
    let outcome = packer.entry(CWD, pack.path.as_slice(), pack.follow);
    outcome.map_err(|error| match error {
        // The path that was asked for says more than its name in the archive.
        Errno::NOENT | Errno::NOTDIR => failed(&pack.path, error),
        error => last(&packer, error),
    })?;
    write_all(output, &[0; 2 * BLOCK]).map_err(|error| last(&packer, error))
}

struct Packer<'a> {
    output: BorrowedFd<'a>,
    /// Device, inode and path of each file with several names.
    links: Vec<(u64, u64, Vec<u8>)>,
    /// Where in the archive we are; left as it is where something fails.
    path: Vec<u8>,
    /// For data, as long as the longest piece so far.
    buffer: Vec<u8>,
}

impl Packer<'_> {
    fn entry(&mut self, directory: BorrowedFd<'_>, name: impl Arg + Copy, follow: bool) -> Result<()> {
        let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let status = statat(directory, name, flags)?;
        let mut member = Member {
            path: self.path.clone(),
            link: Vec::new(),
            kind: Kind::File,
            mode: status.st_mode & 0o7777,
            user: status.st_uid,
            group: status.st_gid,
            size: 0,
            time: u64::try_from(i128::from(status.st_mtime)).unwrap_or(0),
            device: (0, 0),
            attributes: Vec::new(),
        };
        let kind = FileType::from_raw_mode(status.st_mode);
        if kind != FileType::Directory && status.st_nlink > 1 {
            match self.links.iter().find(|link| (link.0, link.1) == (status.st_dev, status.st_ino)) {
                Some((_, _, first)) => {
                    member.link.clone_from(first);
                    return self.header(&Member { kind: Kind::HardLink, ..member });
                }
                None => self.links.push((status.st_dev, status.st_ino, self.path.clone())),
            }
        }
        let nofollow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let open = |more| openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC | nofollow | more, Mode::empty());
        match kind {
            FileType::RegularFile => {
                let file = open(OFlags::NONBLOCK)?;
                let size = u64::try_from(i128::from(status.st_size)).unwrap_or(0);
                self.header(&Member { size, attributes: attributes(file.as_fd()), ..member })?;
                self.data(&file, size)
            }
            FileType::Directory => {
                let directory = open(OFlags::DIRECTORY)?;
                member.path.push(b'/');
                let attributes = attributes(directory.as_fd());
                self.header(&Member { kind: Kind::Directory, attributes, ..member })?;
                self.content(&directory)
            }
            FileType::Symlink => {
                let mut target = [MaybeUninit::uninit(); PATH_MAX];
                let (target, _) = readlinkat_raw(directory, name, &mut target)?;
                self.header(&Member { kind: Kind::Symlink, link: target.to_vec(), ..member })
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let kind = if kind == FileType::BlockDevice { Kind::Block } else { Kind::Character };
                let device = (major(status.st_rdev), minor(status.st_rdev));
                self.header(&Member { kind, device, ..member })
            }
            FileType::Fifo => self.header(&Member { kind: Kind::Fifo, ..member }),
            // A socket is of no use to anybody but who made it.
            _ => Ok(()),
        }
    }

    fn content(&mut self, directory: &OwnedFd) -> Result<()> {
        for name in names(directory.as_fd())? {
            let name: &CStr = &name;
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name.to_bytes());
            match self.entry(directory.as_fd(), name, false) {
                // It has gone since.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            self.path.truncate(length);
        }
        Ok(())
    }

    fn header(&self, member: &Member) -> Result<()> {
        let mut bytes = Vec::new();
        encode(member, &mut bytes);
        write_all(self.output, &bytes)
    }

    /// As many bytes as were promised, whatever has become of the file.
    fn data(&mut self, file: &OwnedFd, size: u64) -> Result<()> {
        let mut left = size;
        let mut ended = false;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            if self.buffer.len() < count {
                self.buffer.resize(count, 0);
            }
            let piece = self.buffer.get_mut(..count).unwrap_or_default();
            let read = if ended { Ok(0) } else { rustix::io::read(file, &mut *piece) };
            let count = match read {
                Ok(0) => {
                    ended = true;
                    piece.fill(0);
                    count
                }
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            write_all(self.output, piece.get(..count).unwrap_or_default())?;
            left = left.saturating_sub(count as u64);
        }
        write_all(self.output, [0; BLOCK].get(..padding(size)).unwrap_or_default())
    }
}
