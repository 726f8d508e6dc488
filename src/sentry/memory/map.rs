//! The bookkeeping of a guest's mappings: pure, no host calls.

use super::region::Region;
use crate::Protection;
use std::collections::BTreeMap;

/// The mappings of one address space, by start address; they never overlap.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryMap {
    regions: BTreeMap<u64, Region>,
}

impl MemoryMap {
    /// All regions in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.values()
    }

    /// The regions that overlap a range, in ascending order.
    pub(crate) fn overlapping(&self, start: u64, end: u64) -> impl Iterator<Item = &Region> {
        let first = self.regions.range(..=start).next_back().filter(|(_, region)| region.end > start);
        let from = first.map_or(start, |(key, _)| *key);
        self.regions.range(from..end.max(from)).map(|(_, region)| region)
    }

    /// The region that contains an address.
    pub(crate) fn find(&self, addr: u64) -> Option<&Region> {
        self.overlapping(addr, addr.saturating_add(1)).next()
    }

    /// Whether nothing is mapped in the range.
    pub(crate) fn is_free(&self, start: u64, end: u64) -> bool {
        self.overlapping(start, end).next().is_none()
    }

    /// Whether every page of the range is mapped.
    pub(crate) fn is_covered(&self, start: u64, end: u64) -> bool {
        let mut next = start;
        for region in self.overlapping(start, end) {
            if region.start > next {
                return false;
            }
            next = region.end;
        }
        next >= end
    }

    /// The highest free range of that length within `[bottom, top)`.
    pub(crate) fn find_free_below(&self, len: u64, bottom: u64, top: u64) -> Option<u64> {
        let mut ceiling = top;
        for region in self.regions.range(..top).rev().map(|(_, region)| region) {
            if region.end < ceiling && ceiling - region.end >= len {
                break;
            }
            ceiling = ceiling.min(region.start);
        }
        ceiling.checked_sub(len).filter(|start| *start >= bottom)
    }

    /// Records a mapping, which replaces whatever was in its range.
    pub(crate) fn insert(&mut self, region: Region) {
        self.remove(region.start, region.end);
        self.place(region);
    }

    /// Adds a region to a free range and merges it with its neighbours.
    fn place(&mut self, mut region: Region) {
        if let Some((&key, before)) = self.regions.range(..region.start).next_back()
            && before.is_continued_by(&region)
        {
            region = Region { end: region.end, ..before.clone() };
            self.regions.remove(&key);
        }
        if let Some(after) = self.regions.get(&region.end)
            && region.is_continued_by(after)
        {
            let (key, end) = (after.start, after.end);
            self.regions.remove(&key);
            region.end = end;
        }
        self.regions.insert(region.start, region);
    }

    /// Forgets whatever is in the range and returns the removed parts; regions that stick out keep their outer parts.
    pub(crate) fn remove(&mut self, start: u64, end: u64) -> Vec<Region> {
        let affected: Vec<Region> = self.overlapping(start, end).cloned().collect();
        for region in &affected {
            self.regions.remove(&region.start);
            if region.start < start {
                self.regions.insert(region.start, region.clipped(region.start, start));
            }
            if region.end > end {
                self.regions.insert(end, region.clipped(end, region.end));
            }
        }
        affected.iter().map(|region| region.clipped(start, end)).collect()
    }

    /// Changes the protection of all that is mapped in the range.
    pub(crate) fn protect(&mut self, start: u64, end: u64, protection: Protection) {
        for part in self.remove(start, end) {
            self.place(Region { protection, ..part });
        }
    }

    /// Records that a range moved, as `mremap` moves it; the last page's backing goes on where the range grew.
    pub(crate) fn relocate(&mut self, old: u64, old_len: u64, new: u64, new_len: u64) {
        let parts = self.remove(old, old + old_len);
        self.remove(new, new + new_len);
        let Some(first) = parts.into_iter().next() else { return };
        self.place(Region { start: new, end: new + new_len, ..first });
    }
}

#[cfg(test)]
mod tests {
    use super::super::region::{Backing, MappedFile};
    use super::*;
    use std::sync::Arc;

    const RW: Protection = Protection { read: true, write: true, execute: false };
    const RO: Protection = Protection { read: true, write: false, execute: false };

    fn anonymous(start: u64, end: u64) -> Region {
        Region { start, end, protection: RW, shared: false, backing: Backing::Anonymous }
    }

    fn shown(map: &MemoryMap) -> Vec<(u64, u64, bool)> {
        map.iter().map(|region| (region.start, region.end, region.protection.write)).collect()
    }

