//! Ranges of bytes with the kind of lock on each (fs/locks.c `posix_lock_inode`).

/// Bytes of a file, both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The last byte that a file can have (`OFFSET_MAX`).
pub(crate) const LAST_BYTE: u64 = i64::MAX as u64;

impl Range {
    /// `l_len`: 0 to the end of the file, however long it gets.
    pub(crate) fn len(self) -> i64 {
        if self.end >= LAST_BYTE { 0 } else { (self.end - self.start + 1) as i64 }
    }

    fn overlaps(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockKind {
    Read,
    Write,
    /// No lock.
    None,
}

impl LockKind {
    pub(crate) fn from_raw(kind: i16) -> Option<Self> {
        match i32::from(kind) {
            libc::F_RDLCK => Some(Self::Read),
            libc::F_WRLCK => Some(Self::Write),
            libc::F_UNLCK => Some(Self::None),
            _ => None,
        }
    }

    pub(crate) fn raw(self) -> i16 {
        (match self {
            Self::Read => libc::F_RDLCK,
            Self::Write => libc::F_WRLCK,
            Self::None => libc::F_UNLCK,
        }) as i16
    }
}

/// The locks of one owner on one file: ranges that do not overlap, in ascending order.
#[derive(Debug, Default)]
pub(super) struct RangeMap(Vec<(Range, LockKind, i32)>);

impl RangeMap {
    /// Sets the kind of a range, whatever it was; neighbours of one kind become one lock.
    pub(super) fn set(&mut self, range: Range, kind: LockKind, pid: i32) {
        let mut new: Vec<(Range, LockKind, i32)> = Vec::with_capacity(self.0.len() + 2);
        for (old, old_kind, old_pid) in self.0.drain(..) {
            if old.start < range.start {
                let end = old.end.min(range.start - 1);
                new.push((Range { start: old.start, end }, old_kind, old_pid));
            }
            if old.end > range.end {
                let start = old.start.max(range.end + 1);
                new.push((Range { start, end: old.end }, old_kind, old_pid));
            }
        }
        if kind != LockKind::None {
            new.push((range, kind, pid));
        }
        new.sort_unstable_by_key(|(range, ..)| range.start);
        new.dedup_by(|next, kept| {
            let joins = kept.1 == next.1 && kept.0.end.checked_add(1) == Some(next.0.start);
            if joins {
                kept.0.end = next.0.end;
            }
            joins
        });
        self.0 = new;
    }

    /// The first lock that is in the way of another owner's.
    pub(super) fn conflicting(&self, range: Range, kind: LockKind) -> Option<(Range, LockKind, i32)> {
        let conflicts = |held: LockKind| held == LockKind::Write || kind == LockKind::Write;
        self.0.iter().find(|(held, held_kind, _)| held.overlaps(range) && conflicts(*held_kind)).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Range, LockKind)> {
        self.0.iter().map(|(range, kind, _)| (*range, *kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(map: &RangeMap) -> Vec<(u64, u64, LockKind)> {
        map.iter().map(|(range, kind)| (range.start, range.end, kind)).collect()
    }

    #[test]
    fn locks_split_replace_and_merge() {
        let mut map = RangeMap::default();
        let mut set = |start, end, kind| {
            map.set(Range { start, end }, kind, 1);
            shown(&map)
        };
        assert_eq!(set(0, 99, LockKind::Read), [(0, 99, LockKind::Read)]);
        assert_eq!(
            set(10, 19, LockKind::Write),
            [(0, 9, LockKind::Read), (10, 19, LockKind::Write), (20, 99, LockKind::Read)]
        );
        assert_eq!(set(10, 19, LockKind::Read), [(0, 99, LockKind::Read)]);
        assert_eq!(set(50, LAST_BYTE, LockKind::None), [(0, 49, LockKind::Read)]);
        assert_eq!(set(50, LAST_BYTE, LockKind::Read), [(0, LAST_BYTE, LockKind::Read)]);
        assert_eq!(set(0, LAST_BYTE, LockKind::None), []);
    }

    #[test]
    fn lengths_are_as_fcntl_shows_them() {
        assert_eq!(Range { start: 5, end: 9 }.len(), 5);
        assert_eq!(Range { start: 5, end: LAST_BYTE }.len(), 0);
    }
}
