// SPDX-License-Identifier: Apache-2.0
//! A file mapped for reading, as the guest's persistent memory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::RestoreError;
use crate::vmm::file_identity::FileIdentity;

/// The mapping's length is a multiple of this, as Linux wants a namespace's to be; and so is its address, so that the
/// host can back it with huge pages.
pub const GRANULE: usize = 2 << 20;

/// A file that cannot be a guest's persistent memory.
#[derive(Debug, thiserror::Error)]
#[error("pmem {}: {problem}", path.display())]
pub struct PmemError {
    /// The user's path.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: PmemProblem,
}

/// Why a file cannot be a guest's persistent memory.
#[derive(Debug, thiserror::Error)]
pub enum PmemProblem {
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// It is something else.
    #[error("a {0}, and a regular file is needed")]
    FileType(&'static str),
    /// There is nothing to map.
    #[error("the file is empty")]
    Empty,
    /// It may not be read.
    #[error("no permission to read it")]
    Permission,
    /// Somebody may change it while the guest reads it.
    #[error("in use by a writer, most likely another VM's disk")]
    InUse,
    /// The handed-in descriptor is more than what is needed.
    #[error("its descriptor allows writing")]
    Writable,
    /// Anything else that the system refused.
    #[error("cannot {what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl PmemError {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        match &self.problem {
            PmemProblem::Missing => "check the path; it counts from the current folder".into(),
            PmemProblem::FileType("block device") => "`--disk` takes block devices".into(),
            PmemProblem::FileType(_) | PmemProblem::Empty => {
                "give a file system image, as `mkfs.erofs` makes them".into()
            }
            PmemProblem::Permission => format!("`ls -l {}` tells who may", self.path.display()),
            PmemProblem::InUse => "end the VM that writes it, or give a copy".into(),
            PmemProblem::Writable => "open it for reading only".into(),
            PmemProblem::System { .. } => "a copy on another file system".into(),
        }
    }
}

/// A mapping that nothing can be written through: neither its pages nor its descriptor allow it.
#[derive(Debug)]
pub struct ReadOnlyMapping {
    /// Start and length of all that was reserved, for `munmap`.
    reserved: (usize, usize),
    address: usize,
    length: usize,
    /// Holds the lock that keeps writers away.
    file: File,
}

impl ReadOnlyMapping {
    /// Opens, locks and maps `path`.
    ///
    /// # Errors
    /// See [`PmemError`].
    pub fn open(path: &Path) -> Result<Self, PmemError> {
        // Non-blocking, so that a pipe cannot hang us; its type is looked at afterwards.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|source| {
            let problem = match (source.kind(), source.raw_os_error()) {
                (io::ErrorKind::NotFound, _) => PmemProblem::Missing,
                (io::ErrorKind::PermissionDenied, _) => PmemProblem::Permission,
                (_, Some(libc::ENXIO)) => PmemProblem::FileType("socket"),
                _ => PmemProblem::System { what: "open it", source },
            };
            PmemError { path: path.into(), problem }
        })?;
        Self::from_file(file, path)
    }

    /// Locks and maps a file that was opened before; `path` is its name in messages.
    ///
    /// # Errors
    /// See [`PmemError`].
    pub fn from_file(file: File, path: &Path) -> Result<Self, PmemError> {
        Self::check_and_map(file).map_err(|problem| PmemError { path: path.into(), problem })
    }

    fn check_and_map(file: File) -> Result<Self, PmemProblem> {
        let system = |what| move |source| PmemProblem::System { what, source };
        let metadata = file.metadata().map_err(system("examine it"))?;
        let kind = metadata.file_type();
        if !kind.is_file() {
            return Err(PmemProblem::FileType(match () {
                () if kind.is_dir() => "directory",
                () if kind.is_block_device() => "block device",
                () if kind.is_fifo() => "pipe",
                () => "special file",
            }));
        }
        // SAFETY: F_GETFL takes no pointer, and the descriptor is open.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) } {
            -1 => return Err(system("examine it")(io::Error::last_os_error())),
            flags if flags & libc::O_ACCMODE != libc::O_RDONLY => return Err(PmemProblem::Writable),
            _ => {}
        }
        lock_shared(&file).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => PmemProblem::InUse,
            _ => system("lock it")(source),
        })?;
        if metadata.len() == 0 {
            return Err(PmemProblem::Empty);
        }
        let size = usize::try_from(metadata.len()).unwrap_or(usize::MAX);
        Self::map(file, size).map_err(system("map it"))
    }

    /// Reserves whole granules of zeroes, and lays the file over their start.
    fn map(file: File, size: usize) -> io::Result<Self> {
        let too_large = || io::Error::from(io::ErrorKind::FileTooLarge);
        let length = size.checked_next_multiple_of(GRANULE).ok_or_else(too_large)?;
        let reserve = length.checked_add(GRANULE).ok_or_else(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), reserve, libc::PROT_READ, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = start.addr().next_multiple_of(GRANULE);
        // From here on dropping it unmaps everything.
        let mapping = Self { reserved: (start.expose_provenance(), reserve), address, length, file };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let place = start.with_addr(address);
        // SAFETY: `size` bytes from `address` on lie within what was just reserved, and nothing else uses that.
        let mapped = unsafe { libc::mmap(place, size, libc::PROT_READ, flags, mapping.file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapping) }
    }

    /// The file as it is now.
    pub fn identity(&self) -> Option<FileIdentity> {
        FileIdentity::of(&self.file).ok()
    }

    /// Checks that the file is what it was.
    ///
    /// # Errors
    /// [`RestoreError::File`].
    pub fn check_identity(&self, then: &FileIdentity) -> Result<(), RestoreError> {
        let now = self.identity().ok_or_else(|| RestoreError::File("the file cannot be examined".into()))?;
        let changed = |why| RestoreError::File(format!("the persistent memory is not what it was: {why}"));
        then.has_same_content(&now).map_err(changed)
    }

    /// Host address, for a memslot with `KVM_MEM_READONLY`. A multiple of 2 MiB.
    pub fn host_address(&self) -> usize {
        self.address
    }

    /// Bytes, a multiple of 2 MiB: the file, and zeroes after it.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for ReadOnlyMapping {
    fn drop(&mut self) {
        let (start, length) = self.reserved;
        // SAFETY: exactly what `map` reserved and nobody else has unmapped. Its users hold this object, so none is left.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), length) };
    }
}

/// Many may read the file as long as nobody writes it: the same lock as a disk's, so that both exclude each other.
fn lock_shared(file: &File) -> io::Result<()> {
    // SAFETY: `flock` is plain data; zero is a valid value of each field (`l_len` 0: to the end of the file).
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(libc::F_RDLCK).unwrap_or_default();
    lock.l_whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    // SAFETY: the pointer is to a live `flock`, which the call only reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[path = "image_test.rs"]
mod tests;
