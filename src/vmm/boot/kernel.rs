// SPDX-License-Identifier: Apache-2.0
//! A kernel file of any supported format, checked before a VM exists and loaded when it does.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::bzimage::{BzImage, SetupHeader};
use super::elf::ElfKernel;
use super::kernel_error::{KernelError, KernelProblem};
use super::source::Source;
use super::symbols::Symbols;
use crate::vmm::layout::RAM_HOLE_START;
use crate::vmm::memory::Ram;

/// Bytes read at once from the start: all headers of a bzImage, and all program headers of every ELF kernel seen.
const HEAD_SIZE: u64 = 4096;
/// End of the longest bzImage setup header.
const SETUP_HEADER_END: u16 = 0x290;

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Long mode with paging on, address of `boot_params` in RSI (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot
    /// Protocol").
    Linux64,
    /// 32-bit protected mode without paging, address of `hvm_start_info` in EBX (Xen "x86/HVM direct boot ABI").
    Pvh,
}

/// Which boot protocol to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProtocolChoice {
    /// The 64-bit protocol for Linux, since it has fewer instructions to execute; PVH for other kernels that offer it.
    #[default]
    Auto,
    /// The 64-bit boot protocol.
    Linux64,
    /// PVH; an error if the kernel has no PVH entry point.
    Pvh,
}

/// A kernel file, opened and completely checked.
///
/// An unpacked bzImage holds tens of megabytes: drop it, or [`release`](Self::release) them, once it has been loaded.
#[derive(Debug)]
pub struct KernelImage {
    name: PathBuf,
    format: Format,
    protocol: Protocol,
    entry: u64,
}

#[derive(Debug)]
enum Format {
    Elf(ElfKernel),
    BzImage(BzImage),
}

/// A kernel in guest memory.
#[derive(Debug, Clone)]
pub struct LoadedKernel {
    /// Where the first vCPU starts.
    pub entry: GuestAddress,
    /// How it starts there.
    pub protocol: Protocol,
    /// First address behind everything that the kernel uses before it knows its memory: segments, bss, and the buffer of
    /// its own decompressor.
    pub end: u64,
    /// Last address that an initrd may occupy.
    pub initrd_max: u64,
    /// Longest command line in bytes, without its NUL.
    pub cmdline_max: usize,
    /// Setup header of a bzImage, which is to be handed back to it.
    pub(super) setup_header: Option<SetupHeader>,
}

/// Longest command line that an x86 kernel takes (`COMMAND_LINE_SIZE` less the NUL), where no header says otherwise.
pub const CMDLINE_MAX: usize = 2047;

impl KernelImage {
    /// Opens and checks the kernel at `path`.
    ///
    /// # Errors
    /// Says why the file cannot be booted.
    pub fn open_path(path: &Path, choice: ProtocolChoice) -> Result<Self, KernelError> {
        match File::open(path) {
            Ok(file) => Self::open(file, path, choice),
            Err(error) => Err(KernelError { name: path.into(), problem: KernelProblem::Open(error) }),
        }
    }

    /// Checks an opened kernel. `name` is for messages only; the file is not opened again.
    ///
    /// # Errors
    /// Says why the file cannot be booted.
    pub fn open(file: File, name: &Path, choice: ProtocolChoice) -> Result<Self, KernelError> {
        let source = file_source(file);
        let image = source.and_then(|source| Self::parse(source, name, choice));
        image.map_err(|problem| KernelError { name: name.into(), problem })
    }

    /// Checks a kernel that is in memory.
    ///
    /// # Errors
    /// Says why it cannot be booted.
    pub fn from_bytes(bytes: Vec<u8>, name: &Path, choice: ProtocolChoice) -> Result<Self, KernelError> {
        let image = Self::parse(Source::Memory(bytes), name, choice);
        image.map_err(|problem| KernelError { name: name.into(), problem })
    }

