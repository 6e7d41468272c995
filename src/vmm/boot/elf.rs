// SPDX-License-Identifier: Apache-2.0
//! ELF kernels (`vmlinux`): checked completely when opened, then copied to guest memory one read per segment.
//!
//! Parsing is our own. `linux_loader`'s ELF loader checks while it writes, so that a bad file is found only after the VM
//! exists; it reads each header and note with calls of its own; it leaves a segment without file bytes (bss) out of
//! the kernel's end, where an initrd would then be put; and a second note segment makes it forget the PVH entry.

use vm_memory::{Bytes, GuestAddress};

use super::kernel_error::KernelProblem;
use super::source::Source;
use crate::vmm::layout::HIGH_RAM_START;
use crate::vmm::memory::Ram;

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
/// More note bytes than any kernel has; bounds what a crafted file with thousands of note segments makes us read.
const NOTES_MAX: u64 = 1 << 20;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;

/// Flag of a segment that is written to.
const PF_W: u32 = 2;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point (Xen `include/public/elfnote.h`).
const XEN_PHYS32_ENTRY: u32 = 18;
/// Note of the bundled guest kernel (`guest/kernel/patches/0016-*`): where it wants to be told, by a 1 in 32 bits, that
/// memory is zero but for what has been loaded.
const CORACLE_ZERO_MEMORY: u32 = 1;

/// A range of the file that is copied to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many there are; the rest of the segment is zero.
    pub file_size: u64,
    /// Physical address in the guest.
    pub address: u64,
    /// Address that it is linked for.
    pub virtual_address: u64,
    /// Size in guest memory, at least `file_size`.
    pub size: u64,
    /// Whether the kernel writes to it (`PF_W`).
    pub written: bool,
}

impl Segment {
    /// First address behind the segment. Cannot overflow: checked when parsed.
    pub fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// An ELF kernel whose headers have been checked.
#[derive(Debug)]
pub(super) struct ElfKernel {
    source: Source,
    /// Non-empty segments, lowest address first, not overlapping.
    segments: Vec<Segment>,
    /// `e_entry`: where the 64-bit boot protocol enters.
    entry: u64,
    pvh_entry: Option<u64>,
    linux: bool,
    /// Physical address of the word, in what is loaded from the file.
    zero_memory: Option<u64>,
}

impl ElfKernel {
    /// Whether `head` starts like an ELF file.
    pub fn recognises(head: &[u8]) -> bool {
        head.starts_with(b"\x7fELF")
    }

    /// Checks all headers of an ELF kernel, whose first bytes are `head`.
    ///
    /// # Errors
    /// Says which header is wrong; nothing in the file makes it panic or read more than the file has.
    pub fn parse(source: Source, head: &[u8]) -> Result<Self, KernelProblem> {
        let table = program_header_table(head, &source)?;
        let mut segments = Vec::new();
        let mut notes = Notes { budget: NOTES_MAX, pvh_entry: None, linux: false, zero_memory: None };
        for (index, header) in table.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
            match u32_at(header, 0) {
                Some(PT_LOAD) => segments.extend(load_segment(index, header, &source)?),
                Some(PT_NOTE) => notes.read(header, &source)?,
                _ => {}
            }
        }
        segments.sort_by_key(|(_, segment): &(usize, Segment)| segment.address);
        for ((_, below), (index, above)) in segments.iter().zip(segments.iter().skip(1)) {
            if below.end() > above.address {
                return Err(segment_problem(*index, above, "overlaps the segment below it"));
            }
        }
        let segments: Vec<Segment> = segments.into_iter().map(|(_, segment)| segment).collect();
        if segments.is_empty() {
            return Err(KernelProblem::ElfHeader("it has no segment to load"));
        }
        let entry = u64_at(head, 24).ok_or(KernelProblem::ElfHeader("it is cut short"))?;
        let Notes { pvh_entry, linux, zero_memory, .. } = notes;
        let zero_memory = zero_memory.filter(|address| is_loaded(&segments, *address, size_of::<u32>() as u64));
        Ok(Self { source, segments, entry, pvh_entry, linux, zero_memory })
    }

    /// Entry point of the 64-bit boot protocol.
    ///
    /// # Errors
    /// It lies outside the kernel.
    pub fn linux_entry(&self) -> Result<u64, KernelProblem> {
        self.inside("64-bit", self.entry)
    }

