// SPDX-License-Identifier: Apache-2.0
//! bzImage kernels: unpacked here, on the host, so that no guest spends its boot on decompression.
//!
//! The payload is the compressed `vmlinux`. It is entered at the address that it is linked for, so the relocations that
//! follow it in the payload are not needed. A payload of a format that we do not know is left to the kernel's own
//! decompressor. Field offsets: Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use linux_loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestAddress};

use super::decompress::{Compression, decompress};
use super::elf::{ElfKernel, u16_at, within};
use super::kernel::CMDLINE_MAX;
use super::kernel_error::KernelProblem;
use super::source::Source;
use crate::vmm::layout::{HIGH_RAM_START, RAM_HOLE_START};
use crate::vmm::memory::Ram;

/// Where the setup header starts in the file and in `boot_params`.
pub(super) const SETUP_HEADER: usize = 0x1f1;
const SECTOR: u64 = 512;
/// `loadflags`: the kernel runs from 1 MiB (bzImage rather than zImage).
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// `xloadflags`: kernel, command line and initrd may lie above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// Offset of the 64-bit entry point in the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// First boot protocol version with `payload_offset` (Linux 2.6.26).
const VERSION_PAYLOAD: u16 = 0x0208;
/// First boot protocol version with `xloadflags` (Linux 3.8).
const VERSION_XLOADFLAGS: u16 = 0x020c;

/// The setup header of a bzImage.
#[derive(Debug, Clone)]
pub(super) struct SetupHeader(setup_header);

impl SetupHeader {
    /// Reads the header from the start of the file. Fields that this kernel's header does not have are zero.
    fn parse(head: &[u8]) -> Result<Self, KernelProblem> {
        // boot.rst: the header ends where the jump instruction at 0x200 leads to.
        let jump = head.get(0x201).copied().ok_or(KernelProblem::BzImageHeader("it is cut short"))?;
        let end = 0x202 + usize::from(jump);
        let mut header = setup_header::default();
        let room = header.as_mut_slice();
        let length = room.len().min(end.saturating_sub(SETUP_HEADER));
        let found = head.get(SETUP_HEADER..).and_then(|rest| rest.get(..length));
        match (found, room.get_mut(..length)) {
            (Some(found), Some(room)) => room.copy_from_slice(found),
            _ => return Err(KernelProblem::BzImageHeader("it is cut short")),
        }
        Ok(Self(header))
    }

    /// The header as the kernel wants it back.
    pub fn raw(&self) -> setup_header {
        self.0
    }

    /// Last address that an initrd may occupy.
    pub fn initrd_max(&self) -> u64 {
        if self.0.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
            RAM_HOLE_START - 1
        } else {
            u64::from(self.0.initrd_addr_max).min(RAM_HOLE_START - 1)
        }
    }

    /// Longest command line in bytes, without its NUL.
    pub fn cmdline_max(&self) -> usize {
        match usize::try_from(self.0.cmdline_size) {
            Ok(size) if size > 0 => size,
            _ => CMDLINE_MAX,
        }
    }
}

/// A bzImage whose headers have been checked and whose payload has been unpacked where possible.
#[derive(Debug)]
pub(super) struct BzImage {
    header: SetupHeader,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Unpacked {
        compression: Compression,
        elf: ElfKernel,
    },
    /// Protected-mode code, to be loaded as it is: the guest unpacks itself.
    SelfUnpacking {
        source: Source,
        offset: u64,
        length: u64,
    },
}

impl BzImage {
    /// Whether `head` has the magic numbers of a bzImage.
    pub fn recognises(head: &[u8]) -> bool {
        u16_at(head, 0x1fe) == Some(0xaa55) && head.get(0x202..).is_some_and(|rest| rest.starts_with(b"HdrS"))
    }