    #[test]
    fn neighbours_merge_and_holes_split() {
        let mut map = MemoryMap::default();
        map.insert(anonymous(0x1000, 0x2000));
        map.insert(anonymous(0x3000, 0x4000));
        map.insert(anonymous(0x2000, 0x3000));
        assert_eq!(shown(&map), [(0x1000, 0x4000, true)]);
        map.remove(0x2000, 0x3000);
        assert_eq!(shown(&map), [(0x1000, 0x2000, true), (0x3000, 0x4000, true)]);
        assert!(map.is_free(0x2000, 0x3000) && !map.is_free(0x1fff, 0x3000));
        assert!(!map.is_covered(0x1000, 0x4000) && map.is_covered(0x3000, 0x4000));
        assert!(map.find(0x2fff).is_none() && map.find(0x3000).is_some());
    }

    #[test]
    fn protect_splits_and_merges_back() {
        let mut map = MemoryMap::default();
        map.insert(anonymous(0x1000, 0x9000));
        map.protect(0x3000, 0x5000, RO);
        assert_eq!(shown(&map), [(0x1000, 0x3000, true), (0x3000, 0x5000, false), (0x5000, 0x9000, true)]);
        map.protect(0x3000, 0x5000, RW);
        assert_eq!(shown(&map), [(0x1000, 0x9000, true)]);
    }

    #[test]
    fn file_offsets_follow_a_split() {
        let identity = Arc::new(MappedFile { path: "/f".to_owned(), device: 1, inode: 2 });
        let mut map = MemoryMap::default();
        let backing = Backing::File { identity, offset: 0x10000, open: None };
        map.insert(Region { start: 0x1000, end: 0x5000, protection: RO, shared: false, backing });
        map.remove(0x2000, 0x3000);
        let offsets: Vec<u64> = map
            .iter()
            .map(|region| match &region.backing {
                Backing::File { offset, .. } => *offset,
                _ => 0,
            })
            .collect();
        assert_eq!(offsets, [0x10000, 0x12000]);
    }

    #[test]
    fn free_ranges_are_found_from_the_top() {
        let mut map = MemoryMap::default();
        assert_eq!(map.find_free_below(0x1000, 0, 0x10000), Some(0xf000));
        map.insert(anonymous(0xe000, 0x10000));
        assert_eq!(map.find_free_below(0x1000, 0, 0x10000), Some(0xd000));
        map.insert(anonymous(0xb000, 0xd000));
        assert_eq!(map.find_free_below(0x1000, 0, 0x10000), Some(0xd000));
        assert_eq!(map.find_free_below(0x2000, 0, 0x10000), Some(0x9000));
        assert_eq!(map.find_free_below(0xa000, 0x2000, 0x10000), None);
        // A region that straddles the top limits it.
        assert_eq!(map.find_free_below(0x1000, 0, 0xf000), Some(0xd000));
        assert_eq!(map.find_free_below(u64::MAX, 0, 0x10000), None);
    }

    #[test]
    fn relocation_grows_and_replaces() {
        let mut map = MemoryMap::default();
        map.insert(anonymous(0x1000, 0x3000));
        map.insert(anonymous(0x8000, 0x9000));
        map.relocate(0x2000, 0x1000, 0x7000, 0x2000);
        assert_eq!(shown(&map), [(0x1000, 0x2000, true), (0x7000, 0x9000, true)]);
        assert!(map.is_covered(0x7000, 0x9000));
    }

    /// The map against a page-by-page model, over many random operations.
    #[test]
    fn agrees_with_a_page_model() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut model = [0_u8; 64];
        let mut map = MemoryMap::default();
        for _ in 0..20_000 {
            let start = next(64);
            let end = start + 1 + next(64 - start);
            let range = start as usize..end as usize;
            let (from, to) = (start << 12, end << 12);
            match next(3) {
                0 => {
                    map.insert(anonymous(from, to));
                    model[range].fill(1);
                }
                1 => {
                    map.remove(from, to);
                    model[range].fill(0);
                }
                _ => {
                    map.protect(from, to, RO);
                    model[range].iter_mut().filter(|page| **page != 0).for_each(|page| *page = 2);
                }
            }
            for (page, expected) in model.iter().enumerate() {
                let found =
                    map.find((page as u64) << 12).map_or(0, |region| 2 - u8::from(region.protection.write));
                assert_eq!(found, *expected);
            }
            let runs = 1 + model.windows(2).filter(|pair| pair[0] != pair[1]).count();
            assert!(map.iter().count() <= runs, "unmerged neighbours");
        }
    }
}
