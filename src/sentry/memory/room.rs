//! How much memory a guest may have (mm/mmap.c `may_expand_vm`, mm/mlock.c): `RLIMIT_AS`, `RLIMIT_DATA`,
//! `RLIMIT_MEMLOCK`.

use super::{Backing, Mm, Region, State, page_range};
use crate::GuestAddr;
use crate::sentry::errno::Errno;
use crate::sentry::limits::Limits;
use std::sync::atomic::{AtomicU64, Ordering};

/// Limits in bytes. A memory call sets those of the process that makes it.
#[derive(Debug)]
pub(super) struct MemoryLimits {
    address_space: AtomicU64,
    data: AtomicU64,
}

impl Default for MemoryLimits {
    fn default() -> Self {
        Self { address_space: AtomicU64::new(u64::MAX), data: AtomicU64::new(u64::MAX) }
    }
}

/// A stack is mapped as a whole, but counts as the kernel's, which starts with so much (`stack_expand`).
const INITIAL_STACK: u64 = 132 << 10;

fn counted(region: &Region) -> u64 {
    let len = region.end - region.start;
    match region.backing {
        Backing::Named("[stack]") => len.min(INITIAL_STACK),
        _ => len,
    }
}

/// `is_data_mapping`: private and writable, and not a stack.
fn is_data(region: &Region) -> bool {
    region.protection.write && !region.shared && !matches!(region.backing, Backing::Named("[stack]"))
}

impl State {
    /// Whether a mapping of `len` bytes may be added, which replaces what is in a range.
    pub(super) fn check_room(
        &self,
        limits: &MemoryLimits,
        len: u64,
        data: bool,
        replaced: (u64, u64),
    ) -> Result<(), Errno> {
        let all = limits.address_space.load(Ordering::Relaxed);
        let data_limit = limits.data.load(Ordering::Relaxed);
        if all == u64::MAX && (data_limit == u64::MAX || !data) {
            return Ok(());
        }
        let mapped: u64 = self.map.iter().map(counted).sum();
        let gone = self.map.overlapping(replaced.0, replaced.1);
        let gone: u64 = gone.map(|region| counted(&region.clipped(replaced.0, replaced.1))).sum();
        if (mapped - gone.min(mapped)).saturating_add(len) > all {
            return Err(Errno::ENOMEM);
        }
        if data && data_limit != u64::MAX {
            let used: u64 = self.map.iter().filter(|region| is_data(region)).map(counted).sum();
            if used.saturating_add(len) > data_limit {
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }

    /// Bytes that are locked.
    pub(super) fn locked_bytes(&self) -> u64 {
        self.locked.iter().map(|(start, end)| end - start).sum()
    }

    /// Takes a range out of what is locked.
    pub(super) fn forget_locked(&mut self, start: u64, end: u64) {
        if self.locked.is_empty() {
            return;
        }
        let outside = |(from, to): (u64, u64)| [(from, to.min(start)), (from.max(end), to)];
        let kept = std::mem::take(&mut self.locked).into_iter().flat_map(outside);
        self.locked = kept.filter(|(from, to)| from < to).collect();
    }
}

impl Mm {
    /// What counts against `RLIMIT_AS`.
    pub(crate) fn counted_bytes(&self) -> u64 {
        self.state().map.iter().map(counted).sum()
    }

    /// Applies the limits of the process that is about to make a memory call.
    pub(crate) fn set_limits(&self, limits: &Limits) {
        self.limits.address_space.store(limits.soft(libc::RLIMIT_AS), Ordering::Relaxed);
        self.limits.data.store(limits.soft(libc::RLIMIT_DATA), Ordering::Relaxed);
    }

    /// mlock(2) on the record: the pages of a stub process stay the host's business. `limit` is `RLIMIT_MEMLOCK`, `None`
    /// for who may lock what he likes.
    pub(crate) fn lock_pages(&self, addr: GuestAddr, len: u64, limit: Option<u64>) -> Result<(), Errno> {
        let (start, end) = page_range(addr, len, Errno::EINVAL)?;
        let mut state = self.state();
        if limit == Some(0) {
            return Err(Errno::EPERM);
        }
        let overlap = |(from, to): &(u64, u64)| (*to).min(end).saturating_sub((*from).max(start));
        let others = state.locked_bytes() - state.locked.iter().map(overlap).sum::<u64>();
        if limit.is_some_and(|limit| others.saturating_add(end - start) > limit)
            || !state.map.is_covered(start, end)
        {
            return Err(Errno::ENOMEM);
        }
        state.forget_locked(start, end);
        state.locked.push((start, end));
        Ok(())
    }

    /// munlock(2).
    pub(crate) fn unlock_pages(&self, addr: GuestAddr, len: u64) -> Result<(), Errno> {
        let (start, end) = page_range(addr, len, Errno::EINVAL)?;
        let mut state = self.state();
        if !state.map.is_covered(start, end) {
            return Err(Errno::ENOMEM);
        }
        state.forget_locked(start, end);
        Ok(())
    }

    /// mlockall(2) and, with no flags, munlockall(2).
    pub(crate) fn lock_all(&self, now: bool, limit: Option<u64>) -> Result<(), Errno> {
        let mut state = self.state();
        let all: u64 = state.map.iter().map(counted).sum();
        if now && limit.is_some_and(|limit| all > limit) {
            return Err(Errno::ENOMEM);
        }
        state.locked = match now {
            true => state.map.iter().map(|region| (region.start, region.end)).collect(),
            false => Vec::new(),
        };
        Ok(())
    }
}
