// SPDX-License-Identifier: Apache-2.0
//! A reader of tar archives as image layers are: POSIX `pax` and ustar, GNU and Unix V7, with GNU's long names and all
//! its sparse formats, as one forward pass.
//!
//! Layers come from strangers. Sizes are believed only as far as bytes follow; headers that are kept in memory are
//! limited; names are bytes.

mod error;
mod header;
mod pax;
mod sparse;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};

use super::format::{FileType, Time};
pub use error::TarProblem;
use header::{Header, RECORD};
use pax::Extended;
pub use sparse::Piece;

/// Largest extended header, as Go's `archive/tar` has it. Extended attributes are in there.
const EXTENDED_MAX: u64 = 1 << 20;
/// Largest long name: longer ones are no paths, and the next header says so.
const NAME_MAX: u64 = 64 << 10;
const BUFFER: usize = 64 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of its own.
    File(FileType),
    /// One more name for a file.
    HardLink,
}

/// One entry, without its data.
#[derive(Debug)]
pub struct Entry {
    /// As the archive spells it.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last change.
    pub mtime: Time,
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
    /// Where the archive's bytes go, if not all to the start.
    pub pieces: Option<Vec<Piece>>,
}

/// Why reading stopped: the stream itself, or what it holds.
#[derive(Debug)]
pub enum ReadError {
    /// The stream gave an error.
    Stream(io::Error),
    /// The archive is not as it should be.
    Tar(TarProblem),
}

impl From<TarProblem> for ReadError {
    fn from(problem: TarProblem) -> Self {
        Self::Tar(problem)
    }
}

/// Reads entries one after the other. What is not read of an entry's data is skipped.
pub struct TarReader<R> {
    source: BufReader<R>,
    /// Bytes of the archive so far.
    position: u64,
    /// Data of the current entry that was not read.
    remaining: u64,
    /// Fills the last record of that data.
    padding: u64,
}

/// Reads as much as there is, interrupted or not.
fn read_some(source: &mut impl Read, into: &mut [u8]) -> Result<usize, ReadError> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(ReadError::Stream),
        }
    }
}

/// Reads exactly; the end of the stream is an error that says in what it came.
fn fill(source: &mut impl Read, mut into: &mut [u8], what: &'static str) -> Result<(), ReadError> {
    while !into.is_empty() {
        match read_some(source, into)? {
            0 => return Err(TarProblem::Truncated(what).into()),
            length => into = &mut into[length..],
        }
    }
    Ok(())
}

impl<R: Read> TarReader<R> {
    /// Reads the archive that is in `source`, from its start.
    pub fn new(source: R) -> Self {
        Self { source: BufReader::with_capacity(BUFFER, source), position: 0, remaining: 0, padding: 0 }
    }