    /// Entry point of the PVH boot protocol, if the kernel has one.
    ///
    /// # Errors
    /// It lies outside the kernel.
    pub fn pvh_entry(&self) -> Result<Option<u64>, KernelProblem> {
        self.pvh_entry.map(|entry| self.inside("PVH", entry)).transpose()
    }

    fn inside(&self, which: &'static str, address: u64) -> Result<u64, KernelProblem> {
        let found = self.segments.iter().any(|segment| (segment.address..segment.end()).contains(&address));
        if found { Ok(address) } else { Err(KernelProblem::EntryPoint { which, address }) }
    }

    /// Whether its notes say that it is Linux, whose ELF entry point follows the 64-bit boot protocol.
    pub fn is_linux(&self) -> bool {
        self.linux
    }

    /// Gives up the file's bytes; the headers stay known.
    pub fn release(&mut self) {
        self.source = Source::Memory(Vec::new());
    }

    /// Segments, lowest address first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The file's bytes.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// First address behind the kernel, bss included.
    pub fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }

    /// Has all bytes be copied by [`ElfKernel::load`]: for guest memory that others see by its file.
    pub fn do_not_map(&mut self) {
        self.source.do_not_map();
    }

    /// Copies the segments to `ram`, which must still be all zero: bss is not written. What the kernel does not write is
    /// mapped instead, where the file cannot change.
    ///
    /// # Errors
    /// The file could not be read, or has become shorter.
    pub fn load(&self, ram: &Ram) -> Result<(), KernelProblem> {
        for segment in &self.segments {
            let Segment { offset, file_size, address, written, .. } = *segment;
            let mapped = if written { 0 } else { self.source.map_to(offset, file_size, ram, GuestAddress(address))? };
            if file_size > mapped {
                self.source.copy_to(offset + mapped, file_size - mapped, ram, GuestAddress(address + mapped))?;
            }
        }
        if let Some(address) = self.zero_memory {
            let written = ram.write_obj(1u32.to_le(), GuestAddress(address));
            written.map_err(|_| KernelProblem::ElfHeader("a note leads out of memory"))?;
        }
        Ok(())
    }
}

/// Whether all of this range comes from the file.
fn is_loaded(segments: &[Segment], address: u64, length: u64) -> bool {
    segments.iter().any(|segment| {
        let offset = address.checked_sub(segment.address).and_then(|offset| offset.checked_add(length));
        offset.is_some_and(|end| end <= segment.file_size)
    })
}

/// Checks the ELF header and returns the bytes of all program headers.
fn program_header_table(head: &[u8], source: &Source) -> Result<Vec<u8>, KernelProblem> {
    let cut_short =
        || KernelProblem::Truncated { what: "ELF header", needed: HEADER_SIZE as u64, length: source.length() };
    let &[class, data, ..] = head.get(4..HEADER_SIZE).ok_or_else(cut_short)? else {
        return Err(cut_short());
    };
    let machine = u16_at(head, 18).ok_or_else(cut_short)?;
    if data == 2 {
        return Err(KernelProblem::Architecture("a big-endian machine".into()));
    }
    if machine != EM_X86_64 {
        return Err(KernelProblem::Architecture(machine_name(machine)));
    }
    if class != 2 {
        return Err(KernelProblem::Architecture("32-bit x86 (x32)".into()));
    }
    match u16_at(head, 16).ok_or_else(cut_short)? {
        ET_EXEC | ET_DYN => {}
        1 => return Err(KernelProblem::NotAKernel("an ELF object file or kernel module")),
        4 => return Err(KernelProblem::NotAKernel("a core dump")),
        _ => return Err(KernelProblem::ElfHeader("its type is unknown")),
    }
    let offset = u64_at(head, 32).ok_or_else(cut_short)?;
    let entry_size = u16_at(head, 54).ok_or_else(cut_short)?;
    let count = u16_at(head, 56).ok_or_else(cut_short)?;
    if count == 0 {
        return Err(KernelProblem::ElfHeader("it has no program headers"));
    }
    if usize::from(entry_size) != PROGRAM_HEADER_SIZE {
        return Err(KernelProblem::ElfHeader("its program headers have an unknown size"));
    }
    let length = u64::from(count) * u64::from(entry_size);
    let end = within(offset, length, source, "program header table")?;
    let in_head = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    match in_head.and_then(|(start, end)| head.get(start..end)) {
        Some(table) => Ok(table.to_vec()),
        None => Ok(source.read(offset, length)?),
    }
}

