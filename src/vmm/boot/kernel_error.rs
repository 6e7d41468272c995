// SPDX-License-Identifier: Apache-2.0
//! Why a file cannot be booted, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::decompress::Compression;
use crate::failure::Failure;

/// A kernel that cannot be booted: which file, why, and through [`advice`](Self::advice) what to try.
#[derive(Debug, thiserror::Error)]
#[error("cannot boot kernel {}: {problem}", name.display())]
pub struct KernelError {
    /// The file, spelled as the user did.
    pub name: PathBuf,
    /// What is wrong with it.
    pub problem: KernelProblem,
}

impl KernelError {
    /// The next thing to try.
    pub fn advice(&self) -> String {
        self.problem.advice()
    }
}

impl From<KernelError> for Failure {
    fn from(error: KernelError) -> Self {
        Self::new(format!("cannot boot kernel {}", error.name.display()), &error.problem, error.advice())
    }
}

/// What is wrong with a kernel file. Sizes and addresses are in bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelProblem {
    /// The file could not be opened.
    #[error("{0}")]
    Open(io::Error),
    /// It is a directory, a device or a pipe.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It is some other kind of file.
    #[error("it is {0}, not a Linux kernel for x86-64")]
    NotAKernel(&'static str),
    /// It is a kernel or program for another processor.
    #[error("it is for {0}, and this machine runs x86-64")]
    Architecture(String),
    /// An ELF file that cannot be a kernel.
    #[error("its ELF header is unusable: {0}")]
    ElfHeader(&'static str),
    /// A bzImage whose setup header contradicts itself.
    #[error("its bzImage header is unusable: {0}")]
    BzImageHeader(&'static str),
    /// The headers speak of bytes beyond the end of the file.
    #[error("the file ends at byte {length}, but its {what} reaches to byte {needed}")]
    Truncated {
        /// What lies beyond the end.
        what: &'static str,
        /// Where the file should at least end.
        needed: u64,
        /// Where it does end.
        length: u64,
    },
    /// A segment's range makes no sense.
    #[error("segment {index} at {address:#x} with {size:#x} bytes {reason}")]
    Segment {
        /// Number of the program header, from 0.
        index: usize,
        /// Physical address.
        address: u64,
        /// Size in memory.
        size: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The entry point lies outside the kernel.
    #[error("its {which} entry point {address:#x} lies outside all of its segments")]
    EntryPoint {
        /// Which boot protocol's entry point.
        which: &'static str,
        /// The entry point.
        address: u64,
    },
    /// PVH was asked for, but the kernel has no PVH entry point.
    #[error("PVH boot was asked for, but it has no PVH entry point")]
    NoPvhEntry,
    /// The kernel enters 64-bit mode only by itself.
    #[error("it has no 64-bit entry point")]
    No64BitEntry,
    /// The compressed kernel inside a bzImage could not be unpacked.
    #[error("its {compression} payload cannot be unpacked: {reason}")]
    Unpack {
        /// Format of the payload.
        compression: Compression,
        /// What the decompressor found.
        reason: String,
    },
    /// The guest's memory is too small for the kernel.
    #[error("it needs {} MiB of memory, and the guest has {} MiB", needed.div_ceil(1 << 20), given >> 20)]
    Memory {
        /// Least memory that would do.
        needed: u64,
        /// The guest's memory.
        given: u64,
    },
    /// The file could not be read.
    #[error("it could not be read: {0}")]
    Read(#[from] io::Error),
}

impl KernelProblem {
    fn advice(&self) -> String {
        let whole = "copy or build the file again, and compare its checksum with the original's";
        match self {
            Self::Open(error) if error.kind() == io::ErrorKind::NotFound => {
                "check the path; kernels are usually under /boot (vmlinuz-*) or built with `make vmlinux`".into()
            }
            Self::Open(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "make the file readable for this user (`chmod a+r`), or run as root".into()
            }
            Self::Open(_) | Self::Read(_) => "check that the file can be read, for example with `sha256sum`".into(),
            Self::NotAFile(_) | Self::NotAKernel(_) => {
                "give the path of a kernel: an uncompressed `vmlinux` or a `bzImage` (Debian calls it vmlinuz)".into()
            }
            Self::Empty | Self::ElfHeader(_) | Self::BzImageHeader(_) | Self::Truncated { .. } => whole.into(),
            Self::Unpack { .. } => whole.into(),
            Self::Architecture(_) => "give a kernel built for x86-64 (`make ARCH=x86_64`)".into(),
            Self::Segment { .. } | Self::EntryPoint { .. } => {
                "give a kernel linked to run from 1 MiB up, as `make vmlinux` makes it".into()
            }
            Self::NoPvhEntry => "build the kernel with CONFIG_PVH=y, or use the Linux boot protocol".into(),
            Self::No64BitEntry => "build the kernel with CONFIG_64BIT=y, version 3.8 or later".into(),
            Self::Memory { needed, .. } => {
                format!("give the guest at least {} MiB (`--memory`), plus room to run", needed.div_ceil(1 << 20))
            }
        }
    }
}
