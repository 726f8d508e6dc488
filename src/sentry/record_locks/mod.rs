//! Record locks of guest processes (fs/locks.c): `fcntl` with `F_SETLK` and its kin.
//!
//! A record lock belongs to a table of descriptors; to the host the whole guest is one process. So each owner has, for
//! each file that it locks, an open file description of its own, and its locks are the host's locks of that
//! description (`F_OFD_SETLK`): the host keeps guest processes apart from each other and from processes outside. What
//! the host cannot tell is kept here as well: whose lock is in the way (`l_pid`), and who waits for whom.
//!
//! Lock order: a descriptor table, then the table of locks; neither is held over a wait.

mod held;
mod ranges;

pub(crate) use held::{FileIdentity, OwnedLocks};
pub(crate) use ranges::{LockKind, Range};

use super::process::lock;
use ranges::RangeMap;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// One owner of locks: a table of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner(u64);

impl Owner {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A lock that stands in somebody's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) owner: Owner,
    pub(crate) pid: i32,
    pub(crate) range: Range,
    pub(crate) kind: LockKind,
}

/// What an owner waits for.
#[derive(Debug, Clone, Copy)]
struct Wish {
    file: FileIdentity,
    range: Range,
    kind: LockKind,
}

/// All record locks of a guest.
#[derive(Debug, Default)]
pub(crate) struct RecordLocks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<FileIdentity, HashMap<Owner, RangeMap>>,
    /// By a number of their own: an owner may wait in several threads.
    wishes: HashMap<u64, (Owner, Wish)>,
    next_wish: u64,
}

impl State {
    fn obstacles(&self, owner: Owner, wish: &Wish) -> impl Iterator<Item = Obstacle> {
        let (range, kind) = (wish.range, wish.kind);
        self.held.get(&wish.file).into_iter().flatten().filter(move |(other, _)| **other != owner).filter_map(
            move |(other, ranges)| {
                let (range, kind, pid) = ranges.conflicting(range, kind)?;
                Some(Obstacle { owner: *other, pid, range, kind })
            },
        )
    }

    /// Whether granting the wish waits, in the end, for the owner itself.
    fn would_deadlock(&self, owner: Owner, wish: &Wish) -> bool {
        let mut seen = vec![owner];
        let mut open: Vec<Owner> = self.obstacles(owner, wish).map(|found| found.owner).collect();
        while let Some(blocker) = open.pop() {
            if seen.contains(&blocker) {
                continue;
            }
            seen.push(blocker);
            for (_, wish) in self.wishes.values().filter(|(waiting, _)| *waiting == blocker) {
                for next in self.obstacles(blocker, wish) {
                    if next.owner == owner {
                        return true;
                    }
                    open.push(next.owner);
                }
            }
        }
        false
    }
}

/// A wait that others can see, until it is dropped.
pub(crate) struct Waiting<'a> {
    locks: &'a RecordLocks,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.locks.state).wishes.remove(&self.number);
    }
}

impl RecordLocks {
    /// Whose lock is in the way, the one with the lowest start.
    pub(crate) fn obstacle(
        &self,
        owner: Owner,
        file: FileIdentity,
        range: Range,
        kind: LockKind,
    ) -> Option<Obstacle> {
        let state = lock(&self.state);
        state.obstacles(owner, &Wish { file, range, kind }).min_by_key(|found| found.range.start)
    }

    /// Records that the owner is going to wait; `None` if that would be for ever, because those who are in its way wait
    /// for it.
    pub(crate) fn wait(
        &self,
        owner: Owner,
        file: FileIdentity,
        range: Range,
        kind: LockKind,
    ) -> Option<Waiting<'_>> {
        let wish = Wish { file, range, kind };
        let mut state = lock(&self.state);
        if state.would_deadlock(owner, &wish) {
            return None;
        }
        state.next_wish += 1;
        let number = state.next_wish;
        state.wishes.insert(number, (owner, wish));
        Some(Waiting { locks: self, number })
    }

    fn record(&self, owner: Owner, file: FileIdentity, range: Range, kind: LockKind, pid: i32) {
        let mut state = lock(&self.state);
        state.held.entry(file).or_default().entry(owner).or_default().set(range, kind, pid);
    }

    fn locks_of(&self, owner: Owner, file: FileIdentity) -> Vec<(Range, LockKind)> {
        let state = lock(&self.state);
        let ranges = state.held.get(&file).and_then(|owners| owners.get(&owner));
        ranges.map(|ranges| ranges.iter().collect()).unwrap_or_default()
    }

    fn forget(&self, owner: Owner, file: FileIdentity) {
        let mut state = lock(&self.state);
        if let Some(owners) = state.held.get_mut(&file) {
            owners.remove(&owner);
            if owners.is_empty() {
                state.held.remove(&file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileIdentity = FileIdentity { device: 1, inode: 2 };

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn the_first_obstacle_is_named() {
        let locks = RecordLocks::default();
        let (a, b) = (Owner::new(), Owner::new());
        locks.record(a, FILE, range(10, 19), LockKind::Write, 100);
        locks.record(a, FILE, range(30, 39), LockKind::Read, 100);
        let found = locks.obstacle(b, FILE, range(0, u64::MAX), LockKind::Read).unwrap();
        assert_eq!((found.pid, found.range, found.kind), (100, range(10, 19), LockKind::Write));
        assert_eq!(locks.obstacle(b, FILE, range(30, 31), LockKind::Read), None);
        assert!(locks.obstacle(b, FILE, range(30, 31), LockKind::Write).is_some());
        assert_eq!(locks.obstacle(a, FILE, range(0, 99), LockKind::Write), None);
        locks.forget(a, FILE);
        assert_eq!(locks.obstacle(b, FILE, range(0, 99), LockKind::Write), None);
    }

    #[test]
    fn a_circle_of_three_is_a_deadlock() {
        let locks = RecordLocks::default();
        let owners = [Owner::new(), Owner::new(), Owner::new()];
        for (at, owner) in (0_u64..).zip(owners) {
            locks.record(owner, FILE, range(at, at), LockKind::Write, at as i32);
        }
        let first = locks.wait(owners[0], FILE, range(1, 1), LockKind::Write);
        let second = locks.wait(owners[1], FILE, range(2, 2), LockKind::Read);
        assert!(first.is_some() && second.is_some());
        assert!(locks.wait(owners[2], FILE, range(0, 0), LockKind::Read).is_none());
        assert!(locks.wait(owners[2], FILE, range(9, 9), LockKind::Write).is_some());
        drop(first);
        assert!(locks.wait(owners[2], FILE, range(0, 0), LockKind::Read).is_some());
    }
}
