// SPDX-License-Identifier: Apache-2.0
//! The initial RAM disk: checked when opened, placed as high below the kernel's limit as it fits.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::GuestAddress;

use super::kernel::{LoadedKernel, low_ram_end};
use super::source::copy_file;
use crate::failure::Failure;
use crate::vmm::memory::Ram;

const PAGE: u64 = 4096;

/// An initrd that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use initrd {}: {problem}", name.display())]
pub struct InitrdError {
    /// The file, spelled as the user did.
    pub name: PathBuf,
    /// What is wrong with it.
    pub problem: InitrdProblem,
}

/// What is wrong with an initrd. Sizes are in bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdProblem {
    /// The file could not be opened.
    #[error("{0}")]
    Open(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("it is not a regular file")]
    NotAFile,
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It does not fit between the kernel and the end of usable memory.
    #[error(
        "it has {} KiB, and of the guest's {} MiB only {} KiB are free above the kernel",
        size.div_ceil(1024), memory >> 20, free / 1024
    )]
    TooLarge {
        /// Size of the initrd.
        size: u64,
        /// Free memory above the kernel, below the highest address that it takes an initrd at.
        free: u64,
        /// Guest memory below the 32-bit hole.
        memory: u64,
        /// Least memory that would do, or nothing if the kernel's limit is what stops it.
        needed: Option<u64>,
    },
    /// The file could not be read.
    #[error("it could not be read: {0}")]
    Read(io::Error),
}

impl InitrdError {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        match &self.problem {
            InitrdProblem::Open(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "make the file readable for this user (`chmod a+r`), or run as root".into()
            }
            InitrdProblem::Open(_) | InitrdProblem::NotAFile | InitrdProblem::Read(_) => {
                "check the path; an initrd is a cpio archive in a regular file".into()
            }
            InitrdProblem::Empty => "build the archive again, or leave `--initrd` out".into(),
            InitrdProblem::TooLarge { needed: Some(needed), .. } => {
                format!("give the guest at least {} MiB (`--memory`), plus room to unpack it", needed.div_ceil(1 << 20))
            }
            InitrdProblem::TooLarge { .. } => "make the archive smaller, or put its files on a disk (`--disk`)".into(),
        }
    }
}

impl From<InitrdError> for Failure {
    fn from(error: InitrdError) -> Self {
        Self::new(format!("cannot use initrd {}", error.name.display()), &error.problem, error.advice())
    }
}

/// An initrd file, opened and checked.
#[derive(Debug)]
pub struct Initrd {
    name: PathBuf,
    file: File,
    size: u64,
}

/// Where an initrd is in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitrdSpan {
    /// First address, page aligned.
    pub address: GuestAddress,
    /// Length in bytes.
    pub size: u64,
}

impl Initrd {
    /// Opens and checks the initrd at `path`.
    ///
    /// # Errors
    /// Missing, unreadable, not a file, or empty.
    pub fn open_path(path: &Path) -> Result<Self, InitrdError> {
        match File::open(path) {
            Ok(file) => Self::open(file, path),
            Err(error) => Err(InitrdError { name: path.into(), problem: InitrdProblem::Open(error) }),
        }
    }

