// SPDX-License-Identifier: Apache-2.0
//! Blocks of inodes, with what follows an inode: extended attributes, targets of links, and the last bytes of files.
//!
//! An inode is written once, when its entry has been read; then only its place is remembered. No inode with its bytes
//! may cross the end of a block.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use super::blocks::{Blocks, Extent};
use super::error::Problem;
use super::format::{BLOCK, BLOCK_BYTES, SLOT, SLOTS};
use super::output::Output;

/// Inodes up to this many bytes share blocks of their own, so that a look through a directory reads few blocks.
const SMALL: usize = 256;
/// Blocks for longer inodes that are filled at the same time. A file's last bytes take half a block on average: with
/// several to choose from, little remains empty.
const OPEN_MAX: usize = 16;
/// Blocks that are taken at once, which keeps metadata together and file data in long runs: at most this many, and this part
/// of the image so far, so that what is left of the last run counts for little.
const RUN_MAX: u32 = 32;
const RUN_PART: u32 = 256;

#[derive(Debug)]
struct OpenBlock {
    block: u32,
    bytes: Vec<u8>,
}

impl OpenBlock {
    fn room(&self) -> usize {
        BLOCK - self.bytes.len()
    }
}

/// Gives inodes their places.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    small: Option<OpenBlock>,
    open: Vec<OpenBlock>,
    /// Blocks taken for metadata and not used yet.
    reserve: Extent,
    /// Inodes in each block that still have a name.
    alive: HashMap<u32, u8>,
    digest: Sha256,
}

impl Metadata {
    /// Writes an inode with what follows it, at most a block. Returns its number.
    pub(super) fn place(&mut self, inode: &[u8], blocks: &mut Blocks, output: &mut Output<'_>) -> Result<u64, Problem> {
        let place = if inode.len() <= SMALL {
            if let Some(full) = self.small.take_if(|open| open.room() < inode.len()) {
                self.close(full, output)?;
            }
            let fresh = if self.small.is_none() { Some(self.open_block(blocks)?) } else { None };
            self.small.get_or_insert_with(|| fresh.unwrap_or(OpenBlock { block: 0, bytes: Vec::new() }))
        } else {
            let fitting = self.open.iter().enumerate().filter(|(_, open)| open.room() >= inode.len());
            let best = match fitting.min_by_key(|(_, open)| open.room()).map(|(at, _)| at) {
                Some(at) => at,
                None => {
                    if self.open.len() >= OPEN_MAX {
                        let fullest = (0..self.open.len()).min_by_key(|at| self.open[*at].room()).unwrap_or(0);
                        let fullest = self.open.remove(fullest);
                        self.close(fullest, output)?;
                    }
                    let fresh = self.open_block(blocks)?;
                    self.open.push(fresh);
                    self.open.len() - 1
                }
            };
            &mut self.open[best]
        };
        let slot = place.bytes.len() / SLOT;
        let nid = u64::from(place.block) * SLOTS + slot as u64;
        place.bytes.extend_from_slice(inode);
        place.bytes.resize(place.bytes.len().next_multiple_of(SLOT), 0);
        *self.alive.entry(place.block).or_default() += 1;
        Ok(nid)
    }

    /// Forgets an inode of `length` bytes that has no name any more: nobody shall read what was removed. Once all of a block
    /// are forgotten, it is free.
    pub(super) fn forget(
        &mut self,
        nid: u64,
        length: u16,
        blocks: &mut Blocks,
        output: &mut Output<'_>,
    ) -> Result<(), Problem> {
        let Ok(block) = u32::try_from(nid / SLOTS) else { return Ok(()) };
        let Some(alive) = self.alive.get_mut(&block) else { return Ok(()) };
        *alive -= 1;
        let empty = *alive == 0;
        let mut open = self.small.iter_mut().chain(&mut self.open);
        if let Some(open) = open.find(|open| open.block == block) {
            if empty {
                open.bytes.clear();
            } else {
                let start = usize::try_from(nid % SLOTS).unwrap_or(0) * SLOT;
                open.bytes.get_mut(start..start + usize::from(length)).unwrap_or(&mut []).fill(0);
            }
        } else if empty {
            self.alive.remove(&block);
            blocks.release(Extent { start: block, count: 1 });
        } else {
            output.write_zeroes(nid * SLOT as u64, length.into())?;
        }
        Ok(())
    }

    /// Adds to what the image's identity is made of.
    pub(super) fn identify(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Writes all blocks, and gives back what was taken ahead.
    pub(super) fn close_all(&mut self, blocks: &mut Blocks, output: &mut Output<'_>) -> Result<(), Problem> {
        for open in self.small.take().into_iter().chain(std::mem::take(&mut self.open)) {
            if open.bytes.is_empty() {
                blocks.release(Extent { start: open.block, count: 1 });
            } else {
                self.close(open, output)?;
            }
        }
        blocks.release(std::mem::take(&mut self.reserve));
        Ok(())
    }

    /// An identity of all that was placed and told.
    pub(super) fn identity(&self) -> [u8; 32] {
        self.digest.clone().finalize().into()
    }

    fn open_block(&mut self, blocks: &mut Blocks) -> Result<OpenBlock, Problem> {
        if self.reserve.count == 0 {
            let run = (blocks.end() / RUN_PART).clamp(1, RUN_MAX);
            self.reserve = blocks.allocate(run.into())?;
        }
        let block = self.reserve.start;
        self.reserve = Extent { start: block + 1, count: self.reserve.count - 1 };
        Ok(OpenBlock { block, bytes: Vec::with_capacity(BLOCK) })
    }

    fn close(&mut self, mut open: OpenBlock, output: &mut Output<'_>) -> Result<(), Problem> {
        open.bytes.resize(BLOCK, 0);
        self.digest.update(&open.bytes);
        output.write(u64::from(open.block) * BLOCK_BYTES, &open.bytes)
    }
}