/// Checks one `PT_LOAD` header; an empty segment gives nothing.
fn load_segment(index: usize, header: &[u8], source: &Source) -> Result<Option<(usize, Segment)>, KernelProblem> {
    let field = |offset| u64_at(header, offset).ok_or(KernelProblem::ElfHeader("a program header is cut short"));
    let segment = Segment {
        offset: field(8)?,
        file_size: field(32)?,
        address: field(24)?,
        virtual_address: field(16)?,
        size: field(40)?,
        written: u32_at(header, 4).is_none_or(|flags| flags & PF_W != 0),
    };
    if segment.size == 0 && segment.file_size == 0 {
        return Ok(None);
    }
    if segment.file_size > segment.size {
        return Err(segment_problem(index, &segment, "has more bytes in the file than in memory"));
    }
    if segment.address.checked_add(segment.size).is_none() {
        return Err(segment_problem(index, &segment, "goes beyond the last address"));
    }
    if segment.address < HIGH_RAM_START {
        return Err(segment_problem(index, &segment, "lies below 1 MiB, where the boot structures are"));
    }
    within(segment.offset, segment.file_size, source, "segment data")?;
    Ok(Some((index, segment)))
}

fn segment_problem(index: usize, segment: &Segment, reason: &'static str) -> KernelProblem {
    KernelProblem::Segment { index, address: segment.address, size: segment.size, reason }
}

/// Checks that a range lies inside the file and returns its end.
pub(super) fn within(offset: u64, length: u64, source: &Source, what: &'static str) -> Result<u64, KernelProblem> {
    match offset.checked_add(length) {
        Some(end) if end <= source.length() => Ok(end),
        end => Err(KernelProblem::Truncated { what, needed: end.unwrap_or(u64::MAX), length: source.length() }),
    }
}

/// What the note segments tell.
#[derive(Debug)]
struct Notes {
    /// Bytes that may still be read.
    budget: u64,
    pvh_entry: Option<u64>,
    linux: bool,
    zero_memory: Option<u64>,
}

impl Notes {
    /// Reads the note segment that `header` describes. Malformed notes end the walk: they only carry hints.
    fn read(&mut self, header: &[u8], source: &Source) -> Result<(), KernelProblem> {
        let (Some(offset), Some(size)) = (u64_at(header, 8), u64_at(header, 32)) else { return Ok(()) };
        within(offset, size, source, "note segment")?;
        let size = size.min(self.budget);
        self.budget -= size;
        let bytes = source.read(offset, size)?;
        let mut rest = bytes.as_slice();
        while let Some(note) = next_note(&mut rest) {
            match (note.owner, note.kind) {
                (b"Xen\0", XEN_PHYS32_ENTRY) => {
                    // A 32-bit address; 64-bit kernels store it in eight bytes.
                    self.pvh_entry = u32_at(note.descriptor, 0).map(u64::from).or(self.pvh_entry);
                }
                (b"Coracle\0", CORACLE_ZERO_MEMORY) => self.zero_memory = u64_at(note.descriptor, 0),
                (b"Linux\0", _) => self.linux = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// One ELF note.
struct Note<'a> {
    /// Who defined it, with a NUL.
    owner: &'a [u8],
    kind: u32,
    descriptor: &'a [u8],
}

/// Takes the first note off `bytes` (System V ABI, "Note Section").
fn next_note<'a>(bytes: &mut &'a [u8]) -> Option<Note<'a>> {
    let owner_size = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let descriptor_size = usize::try_from(u32_at(bytes, 4)?).ok()?;
    let kind = u32_at(bytes, 8)?;
    let rest = bytes.get(12..)?;
    let owner = rest.get(..owner_size)?;
    let rest = rest.get(owner_size.checked_next_multiple_of(4)?..)?;
    let descriptor = rest.get(..descriptor_size)?;
    // The last note's padding may be missing.
    *bytes = rest.get(descriptor_size.checked_next_multiple_of(4)?..).unwrap_or(&[]);
    Some(Note { owner, kind, descriptor })
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86 (i386)".into(),
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit ARM".into(),
        183 => "64-bit ARM (aarch64)".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("another architecture (ELF machine {other})"),
    }
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
#[path = "elf_test.rs"]
mod tests;
