// SPDX-License-Identifier: Apache-2.0
//! Names of the kernel's functions, for messages about where a guest stopped and for profiles.

use std::io;

use super::elf::{ElfKernel, Segment, u16_at, u32_at, u64_at, within};
use super::kernel_error::KernelProblem;

const SECTION_HEADER_SIZE: usize = 64;
const SYMBOL_SIZE: usize = 24;
const SHT_SYMTAB: u32 = 2;
const SHF_EXECINSTR: u64 = 4;
/// Largest symbol table that is read, in bytes. A kernel with everything built in has some 20 MiB.
const TABLE_MAX: u64 = 256 << 20;

/// Function symbols, sorted by address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// Address and range of the name in `names`.
    entries: Vec<(u64, u32)>,
    /// Names, each ended by a NUL.
    names: Vec<u8>,
    /// Physical ranges of the kernel with what to add for the address that it is linked for.
    physical: Vec<(u64, u64, u64)>,
    /// First address behind the last function.
    end: u64,
}

impl Symbols {
    /// Reads the symbol table of an ELF kernel; nothing if it has been stripped.
    pub(super) fn from_elf(elf: &ElfKernel) -> Result<Option<Self>, KernelProblem> {
        let source = elf.source();
        let head = source.head(64)?;
        let unusable = KernelProblem::ElfHeader;
        let offset = u64_at(&head, 40).unwrap_or(0);
        let (size, count) = (u16_at(&head, 58).unwrap_or(0), u16_at(&head, 60).unwrap_or(0));
        if offset == 0 || count == 0 {
            return Ok(None);
        }
        if usize::from(size) != SECTION_HEADER_SIZE {
            return Err(unusable("its section headers have an unknown size"));
        }
        let length = u64::from(size) * u64::from(count);
        within(offset, length, source, "section header table")?;
        let table = source.read(offset, length)?;
        let sections: Vec<&[u8]> = table.chunks_exact(SECTION_HEADER_SIZE).collect();
        let Some(symtab) = sections.iter().find(|section| u32_at(section, 4) == Some(SHT_SYMTAB)) else {
            return Ok(None);
        };
        let content = |section: &[u8], what| {
            let (Some(offset), Some(size)) = (u64_at(section, 24), u64_at(section, 32)) else {
                return Err(unusable("a section header is cut short"));
            };
            within(offset, size, source, what)?;
            if size > TABLE_MAX {
                return Err(unusable("its symbol table is implausibly large"));
            }
            Ok(source.read(offset, size)?)
        };
        let strings = u32_at(symtab, 40).and_then(|link| sections.get(usize::try_from(link).ok()?));
        let strings = strings.ok_or(unusable("its symbol table has no names"))?;
        let bytes = content(symtab, "symbol table")?;
        let mut symbols = Self { names: content(strings, "symbol names")?, ..Self::default() };
        for symbol in bytes.chunks_exact(SYMBOL_SIZE) {
            let (Some(name), Some(section), Some(address)) = (u32_at(symbol, 0), u16_at(symbol, 6), u64_at(symbol, 8))
            else {
                continue;
            };
            // Functions, and labels in assembly, which have no type.
            let code = matches!(symbol.get(4).map(|info| info & 0xf), Some(0 | 2));
            let flags = sections.get(usize::from(section)).and_then(|section| u64_at(section, 8)).unwrap_or(0);
            if code && flags & SHF_EXECINSTR != 0 && name != 0 {
                symbols.entries.push((address, name));
                let size = u64_at(symbol, 16).unwrap_or(0);
                symbols.end = symbols.end.max(address.saturating_add(size.max(1)));
            }
        }
        symbols.entries.sort_unstable();
        symbols.physical = elf.segments().iter().map(physical_range).collect();
        Ok((!symbols.entries.is_empty()).then_some(symbols))
    }

    /// Reads a `System.map`: lines of address, type letter and name.
    ///
    /// # Errors
    /// `InvalidData` naming the first line that is not of this form.
    pub fn from_system_map(text: &[u8]) -> io::Result<Self> {
        let mut symbols = Self::default();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let bad = || {
                let message = format!("line {} of the System.map is not \"address type name\"", number + 1);
                io::Error::new(io::ErrorKind::InvalidData, message)
            };
            let line = std::str::from_utf8(line).map_err(|_| bad())?;
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                return Err(bad());
            };
            let address = u64::from_str_radix(address, 16).map_err(|_| bad())?;
            if matches!(kind, "t" | "T" | "w" | "W") {
                let start = u32::try_from(symbols.names.len()).map_err(|_| bad())?;
                symbols.names.extend_from_slice(name.as_bytes());
                symbols.names.push(0);
                symbols.entries.push((address, start));
                symbols.end = symbols.end.max(address.saturating_add(1));
            }
            // The end of the code, where the last function's size would otherwise be unknown.
            if matches!(name, "_etext" | "_einittext") {
                symbols.end = symbols.end.max(address);
            }
        }
        symbols.entries.sort_unstable();
        Ok(symbols)
    }

    /// The function that `address` lies in and the offset from its start. Physical addresses of the early boot, before
    /// the kernel runs where it is linked for, are found as well.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        self.find_linked(address).or_else(|| {
            let (start, _, delta) = self.physical.iter().find(|(start, end, _)| (*start..*end).contains(&address))?;
            debug_assert!(address >= *start);
            self.find_linked(address.wrapping_add(*delta))
        })
    }

    fn find_linked(&self, address: u64) -> Option<(&str, u64)> {
        if address >= self.end {
            return None;
        }
        let after = self.entries.partition_point(|(start, _)| *start <= address);
        let nearest = self.entries.get(after.checked_sub(1)?)?.0;
        // Of several names for one address, the first: the order is that of the table, not of chance.
        let first = self.entries.partition_point(|(start, _)| *start < nearest);
        let (start, name) = self.entries.get(first)?;
        let rest = self.names.get(usize::try_from(*name).ok()?..)?;
        let name = rest.split(|byte| *byte == 0).next()?;
        Some((std::str::from_utf8(name).ok()?, address - start))
    }

    /// Number of functions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no function.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn physical_range(segment: &Segment) -> (u64, u64, u64) {
    (segment.address, segment.end(), segment.virtual_address.wrapping_sub(segment.address))
}

#[cfg(test)]
#[path = "symbols_test.rs"]
mod tests;
