// SPDX-License-Identifier: Apache-2.0
//! What a guest tells of its own memory (virtio 1.3 §5.5.6.4).

use serde::Serialize;

use super::super::{Chain, ChainError};
use crate::vmm::clock::monotonic_ns;

/// Size of an entry: a tag of 2 bytes and a value of 8.
const ENTRY: usize = 10;
/// Entries that are looked at; there are 10 tags.
const MAX_ENTRIES: usize = 64;

/// A guest's memory statistics, as far as its driver knows them. The guest can tell what it likes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// When they came, in nanoseconds of `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// Bytes swapped in.
    pub swapped_in: Option<u64>,
    /// Bytes swapped out.
    pub swapped_out: Option<u64>,
    /// Page faults that needed I/O.
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    pub minor_faults: Option<u64>,
    /// Unused bytes.
    pub free: Option<u64>,
    /// All bytes that the guest has.
    pub total: Option<u64>,
    /// Bytes that new applications could get without swapping.
    pub available: Option<u64>,
    /// Bytes of caches that could be given up at once.
    pub caches: Option<u64>,
    /// Huge pages allocated.
    pub huge_page_allocations: Option<u64>,
    /// Huge pages asked for in vain.
    pub huge_page_failures: Option<u64>,
}

impl Statistics {
    /// Reads what the driver has put into `chain`; tags that are not known are skipped.
    ///
    /// # Errors
    /// None for any content; the chain's own, which reading its length rules out.
    pub fn read(chain: &Chain) -> Result<Self, ChainError> {
        let mut statistics = Self { at_ns: monotonic_ns(), ..Self::default() };
        let mut reader = chain.reader();
        for _ in 0..MAX_ENTRIES {
            if reader.remaining() < ENTRY {
                break;
            }
            let (tag, value) = (u16::from_le_bytes(read(&mut reader)?), u64::from_le_bytes(read(&mut reader)?));
            if let Some(field) = statistics.field(tag) {
                *field = Some(value);
            }
        }
        Ok(statistics)
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swapped_in,
            1 => &mut self.swapped_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.caches,
            8 => &mut self.huge_page_allocations,
            9 => &mut self.huge_page_failures,
            _ => return None,
        })
    }
}

fn read<const N: usize>(reader: &mut super::super::chain::Reader<'_>) -> Result<[u8; N], ChainError> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