    /// Checks an opened initrd. `name` is for messages only; the file is not opened again.
    ///
    /// # Errors
    /// Not a file, or empty.
    pub fn open(file: File, name: &Path) -> Result<Self, InitrdError> {
        let fail = |problem| InitrdError { name: name.into(), problem };
        let metadata = file.metadata().map_err(|error| fail(InitrdProblem::Read(error)))?;
        if !metadata.is_file() {
            return Err(fail(InitrdProblem::NotAFile));
        }
        if metadata.len() == 0 {
            return Err(fail(InitrdProblem::Empty));
        }
        Ok(Self { name: name.into(), file, size: metadata.len() })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Copies the initrd to the highest place that the kernel accepts.
    ///
    /// # Errors
    /// It does not fit, or could not be read.
    pub fn load(&self, ram: &Ram, kernel: &LoadedKernel) -> Result<InitrdSpan, InitrdError> {
        let fail = |problem| InitrdError { name: self.name.clone(), problem };
        let address = place(self.size, low_ram_end(ram), kernel).map_err(fail)?;
        let count =
            usize::try_from(self.size).map_err(|_| fail(InitrdProblem::Read(io::ErrorKind::OutOfMemory.into())))?;
        copy_file(&self.file, 0, count, ram, address).map_err(|error| fail(InitrdProblem::Read(error)))?;
        Ok(InitrdSpan { address, size: self.size })
    }
}

/// Finds the highest page-aligned place for `size` bytes, below the end of RAM and the kernel's limit.
fn place(size: u64, memory: u64, kernel: &LoadedKernel) -> Result<GuestAddress, InitrdProblem> {
    let limit = kernel.initrd_max.saturating_add(1);
    let floor = kernel.end.saturating_add(PAGE - 1) & !(PAGE - 1);
    let top = memory.min(limit) & !(PAGE - 1);
    match top.checked_sub(size).map(|address| address & !(PAGE - 1)) {
        Some(address) if address >= floor => Ok(GuestAddress(address)),
        _ => {
            let needed = floor.saturating_add(size).saturating_add(PAGE - 1) & !(PAGE - 1);
            let needed = Some(needed).filter(|needed| *needed <= limit);
            Err(InitrdProblem::TooLarge { size, free: top.saturating_sub(floor), memory, needed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::boot::kernel::{CMDLINE_MAX, Protocol};
    use crate::vmm::memory;
    use proptest::prelude::*;
    use std::io::Write;
    use vm_memory::Bytes;

    fn kernel(end: u64, initrd_max: u64) -> LoadedKernel {
        LoadedKernel {
            entry: GuestAddress(0x100_0000),
            protocol: Protocol::Linux64,
            end,
            initrd_max,
            cmdline_max: CMDLINE_MAX,
            setup_header: None,
        }
    }

    fn initrd(bytes: &[u8]) -> Result<Initrd, InitrdError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Initrd::open(file, Path::new("initrd.img"))
    }

    #[test]
    fn goes_to_the_top_of_memory() {
        let ram = memory::allocate(16 << 20).unwrap();
        let content: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let span = initrd(&content).unwrap().load(&ram, &kernel(0x20_0000, 0x7fff_ffff)).unwrap();
        assert_eq!(span, InitrdSpan { address: GuestAddress((16 << 20) - 8192), size: 5000 });
        let mut found = vec![0; 5000];
        ram.read_slice(&mut found, span.address).unwrap();
        assert!(found == content);
    }

    #[test]
    fn stays_below_the_kernels_limit() {
        let address = place(5000, 1 << 32, &kernel(0x20_0000, 0x37ff_ffff)).unwrap();
        assert_eq!(address.0, 0x3800_0000 - 8192);
    }

    #[test]
    fn bad_files_are_told_apart() {
        let empty = initrd(b"").unwrap_err();
        assert!(matches!(empty.problem, InitrdProblem::Empty));
        assert_eq!(empty.to_string(), "cannot use initrd initrd.img: the file is empty");
        let directory = Initrd::open_path(Path::new("/")).unwrap_err();
        assert!(matches!(directory.problem, InitrdProblem::NotAFile));
        let missing = Initrd::open_path(Path::new("/no/such/initrd")).unwrap_err();
        assert!(matches!(missing.problem, InitrdProblem::Open(_)));
        assert!(missing.to_string().contains("/no/such/initrd"));
    }

    #[test]
    fn too_large_tells_the_sizes() {
        let ram = memory::allocate(4 << 20).unwrap();
        let error = initrd(&vec![1; 3 << 20]).unwrap().load(&ram, &kernel(0x20_0001, 0x7fff_ffff)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("3072 KiB") && text.contains("4 MiB") && text.contains("2044 KiB"), "{text}");
        assert!(error.advice().contains("6 MiB"), "{}", error.advice());
    }

    proptest! {
        #[test]
        fn never_overlaps_anything(
            size in 1u64..1 << 33, memory in 0u64..=0xc000_0000, end in 0x10_0000u64..0xc000_0000, max in 0u64..u64::MAX
        ) {
            match place(size, memory, &kernel(end, max)) {
                Ok(GuestAddress(address)) => {
                    prop_assert_eq!(address % PAGE, 0);
                    prop_assert!(address >= end);
                    prop_assert!(address + size <= memory);
                    prop_assert!(address + size - 1 <= max);
                }
                Err(InitrdProblem::TooLarge { needed: Some(needed), .. }) => {
                    prop_assert!(place(size, needed, &kernel(end, max)).is_ok());
                }
                Err(_) => prop_assert!(end.saturating_add(size) > max.saturating_sub(2 * PAGE)),
            }
        }
    }
}
