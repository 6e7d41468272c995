// SPDX-License-Identifier: Apache-2.0
//! The file or block device behind a disk: opened, checked and locked before the VM runs.
//!
//! The format is raw, always: it is never guessed from content, which the guest writes.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::RestoreError;
use super::request::SECTOR;
use crate::vmm::file_identity::FileIdentity;

/// Why a disk cannot be used. Every message names the path as the user wrote it.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Nothing is there.
    #[error("disk {}: no such file; create one with: truncate -s 1G {}", .0.display(), .0.display())]
    Missing(PathBuf),
    /// A directory.
    #[error("disk {}: is a directory; a disk is a file or a block device", .0.display())]
    Directory(PathBuf),
    /// Something else that is no disk.
    #[error("disk {}: is a {kind}; a disk is a file or a block device", path.display())]
    FileType {
        /// The user's path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// No bytes.
    #[error("disk {}: is empty; give it a size with: truncate -s 1G {}", .0.display(), .0.display())]
    Empty(PathBuf),
    /// Not whole sectors.
    #[error(
        "disk {}: {size} bytes are not a multiple of 512; round up with: truncate -s %512 {}",
        path.display(), path.display()
    )]
    OddSize {
        /// The user's path.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Asked for writing, but not writable: mode, mount or device.
    #[error("disk {}: is read-only ({reason}); attach it read-only, or make it writable", path.display())]
    ReadOnly {
        /// The user's path.
        path: PathBuf,
        /// What makes it so.
        reason: &'static str,
    },
    /// Someone else uses it in a way that excludes ours.
    #[error(
        "disk {}: is in use by another VM or mounted; stop that first, or attach it read-only in both",
        .0.display()
    )]
    InUse(PathBuf),
    /// The user may not open it.
    #[error("disk {}: no permission to open it for {access}; see: ls -l {}", path.display(), path.display())]
    Permission {
        /// The user's path.
        path: PathBuf,
        /// `reading` or `reading and writing`.
        access: &'static str,
    },
    /// Too long, or not printable ASCII.
    #[error("disk {}: serial {serial:?} is not 1 to 20 printable ASCII characters", path.display())]
    Serial {
        /// The user's path.
        path: PathBuf,
        /// What was given.
        serial: String,
    },
    /// None, or more than any guest has CPUs.
    #[error("disk {}: {queues} queues; 1 to {max} are possible", path.display())]
    Queues {
        /// The user's path.
        path: PathBuf,
        /// What was given.
        queues: u16,
        /// Most.
        max: u16,
    },
    /// Anything else that the system refused.
    #[error("disk {}: cannot {what}: {source}", path.display())]
    System {
        /// The user's path.
        path: PathBuf,
        /// What was refused.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Block sizes, in bytes, as the guest is told of them (virtio 1.3 §5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Smallest unit that the disk addresses; a power of two from 512.
    pub logical: u32,
    /// Smallest unit that it writes without reading first; a power of two, at least `logical`.
    pub physical: u32,
    /// Suggested least size of a request.
    pub minimum: u32,
    /// Suggested best size of a request, 0 where none is known.
    pub optimal: u32,
}

/// An open, locked disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    read_only: bool,
    clears: bool,
    topology: Topology,
}

