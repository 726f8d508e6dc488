//! Which mappings of an address space may be patched: private, executable, not writable.
//!
//! It is kept from the calls by which the supervisor changes mappings. A hostile guest can change its own mappings
//! behind it (DESIGN: the supervisor's view is advisory), which makes patches of its own memory wrong or impossible,
//! and nothing else.

use std::collections::BTreeMap;

use usertrap::FileSite;

use crate::{GuestAddr, Protection};

/// Executable mappings of one address space that are tracked. A guest with more of them has the others unpatched.
const MAX_RANGES: usize = 16 * 1024;

/// The identity of a mapped file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) size_bytes: u64,
    pub(crate) mtime_ns: i128,
}

impl FileId {
    pub(crate) fn site(&self, offset: u64) -> FileSite {
        FileSite {
            device: self.device,
            inode: self.inode,
            size_bytes: self.size_bytes,
            mtime_ns: self.mtime_ns,
            offset,
        }
    }
}

/// Whether code with this protection may be patched.
pub(crate) fn is_patchable(prot: Protection) -> bool {
    prot.execute && prot.read && !prot.write
}

/// A private mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Code {
    /// First address, and the address behind the last.
    pub(crate) range: (u64, u64),
    pub(crate) prot: Protection,
    /// The file and the offset of the range in it.
    pub(crate) file: Option<(FileId, u64)>,
    /// The sites of the file that were known have been patched here, all at once.
    pub(crate) batched: bool,
}

impl Code {
    pub(crate) fn file_site(&self, site: u64) -> Option<FileSite> {
        let (id, offset) = self.file?;
        Some(id.site(offset.wrapping_add(site.wrapping_sub(self.range.0))))
    }

    /// The part of the mapping within `from..to`, which must overlap it.
    fn cut(&self, from: u64, to: u64) -> Code {
        let start = self.range.0.max(from);
        let moved = start - self.range.0;
        Code {
            range: (start, self.range.1.min(to)),
            prot: self.prot,
            file: self.file.map(|(id, offset)| (id, offset.wrapping_add(moved))),
            batched: self.batched,
        }
    }
}

/// The private mappings of an address space that are executable or may become so, by first address.
#[derive(Debug, Clone, Default)]
pub(crate) struct CodeMap {
    ranges: BTreeMap<u64, Code>,
}

impl CodeMap {
    /// The patchable mapping that holds an address.
    pub(crate) fn around(&self, addr: GuestAddr) -> Option<Code> {
        let (_, code) = self.ranges.range(..=addr.raw()).next_back()?;
        (addr.raw() < code.range.1 && is_patchable(code.prot)).then_some(*code)
    }

    /// The patchable mappings within a range, cut to it.
    pub(crate) fn patchable(&self, from: u64, to: u64) -> Vec<Code> {
        let overlapping = self.overlapping(from, to).into_iter().filter(|code| is_patchable(code.prot));
        overlapping.map(|code| code.cut(from, to)).collect()
    }

    /// The known sites of the mapping that begins here have been patched.
    pub(crate) fn set_batched(&mut self, start: u64) {
        if let Some(code) = self.ranges.get_mut(&start) {
            code.batched = true;
        }
    }

    /// A new private mapping.
    pub(crate) fn insert(&mut self, code: Code) {
        self.remove(code.range);
        if self.ranges.len() < MAX_RANGES {
            self.ranges.insert(code.range.0, code);
        }
    }

    /// The range is mapped anew, or not at all.
    pub(crate) fn remove(&mut self, (from, to): (u64, u64)) {
        for code in self.overlapping(from, to) {
            self.ranges.remove(&code.range.0);
            if code.range.0 < from {
                self.ranges.insert(code.range.0, code.cut(code.range.0, from));
            }
            if to < code.range.1 {
                self.ranges.insert(to, code.cut(to, code.range.1));
            }
        }
    }

    /// The protection of a range changes.
    pub(crate) fn protect(&mut self, (from, to): (u64, u64), prot: Protection) {
        let parts: Vec<Code> = self.overlapping(from, to).iter().map(|code| code.cut(from, to)).collect();
        self.remove((from, to));
        for part in parts {
            self.ranges.insert(part.range.0, Code { prot, ..part });
        }
    }

    /// What lies in `old` is about to move to `new`: takes both away and says what will be at `new`.
    pub(crate) fn take_moved(&mut self, old: (u64, u64), new: (u64, u64)) -> Vec<Code> {
        let moved: Vec<Code> =
            self.overlapping(old.0, old.1).iter().map(|code| code.cut(old.0, old.1)).collect();
        self.remove(old);
        self.remove(new);
        let moved = moved.into_iter().filter_map(|code| {
            let start = new.0 + (code.range.0 - old.0);
            let end = (new.0 + (code.range.1 - old.0)).min(new.1);
            (start < end).then_some(Code { range: (start, end), ..code })
        });
        moved.collect()
    }

    fn overlapping(&self, from: u64, to: u64) -> Vec<Code> {
        let before = self.ranges.range(..from).next_back().filter(|(_, code)| code.range.1 > from);
        before.into_iter().chain(self.ranges.range(from..to)).map(|(_, code)| *code).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(from: u64, to: u64) -> Code {
        let id = FileId { device: 1, inode: 2, size_bytes: 3, mtime_ns: 4 };
        Code { range: (from, to), prot: Protection::READ_EXECUTE, file: Some((id, 0x100)), batched: false }
    }

    #[test]
    fn a_hole_splits_a_mapping_and_keeps_file_offsets() {
        let mut map = CodeMap::default();
        map.insert(code(0x1000, 0x5000));
        map.remove((0x2000, 0x3000));
        assert!(map.around(GuestAddr::new(0x2000)).is_none());
        let left = map.around(GuestAddr::new(0x1fff)).unwrap();
        assert_eq!(left.range, (0x1000, 0x2000));
        let right = map.around(GuestAddr::new(0x4000)).unwrap();
        assert_eq!(right.range, (0x3000, 0x5000));
        assert_eq!(right.file_site(0x4000).unwrap().offset, 0x100 + 0x3000);
    }

    #[test]
    fn only_readable_executable_unwritable_mappings_are_patchable() {
        let mut map = CodeMap::default();
        map.insert(code(0x1000, 0x5000));
        map.protect((0x2000, 0x3000), Protection { read: true, write: true, execute: true });
        assert!(map.around(GuestAddr::new(0x1000)).is_some());
        assert!(map.around(GuestAddr::new(0x2000)).is_none());
        map.protect((0x2000, 0x3000), Protection::READ_EXECUTE);
        assert!(map.around(GuestAddr::new(0x2000)).is_some());
    }

    #[test]
    fn a_moved_mapping_is_known_at_its_new_place_only() {
        let mut map = CodeMap::default();
        map.insert(code(0x1000, 0x3000));
        let moved = map.take_moved((0x1000, 0x3000), (0x9000, 0xa000));
        assert!(map.around(GuestAddr::new(0x9000)).is_none(), "not before it has moved");
        moved.into_iter().for_each(|code| map.insert(code));
        assert!(map.around(GuestAddr::new(0x1000)).is_none());
        assert_eq!(map.around(GuestAddr::new(0x9000)).unwrap().range, (0x9000, 0xa000));
    }
}