    /// Checks the headers, which are in the file's first bytes `head`, and unpacks the payload.
    ///
    /// # Errors
    /// Says what is wrong. Memory taken is bounded by [`decompress::UNPACKED_MAX`](super::decompress::UNPACKED_MAX).
    pub fn parse(source: Source, head: &[u8]) -> Result<Self, KernelProblem> {
        let header = SetupHeader::parse(head)?;
        let raw = header.raw();
        if raw.version < VERSION_PAYLOAD {
            return Err(KernelProblem::BzImageHeader("its boot protocol is older than 2.08 (Linux 2.6.26)"));
        }
        if raw.loadflags & LOADED_HIGH == 0 {
            return Err(KernelProblem::BzImageHeader("it is a zImage, which runs below 1 MiB"));
        }
        let setup_sectors = if raw.setup_sects == 0 { 4 } else { u64::from(raw.setup_sects) };
        let code = (setup_sectors + 1) * SECTOR;
        let payload = code + u64::from(raw.payload_offset);
        let payload_length = u64::from(raw.payload_length);
        within(payload, payload_length, &source, "compressed payload")?;
        if payload_length < 8 {
            return Err(KernelProblem::BzImageHeader("its payload is empty"));
        }
        let packed = source.read(payload, payload_length)?;
        let Some(compression) = Compression::recognise(&packed) else {
            return Self::self_unpacking(header, source, code);
        };
        let unpack = |reason: String| KernelProblem::Unpack { compression, reason };
        // All kernel payloads end with their unpacked size: gzip by its own format, the others by `size_append` of
        // Linux `scripts/Makefile.lib`.
        let size = packed.last_chunk().map_or(0, |size| u32::from_le_bytes(*size));
        let unpacked = decompress(compression, &packed, size).map_err(|error| unpack(error.to_string()))?;
        if !ElfKernel::recognises(&unpacked) {
            return Err(unpack("what comes out is no ELF file".into()));
        }
        let source = Source::Memory(unpacked);
        let head = source.head(SECTOR)?;
        let elf = ElfKernel::parse(source, &head)?;
        Ok(Self { header, content: Content::Unpacked { compression, elf } })
    }

    fn self_unpacking(header: SetupHeader, source: Source, code: u64) -> Result<Self, KernelProblem> {
        // `syssize` counts paragraphs of 16 bytes; the last one may be partly there.
        let length = u64::from(header.raw().syssize) * 16;
        within(code, length.saturating_sub(15), &source, "protected-mode code")?;
        let length = length.min(source.length() - code);
        if length <= ENTRY_64 {
            return Err(KernelProblem::BzImageHeader("its protected-mode code is empty"));
        }
        let image = Self { header, content: Content::SelfUnpacking { source, offset: code, length } };
        let address = HIGH_RAM_START;
        if image.end() > RAM_HOLE_START {
            return Err(KernelProblem::Segment {
                index: 0,
                address,
                size: image.end() - address,
                reason: "is too large",
            });
        }
        Ok(image)
    }

    /// The unpacked kernel, if it could be unpacked here.
    pub fn elf(&self) -> Option<&ElfKernel> {
        match &self.content {
            Content::Unpacked { elf, .. } => Some(elf),
            Content::SelfUnpacking { .. } => None,
        }
    }

    /// Gives up the unpacked kernel's contents.
    pub fn release(&mut self) {
        if let Content::Unpacked { elf, .. } = &mut self.content {
            elf.release();
        }
    }

    /// 64-bit entry point of the kernel's own decompressor.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn own_entry(&self) -> Result<u64, KernelProblem> {
        let raw = self.header.raw();
        if raw.version < VERSION_XLOADFLAGS || raw.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(KernelProblem::No64BitEntry);
        }
        Ok(HIGH_RAM_START + ENTRY_64)
    }

    pub fn header(&self) -> &SetupHeader {
        &self.header
    }

    /// First address behind what the kernel uses before it knows its memory.
    pub fn end(&self) -> u64 {
        match &self.content {
            Content::Unpacked { elf, .. } => elf.end(),
            Content::SelfUnpacking { length, .. } => {
                // The decompressor moves to the end of `init_size` bytes at its preferred address and unpacks there.
                let raw = self.header.raw();
                let run_end = raw.pref_address.max(HIGH_RAM_START).saturating_add(u64::from(raw.init_size));
                run_end.max(HIGH_RAM_START + length)
            }
        }
    }

    pub fn description(&self) -> String {
        match &self.content {
            Content::Unpacked { compression, .. } => format!("bzImage ({compression}, unpacked on the host)"),
            Content::SelfUnpacking { .. } => "bzImage (unknown compression, the guest unpacks itself)".into(),
        }
    }

    /// Copies the kernel to `ram`, which must still be all zero.
    ///
    /// # Errors
    /// The file could not be read, or has become shorter.
    pub fn load(&self, ram: &Ram) -> Result<(), KernelProblem> {
        match &self.content {
            Content::Unpacked { elf, .. } => elf.load(ram),
            Content::SelfUnpacking { source, offset, length } => {
                Ok(source.copy_to(*offset, *length, ram, GuestAddress(HIGH_RAM_START))?)
            }
        }
    }
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
