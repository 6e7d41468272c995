// SPDX-License-Identifier: Apache-2.0
//! The state file: a header that can be checked alone, and a payload that its checksum vouches for.
//!
//! | bytes | field, little-endian |
//! |---|---|
//! | 0–7 | [`MAGIC`] |
//! | 8–11 | [`VERSION`] |
//! | 12–15 | architecture: the machine number of ELF, 62 for x86-64 |
//! | 16–23 | bytes of the payload |
//! | 24–27 | CRC-32 of the payload |
//! | 28–31 | CRC-32 of the bytes before |
//! | 32– | the payload: [`State`] as [postcard](https://postcard.jamesmunns.com/wire-format) |
//!
//! The version changes with every change of [`State`]: a snapshot is as short-lived as the VMM that took it.

use super::error::SnapshotError;
use super::state::State;

/// What a state file starts with.
pub const MAGIC: [u8; 8] = *b"CORACLE\x1a";
/// Version of the format.
pub const VERSION: u32 = 3;
/// `EM_X86_64`.
const ARCHITECTURE: u32 = 62;
/// Bytes of the header.
pub const HEADER: usize = 32;
/// Bytes of the largest state: a VM of the most vCPUs and devices has a hundredth of it.
pub const MAX_STATE: u64 = 16 << 20;

/// The state as a file has it.
///
/// # Errors
/// A path in it that is not UTF-8.
pub fn encode(state: &State) -> Result<Vec<u8>, SnapshotError> {
    let payload = postcard::to_allocvec(state).map_err(|_| SnapshotError::Nonsense("a path is not UTF-8"))?;
    Ok(seal(VERSION, &payload))
}

/// A file with this payload, whose checksums are right.
pub fn seal(version: u32, payload: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(HEADER + payload.len());
    file.extend(MAGIC);
    file.extend(version.to_le_bytes());
    file.extend(ARCHITECTURE.to_le_bytes());
    file.extend((payload.len() as u64).to_le_bytes());
    file.extend(crc32fast::hash(payload).to_le_bytes());
    file.extend(crc32fast::hash(&file).to_le_bytes());
    file.extend(payload);
    file
}

/// The state in a file, checked whole.
///
/// # Errors
/// All of [`SnapshotError`] that the file alone tells.
pub fn decode(file: &[u8]) -> Result<State, SnapshotError> {
    let found = file.len() as u64;
    let Some((header, payload)) = file.split_first_chunk::<HEADER>() else {
        let start = file.get(..MAGIC.len().min(file.len())).unwrap_or_default();
        return Err(match MAGIC.starts_with(start) && !start.is_empty() {
            true => SnapshotError::Length { said: HEADER as u64, found },
            false => SnapshotError::Magic,
        });
    };
    let mut fields = Fields(header);
    if fields.take() != MAGIC {
        return Err(SnapshotError::Magic);
    }
    let version = u32::from_le_bytes(fields.take());
    let architecture = u32::from_le_bytes(fields.take());
    let length = u64::from_le_bytes(fields.take());
    let checksum = u32::from_le_bytes(fields.take());
    let (checked, _) = header.split_at(HEADER - 4);
    if u32::from_le_bytes(fields.take()) != crc32fast::hash(checked) {
        return Err(SnapshotError::Checksum("header"));
    }
    if version != VERSION {
        return Err(SnapshotError::Version(version));
    }
    if architecture != ARCHITECTURE {
        return Err(SnapshotError::Architecture(architecture));
    }
    if length != payload.len() as u64 || length > MAX_STATE {
        return Err(SnapshotError::Length { said: length.saturating_add(HEADER as u64), found });
    }
    if checksum != crc32fast::hash(payload) {
        return Err(SnapshotError::Checksum("state"));
    }
    match postcard::take_from_bytes::<State>(payload) {
        Ok((state, [])) => Ok(state),
        _ => Err(SnapshotError::Nonsense("its fields are not those of a state")),
    }
}

/// Fields of a fixed layout, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes; zeroes beyond the end, which the layout never reaches.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk::<N>() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
