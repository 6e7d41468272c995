// SPDX-License-Identifier: Apache-2.0
//! Which blocks of the image are taken.

use std::collections::{BTreeMap, BTreeSet};

use super::error::Problem;
use super::format::BLOCK_BYTES;

/// Blocks that follow each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) count: u32,
}

impl Extent {
    /// Where it starts in the image, in bytes.
    pub(super) fn offset(self) -> u64 {
        u64::from(self.start) * BLOCK_BYTES
    }

    /// Its length in bytes.
    pub(super) fn length(self) -> u64 {
        u64::from(self.count) * BLOCK_BYTES
    }

    fn end(self) -> u32 {
        self.start + self.count
    }
}

/// Gives out blocks, those first that files had which a later layer replaced or took away: so an image with a layer that
/// changes each file's owner is as large as one without.
#[derive(Debug)]
pub(super) struct Blocks {
    end: u32,
    limit: u32,
    /// Free extents before the end, never two side by side: start to count, and (count, start).
    free: BTreeMap<u32, u32>,
    by_count: BTreeSet<(u32, u32)>,
    /// The largest end there ever was.
    highest: u32,
}

impl Blocks {
    /// Of an image that may have `limit` blocks, of which the first `taken` are taken.
    pub(super) fn new(taken: u32, limit: u32) -> Self {
        Self { end: taken, limit, free: BTreeMap::new(), by_count: BTreeSet::new(), highest: taken }
    }

    /// Blocks of the image so far.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// Free extents, by place.
    pub(super) fn free(&self) -> impl Iterator<Item = Extent> {
        self.free.iter().map(|(start, count)| Extent { start: *start, count: *count })
    }

    /// Where blocks start that were never given out, and so are zero.
    pub(super) fn unwritten(&self) -> u32 {
        self.highest
    }

    /// Takes `count` blocks: the smallest free extent that is large enough, or else new ones at the end.
    ///
    /// # Errors
    /// The image would be larger than allowed.
    pub(super) fn allocate(&mut self, count: u64) -> Result<Extent, Problem> {
        let full = || Problem::Size { what: "the image", limit: u64::from(self.limit) * BLOCK_BYTES };
        let count = u32::try_from(count).map_err(|_| full())?;
        if count == 0 {
            return Ok(Extent::default());
        }
        if let Some((found, start)) = self.by_count.range((count, 0)..).next().copied() {
            self.forget(Extent { start, count: found });
            self.remember(Extent { start: start + count, count: found - count });
            return Ok(Extent { start, count });
        }
        let end = self.end.checked_add(count).filter(|end| *end <= self.limit).ok_or_else(full)?;
        let extent = Extent { start: self.end, count };
        self.end = end;
        self.highest = self.highest.max(end);
        Ok(extent)
    }

    /// Gives blocks back.
    pub(super) fn release(&mut self, mut extent: Extent) {
        if extent.count == 0 {
            return;
        }
        let before =
            self.free.range(..extent.start).next_back().map(|(start, count)| Extent { start: *start, count: *count });
        if let Some(before) = before.filter(|before| before.end() == extent.start) {
            self.forget(before);
            extent = Extent { start: before.start, count: before.count + extent.count };
        }
        if let Some(count) = self.free.get(&extent.end()).copied() {
            self.forget(Extent { start: extent.end(), count });
            extent.count += count;
        }
        if extent.end() == self.end {
            self.end = extent.start;
        } else {
            self.remember(extent);
        }
    }

    fn remember(&mut self, extent: Extent) {
        if extent.count > 0 {
            self.free.insert(extent.start, extent.count);
            self.by_count.insert((extent.count, extent.start));
        }
    }

    fn forget(&mut self, extent: Extent) {
        self.free.remove(&extent.start);
        self.by_count.remove(&(extent.count, extent.start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// No block is given out twice, none is lost, and the last block is always a taken one.
        #[test]
        fn blocks_belong_to_one_file(steps in vec((any::<bool>(), 0..40u32, any::<prop::sample::Index>()), 1..200)) {
            let mut blocks = Blocks::new(1, 500);
            let mut taken = vec![Extent { start: 0, count: 1 }];
            for (release, count, which) in steps {
                if release && taken.len() > 1 {
                    let extent = taken.remove(1 + which.index(taken.len() - 1));
                    blocks.release(extent);
                } else if let Ok(extent) = blocks.allocate(count.into()) {
                    prop_assert_eq!(extent.count, count);
                    if count > 0 {
                        taken.push(extent);
                    }
                }
                let mut owners = vec![0; 500];
                for extent in taken.iter().copied().chain(blocks.free()) {
                    for block in extent.start..extent.end() {
                        owners[usize::try_from(block).unwrap()] += 1;
                    }
                }
                let end = usize::try_from(blocks.end()).unwrap();
                prop_assert!(owners[..end].iter().all(|count| *count == 1));
                prop_assert!(owners[end..].iter().all(|count| *count == 0));
                prop_assert!(taken.iter().any(|extent| extent.end() == blocks.end()));
                prop_assert!(blocks.free.len() == blocks.by_count.len());
            }
        }
    }

    #[test]
    fn the_limit_holds() {
        let mut blocks = Blocks::new(1, 10);
        assert_eq!(blocks.allocate(9).expect("room"), Extent { start: 1, count: 9 });
        assert!(blocks.allocate(1).is_err());
        assert!(blocks.allocate(u64::MAX).is_err());
        assert_eq!(blocks.allocate(0).expect("nothing"), Extent::default());
    }
}