    fn parse(source: Source, name: &Path, choice: ProtocolChoice) -> Result<Self, KernelProblem> {
        if source.length() == 0 {
            return Err(KernelProblem::Empty);
        }
        let head = source.head(HEAD_SIZE)?;
        let format = if ElfKernel::recognises(&head) {
            Format::Elf(ElfKernel::parse(source, &head)?)
        } else if BzImage::recognises(&head) {
            Format::BzImage(BzImage::parse(source, &head)?)
        } else {
            return Err(not_a_kernel(&head, name));
        };
        let (protocol, entry) = format.entry(choice)?;
        Ok(Self { name: name.into(), format, protocol, entry })
    }

    /// The file's name as the user spelled it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// One line that says what the kernel is.
    pub fn description(&self) -> String {
        let protocol = match self.protocol {
            Protocol::Linux64 => "64-bit boot protocol",
            Protocol::Pvh => "PVH",
        };
        let format = match &self.format {
            Format::Elf(_) => "ELF".to_owned(),
            Format::BzImage(image) => image.description(),
        };
        format!("{format}, {protocol}, entry {:#x}, ends at {:#x}", self.entry, self.end())
    }

    /// First address behind what the kernel occupies before it knows its memory.
    fn end(&self) -> u64 {
        match &self.format {
            Format::Elf(elf) => elf.end(),
            Format::BzImage(image) => image.end(),
        }
    }

    /// Gives up the contents of an unpacked bzImage. Only what has been loaded already can be used afterwards.
    pub fn release(&mut self) {
        if let Format::BzImage(image) = &mut self.format {
            image.release();
        }
    }

    /// Has all bytes be copied by [`KernelImage::load`], none mapped: for guest memory that others see by its file.
    pub fn do_not_map(&mut self) {
        if let Format::Elf(elf) = &mut self.format {
            elf.do_not_map();
        }
    }

    /// Function symbols of the kernel, if its file has any. The kernel inside a bzImage has been stripped.
    ///
    /// # Errors
    /// The symbol table is damaged or could not be read.
    pub fn symbols(&self) -> Result<Option<Symbols>, KernelError> {
        let found = match &self.format {
            Format::Elf(elf) => Symbols::from_elf(elf),
            Format::BzImage(_) => Ok(None),
        };
        found.map_err(|problem| KernelError { name: self.name.clone(), problem })
    }

    /// Copies the kernel to `ram`, which must be fresh: bss is expected to be zero already.
    ///
    /// # Errors
    /// The memory is too small, or the file could not be read.
    pub fn load(&self, ram: &Ram) -> Result<LoadedKernel, KernelError> {
        self.load_image(ram).map_err(|problem| KernelError { name: self.name.clone(), problem })
    }

    fn load_image(&self, ram: &Ram) -> Result<LoadedKernel, KernelProblem> {
        let end = self.end();
        if end > low_ram_end(ram) {
            return Err(KernelProblem::Memory { needed: end, given: ram.iter().map(GuestMemoryRegion::len).sum() });
        }
        let header = match &self.format {
            Format::Elf(elf) => elf.load(ram).map(|()| None)?,
            Format::BzImage(image) => image.load(ram).map(|()| Some(image.header().clone()))?,
        };
        Ok(LoadedKernel {
            entry: GuestAddress(self.entry),
            protocol: self.protocol,
            end,
            initrd_max: header.as_ref().map_or(RAM_HOLE_START - 1, SetupHeader::initrd_max),
            cmdline_max: header.as_ref().map_or(CMDLINE_MAX, SetupHeader::cmdline_max),
            setup_header: header,
        })
    }
}

impl Format {
    fn elf(&self) -> Option<&ElfKernel> {
        match self {
            Self::Elf(elf) => Some(elf),
            Self::BzImage(image) => image.elf(),
        }
    }