impl Disk {
    /// Opens and locks `path`: for one writer, or for any number of readers.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, BlockError> {
        let access = if read_only { "reading" } else { "reading and writing" };
        let found = path.metadata().map_err(|source| refused(path, access, source))?;
        check_type(path, &found)?;
        // Root may write what nobody has the right to write; whoever took the right away meant root too.
        if !read_only && found.is_file() && found.mode() & 0o222 == 0 {
            return Err(BlockError::ReadOnly { path: path.into(), reason: "its mode has no write permission" });
        }
        // Non-blocking until the type is known for sure: a pipe that takes its place must not hang us. For a block
        // device O_EXCL means: mounted or otherwise claimed by nobody.
        let exclusive = if found.is_file() || read_only { 0 } else { libc::O_EXCL };
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | exclusive;
        let file = OpenOptions::new().read(true).write(!read_only).custom_flags(flags).open(path);
        let file = file.map_err(|source| refused(path, access, source))?;
        let system = |what| move |source| BlockError::System { path: path.into(), what, source };
        let opened = file.metadata().map_err(system("examine it"))?;
        check_type(path, &opened)?;
        set_blocking(&file).map_err(system("set its flags"))?;
        lock(&file, read_only).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => BlockError::InUse(path.into()),
            _ => BlockError::System { path: path.into(), what: "lock it", source },
        })?;
        let is_file = opened.is_file();
        let size = if is_file { opened.len() } else { device_size(&file).map_err(system("find its size"))? };
        match size {
            0 => return Err(BlockError::Empty(path.into())),
            size if !size.is_multiple_of(SECTOR) => return Err(BlockError::OddSize { path: path.into(), size }),
            _ => {}
        }
        let topology = if is_file { file_topology(&opened) } else { device_topology(&file) };
        let clears = !read_only && (!is_file || can_punch(&file, size));
        Ok(Self { file, size, read_only, clears, topology })
    }

    /// The file as it is now; `None` for a block device, whose times tell nothing of its content.
    pub fn identity(&self) -> Option<FileIdentity> {
        let is_file = self.file.metadata().is_ok_and(|metadata| metadata.is_file());
        is_file.then(|| FileIdentity::of(&self.file).ok()).flatten()
    }

    /// Checks that the file is what it was.
    ///
    /// # Errors
    /// [`RestoreError::File`].
    pub fn check_identity(&self, then: &FileIdentity) -> Result<(), RestoreError> {
        let now = self.identity().ok_or_else(|| RestoreError::File("the disk is a file no more".into()))?;
        then.has_same_content(&now).map_err(|why| RestoreError::File(format!("the disk is not what it was: {why}")))
    }

    /// Bytes; fixed when the disk was opened.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether ranges can be discarded and zeroed.
    pub fn clears(&self) -> bool {
        self.clears
    }

    /// Block sizes.
    pub fn topology(&self) -> Topology {
        self.topology
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn refused(path: &Path, access: &'static str, source: io::Error) -> BlockError {
    let path = path.to_path_buf();
    match source.raw_os_error() {
        Some(libc::ENOENT) => BlockError::Missing(path),
        Some(libc::EISDIR) => BlockError::Directory(path),
        Some(libc::EACCES) => BlockError::Permission { path, access },
        Some(libc::EROFS) => BlockError::ReadOnly { path, reason: "its file system or device is" },
        Some(libc::EPERM) => BlockError::ReadOnly { path, reason: "it is immutable, see lsattr" },
        Some(libc::EBUSY | libc::ETXTBSY) => BlockError::InUse(path),
        _ => BlockError::System { path, what: "open it", source },
    }
}

fn check_type(path: &Path, metadata: &Metadata) -> Result<(), BlockError> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let path = path.to_path_buf();
    Err(if kind.is_dir() {
        BlockError::Directory(path)
    } else if kind.is_char_device() {
        BlockError::FileType { path, kind: "character device" }
    } else if kind.is_fifo() {
        BlockError::FileType { path, kind: "pipe" }
    } else {
        BlockError::FileType { path, kind: "socket" }
    })
}

/// With `O_NONBLOCK` set, `io_uring` would answer `EAGAIN` instead of waiting for the disk.
fn set_blocking(file: &File) -> io::Result<()> {
    // SAFETY: F_SETFL takes an integer and touches no memory of ours.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Locks the whole file. An open-file-description lock goes when the last copy of this descriptor does, crosses
/// network file systems, and meets the byte locks that QEMU takes.
fn lock(file: &File, read_only: bool) -> io::Result<()> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    // SAFETY: `flock` is plain data; zero is a valid value of each field (`l_len` 0: to the end of the file).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap_or_default();
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    // SAFETY: the pointer is to a live `flock`, which the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tried beyond the end, where there is nothing to lose.
fn can_punch(file: &File, size: u64) -> bool {
    let Ok(offset) = i64::try_from(size) else { return false };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the call takes integers and touches no memory of ours.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, 4096) == 0 }
}

fn file_topology(metadata: &Metadata) -> Topology {
    let block = u32::try_from(metadata.blksize()).ok().filter(|size| size.is_power_of_two());
    // A file is written by pages; more (some network file systems say 1 MiB) is only advice.
    let physical = block.unwrap_or(4096).clamp(512, 4096);
    Topology { logical: 512, physical, minimum: physical, optimal: 0 }
}

// Numbers from <linux/fs.h>; all but the size give 32 bits.
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKIOMIN: libc::c_ulong = 0x1278;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

fn device_size(file: &File) -> io::Result<u64> {
    let mut size = 0u64;
    // SAFETY: the request writes 64 bits to the pointer, which is to a live u64.
    if unsafe { libc::ioctl(file.as_raw_fd(), BLKGETSIZE64, &raw mut size) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(size)
}

fn device_topology(file: &File) -> Topology {
    let ask = |request| {
        let mut value = 0u32;
        // SAFETY: each request asked for here writes 32 bits to the pointer, which is to a live u32.
        let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) } == 0;
        done.then_some(value)
    };
    let block = |request| ask(request).filter(|size| size.is_power_of_two() && *size >= 512);
    let logical = block(BLKSSZGET).unwrap_or(512);
    let physical = block(BLKPBSZGET).unwrap_or(logical).max(logical);
    Topology {
        logical,
        physical,
        minimum: ask(BLKIOMIN).unwrap_or(0).max(physical),
        optimal: ask(BLKIOOPT).unwrap_or(0),
    }
}

#[cfg(test)]
#[path = "disk_test.rs"]
mod tests;