    /// Bytes of the archive read so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry, or nothing at the end. Then the stream is read to its end, so that a digest over it is complete;
    /// what follows the archive is ignored.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut extended = Extended::default();
        let (mut long_name, mut long_link) = (None, None);
        let mut expected = false;
        loop {
            self.skip_data()?;
            let Some(header) = self.header()? else {
                return if expected { Err(TarProblem::Truncated("an entry's headers").into()) } else { Ok(None) };
            };
            let size = header.size()?;
            let size = u64::try_from(size).map_err(|_| TarProblem::Number("size"))?;
            match header.type_flag() {
                b'x' | b'X' => extended = Extended::parse(&self.extension(size, "PAX", EXTENDED_MAX)?)?,
                b'L' => long_name = Some(header::text(&self.extension(size, "long name", NAME_MAX)?).to_vec()),
                b'K' => long_link = Some(header::text(&self.extension(size, "long link", NAME_MAX)?).to_vec()),
                // Defaults for all entries, in practice only comments; others ignore them too.
                b'g' => {
                    self.set_data(size);
                    continue;
                }
                _ => return self.entry(&header, extended, long_name, long_link).map(Some),
            }
            expected = true;
        }
    }

    /// Puts together what the headers say.
    fn entry(
        &mut self,
        header: &Header,
        extended: Extended,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, ReadError> {
        let path = extended.sparse.name.clone().or(extended.path).or(long_name).unwrap_or_else(|| header.name());
        let flag = header.type_flag();
        let kind = match flag {
            // Before POSIX, a directory was a file whose name says so.
            0 if path.ends_with(b"/") => Kind::File(FileType::Directory),
            0 | b'0' | b'7' | b'S' => Kind::File(FileType::Regular),
            b'1' => Kind::HardLink,
            b'2' => Kind::File(FileType::Symlink),
            b'3' => Kind::File(FileType::Character),
            b'4' => Kind::File(FileType::Block),
            b'5' => Kind::File(FileType::Directory),
            b'6' => Kind::File(FileType::Fifo),
            other => return Err(TarProblem::Type(other).into()),
        };
        let is_regular = kind == Kind::File(FileType::Regular);
        // Only regular files have data; the field means other things elsewhere.
        let stored = match extended.size {
            _ if !is_regular => 0,
            Some(size) => size,
            None => u64::try_from(header.size()?).map_err(|_| TarProblem::Number("size"))?,
        };
        self.set_data(stored);
        let (size, pieces) = match () {
            () if flag == b'S' => self.old_sparse(header, stored)?,
            () if is_regular => self.pax_sparse(&extended.sparse, stored)?,
            () => (0, None),
        };
        let id = |value, what| u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or(TarProblem::Number(what));
        let (major, minor) = match kind {
            Kind::File(FileType::Character | FileType::Block) => header.device()?,
            _ => (0, 0),
        };
        let number = |value| u32::try_from(value).map_err(|_| TarProblem::Number("device number"));
        Ok(Entry {
            kind,
            mode: u16::try_from(header.mode()? & 0o7777).unwrap_or(0),
            uid: id(extended.uid.map_or_else(|| header.uid(), Ok)?, "owner")?,
            gid: id(extended.gid.map_or_else(|| header.gid(), Ok)?, "group")?,
            mtime: extended
                .mtime
                .map_or_else(|| Ok(Time { seconds: header.mtime()?, nanoseconds: 0 }), Ok::<_, TarProblem>)?,
            size,
            link: extended.link.or(long_link).unwrap_or_else(|| header.link()),
            device: (number(major)?, number(minor)?),
            xattrs: extended.xattrs,
            pieces,
            path,
        })
    }

    /// Reads `into` from the current entry's data, of which there must be as much.
    ///
    /// # Errors
    /// The stream fails or ends.
    pub fn read_data(&mut self, into: &mut [u8]) -> Result<(), ReadError> {
        let length = into.len() as u64;
        let Some(rest) = self.remaining.checked_sub(length) else {
            return Err(TarProblem::Truncated("an entry's data").into());
        };
        fill(&mut self.source, into, "an entry's data")?;
        self.remaining = rest;
        self.position += length;
        Ok(())
    }

    fn set_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % RECORD as u64;
    }

    fn skip_data(&mut self) -> Result<(), ReadError> {
        let mut scratch = [0; 4096];
        while self.remaining > 0 {
            let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(scratch.len());
            self.read_data(&mut scratch[..length])?;
        }
        let padding = usize::try_from(self.padding).unwrap_or(0);
        // An archive that was cut just there lacks nothing that matters, but no archiver writes it so.
        fill(&mut self.source, &mut scratch[..padding], "an entry's data")?;
        self.position += self.padding;
        self.padding = 0;
        Ok(())
    }

    /// The next record, or nothing at the end of the stream.
    fn record(&mut self) -> Result<Option<[u8; RECORD]>, ReadError> {
        let mut record = [0; RECORD];
        let first = read_some(&mut self.source, &mut record)?;
        if first == 0 {
            return Ok(None);
        }
        fill(&mut self.source, &mut record[first..], "a header")?;
        self.position += RECORD as u64;
        Ok(Some(record))
    }

    /// The next header, or nothing at the end of the archive: two records of zeroes, or just the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, ReadError> {
        let offset = self.position;
        let Some(record) = self.record()? else { return Ok(None) };
        if record != [0; RECORD] {
            return Header::new(record).map(Some).map_err(|problem| TarProblem::Header { offset, problem }.into());
        }
        match self.record()? {
            Some(next) if next != [0; RECORD] => {
                Err(TarProblem::Header { offset, problem: "one record of zeroes, where the end has two" }.into())
            }
            _ => self.drain().map(|()| None),
        }
    }

    /// Reads what follows the archive's end: more zeroes, as archivers fill their last block.
    fn drain(&mut self) -> Result<(), ReadError> {
        let mut scratch = [0; 4096];
        loop {
            match read_some(&mut self.source, &mut scratch)? {
                0 => return Ok(()),
                length => self.position += length as u64,
            }
        }
    }

    /// The data of a header that describes the next entry.
    fn extension(&mut self, size: u64, what: &'static str, limit: u64) -> Result<Vec<u8>, ReadError> {
        let length = usize::try_from(size).ok().filter(|_| size <= limit);
        let length = length.ok_or(TarProblem::ExtensionSize { what, size, limit })?;
        self.set_data(size);
        let mut data = vec![0; length];
        self.read_data(&mut data)?;
        Ok(data)
    }

    /// Size and pieces of a file of type `S`, whose map continues in records before the data.
    fn old_sparse(&mut self, header: &Header, stored: u64) -> Result<(u64, Option<Vec<Piece>>), ReadError> {
        let (pairs, mut more, size) = header.sparse();
        let size = size.and_then(|size| u64::try_from(size).ok()).ok_or(TarProblem::Number("sparse file's size"))?;
        let mut numbers = Vec::new();
        sparse::read_old_pairs(pairs, &mut numbers)?;
        while more {
            let record = self.record()?.ok_or(TarProblem::Truncated("a sparse file's map"))?;
            sparse::read_old_pairs(&record[..504], &mut numbers)?;
            more = record[504] != 0;
        }
        Ok((size, Some(sparse::pieces(&numbers, size, stored)?)))
    }

    /// Size and pieces of a regular file that may have `GNU.sparse` records.
    fn pax_sparse(
        &mut self,
        records: &pax::SparseRecords,
        stored: u64,
    ) -> Result<(u64, Option<Vec<Piece>>), ReadError> {
        if records.map_in_data {
            let size = records.size.ok_or(TarProblem::Sparse("it lacks the file's size"))?;
            let numbers = self.map_in_data()?;
            return Ok((size, Some(sparse::pieces(&numbers, size, self.remaining)?)));
        }
        match records.size {
            Some(size) if !records.map.is_empty() => Ok((size, Some(sparse::pieces(&records.map, size, stored)?))),
            _ => Ok((stored, None)),
        }
    }

    /// Sparse format 1.0: the number of pieces, then offsets and lengths, a line each, up to the end of a record.
    fn map_in_data(&mut self) -> Result<Vec<u64>, ReadError> {
        const DAMAGED: TarProblem = TarProblem::Sparse("a line is no number");
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut line = Vec::new();
        let mut record = [0; RECORD];
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            self.read_data(&mut record)?;
            for byte in record {
                match byte {
                    _ if wanted.is_some_and(|wanted| numbers.len() == wanted) => break,
                    b'\n' => {
                        let number = pax::decimal(&line).ok_or(DAMAGED)?;
                        line.clear();
                        if wanted.is_some() {
                            numbers.push(number);
                            continue;
                        }
                        let pieces = usize::try_from(number).ok().filter(|pieces| *pieces <= sparse::PIECES_MAX);
                        wanted = Some(2 * pieces.ok_or(TarProblem::Sparse("it has too many pieces"))?);
                    }
                    digit if line.len() < 20 => line.push(digit),
                    _ => return Err(DAMAGED.into()),
                }
            }
        }
        Ok(numbers)
    }
}