    /// Decides the protocol and finds the entry point. The kernel's end is checked against the address space here.
    fn entry(&self, choice: ProtocolChoice) -> Result<(Protocol, u64), KernelProblem> {
        let Some(elf) = self.elf() else {
            return match (self, choice) {
                (Self::BzImage(image), ProtocolChoice::Auto | ProtocolChoice::Linux64) => {
                    Ok((Protocol::Linux64, image.own_entry()?))
                }
                _ => Err(KernelProblem::NoPvhEntry),
            };
        };
        for (index, segment) in elf.segments().iter().enumerate() {
            if segment.end() > RAM_HOLE_START {
                let reason = "reaches beyond 3 GiB, where devices are";
                return Err(KernelProblem::Segment { index, address: segment.address, size: segment.size, reason });
            }
        }
        let pvh = match choice {
            ProtocolChoice::Linux64 => None,
            ProtocolChoice::Auto if elf.is_linux() => None,
            ProtocolChoice::Auto => elf.pvh_entry()?,
            ProtocolChoice::Pvh => Some(elf.pvh_entry()?.ok_or(KernelProblem::NoPvhEntry)?),
        };
        match pvh {
            Some(entry) => Ok((Protocol::Pvh, entry)),
            None => Ok((Protocol::Linux64, elf.linux_entry()?)),
        }
    }
}

/// End of the RAM that starts at address 0.
pub(super) fn low_ram_end(ram: &Ram) -> u64 {
    ram.find_region(GuestAddress(0)).map_or(0, GuestMemoryRegion::len)
}

fn file_source(file: File) -> Result<Source, KernelProblem> {
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() {
        let fixed = metadata.permissions().readonly();
        return Ok(Source::File { file, length: metadata.len(), fixed });
    }
    Err(KernelProblem::NotAFile(if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_block_device() {
        "a disk"
    } else {
        "a special file"
    }))
}

/// Says what a file that is no x86 kernel looks like.
fn not_a_kernel(head: &[u8], name: &Path) -> KernelProblem {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
    // Linux `Documentation/arch/arm64/booting.rst` and `.../riscv/boot-image-header.rst`.
    if at(0x38, b"ARM\x64") {
        return KernelProblem::Architecture("64-bit ARM (an aarch64 Image)".into());
    }
    if at(0x38, b"RSC\x05") {
        return KernelProblem::Architecture("RISC-V (an Image)".into());
    }
    if at(0x24, b"\x18\x28\x6f\x01") {
        return KernelProblem::Architecture("32-bit ARM (a zImage)".into());
    }
    // Headers are the first to be lost when a file is truncated, and the whole of it can be shorter than they are.
    if head.len() < usize::from(SETUP_HEADER_END) && (at(0, b"MZ") || at(510, b"\x55\xaa")) {
        let (needed, length) = (u64::from(SETUP_HEADER_END), head.len() as u64);
        return KernelProblem::Truncated { what: "bzImage setup header", needed, length };
    }
    KernelProblem::NotAKernel(if at(0, b"\x1f\x8b") && name.extension() == Some(OsStr::new("gz")) {
        "a gzip file (unpack it first)"
    } else if at(0, b"\x1f\x8b") {
        "a gzip file (a kernel for another architecture, or unpack it first)"
    } else if at(0, b"\xfd7zXZ\0") {
        "an xz file (unpack it first)"
    } else if at(0, b"\x28\xb5\x2f\xfd") {
        "a zstd file (unpack it first)"
    } else if at(0, b"07070") {
        "a cpio archive, such as an initramfs"
    } else if at(0, b"QFI\xfb") {
        "a qcow2 disk image"
    } else if at(0, b"!<arch>") {
        "a package or library archive"
    } else if at(0, b"MZ") {
        "an EFI or Windows program"
    } else if at(510, b"\x55\xaa") {
        "a boot sector or disk image"
    } else if at(0, b"#!") {
        "a script"
    } else if head.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
        "a text file"
    } else {
        "data of an unknown kind"
    })
}

#[cfg(test)]
#[path = "kernel_test.rs"]
mod tests;
