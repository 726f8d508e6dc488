//! A guest's memory map: what is mapped where, and the calls that change it.

mod attachments;
mod calls;
mod fork_advice;
mod layout;
mod maker;
mod map;
mod proc_maps;
mod region;
mod remap;
mod residency;
mod room;

pub(crate) use calls::MapRequest;
pub(crate) use layout::Layout;
pub(crate) use maker::{Maker, Undo};
pub(crate) use map::MemoryMap;
pub(crate) use proc_maps::AreaSizes;
pub(crate) use region::{Backing, MappedFile, Region};

use crate::sentry::errno::Errno;
use crate::sentry::host;
use crate::sentry::kernel::tree::Usage;
use crate::{AddressSpace, GuestAddr, PAGE_SIZE, Protection};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An address space of the platform together with the sentry's record of it.
///
/// The record is advisory: the host kernel decides what is mapped. One lock covers a change of both, so that they
/// agree; copies to and from guest memory do not take it.
pub(crate) struct Mm {
    space: AddressSpace,
    state: Mutex<State>,
    limits: room::MemoryLimits,
}

/// What the lock protects.
#[derive(Clone)]
struct State {
    map: MemoryMap,
    layout: Layout,
    brk_start: u64,
    brk: u64,
    /// Ranges that mlock(2) has locked.
    locked: Vec<(u64, u64)>,
    fork_ranges: fork_advice::ForkRanges,
}

impl Mm {
    pub(crate) fn new(space: AddressSpace, layout: Layout) -> Self {
        let map = MemoryMap::default();
        let state = State { map, layout, brk_start: 0, brk: 0, locked: Vec::new(), fork_ranges: Vec::new() };
        Self { space, state: Mutex::new(state), limits: room::MemoryLimits::default() }
    }

    /// The platform's address space, for copies and for running in it.
    pub(crate) fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Whether the program may store into files that others have, too.
    pub(crate) fn writes_to_shared_files(&self) -> bool {
        let writes = |region: &Region| {
            region.shared && region.protection.write && matches!(region.backing, Backing::File { .. })
        };
        self.state().map.iter().any(writes)
    }

    /// A copy for a child process: the memory copy-on-write by the host, the record as it is.
    pub(crate) fn fork(&self) -> Result<Mm, Errno> {
        // Held over the fork, so that the copied memory and the copied record agree.
        let state = self.state();
        let space = self.space.fork().map_err(|_| Errno::EAGAIN)?;
        // Locked pages are not inherited.
        let copy = State { locked: Vec::new(), ..state.clone() };
        let child = Mm { space, state: Mutex::new(copy), limits: room::MemoryLimits::default() };
        child.after_fork()?;
        Ok(child)
    }

    /// What the stub process's memory has come to so far: no time.
    pub(crate) fn memory_usage(&self) -> Usage {
        let pid = self.space.pid();
        let (minor_faults, major_faults) = host::process_faults(pid);
        let max_rss_kib = host::process_peak_memory_kib(pid);
        Usage { max_rss_kib, minor_faults, major_faults, ..Usage::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot have left the record half changed in a way that matters: it is advisory.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses chosen for this image.
    pub(crate) fn layout(&self) -> Layout {
        self.state().layout
    }

    /// Sets where the heap starts (page aligned), once, by the loader.
    pub(crate) fn set_brk_start(&self, start: u64) {
        let mut state = self.state();
        state.brk_start = start;
        state.brk = start;
    }
}

/// Rounds up to a page boundary; `None` past the end.
pub(crate) fn page_up(value: u64) -> Option<u64> {
    value.checked_next_multiple_of(PAGE_SIZE)
}

/// `PROT_*` bits as the platform's type. On x86 what can be written or executed can be read.
pub(crate) fn protection(bits: u64) -> Protection {
    let has = |bit: i32| bits & bit as u64 != 0;
    let (write, execute) = (has(libc::PROT_WRITE), has(libc::PROT_EXEC));
    Protection { read: has(libc::PROT_READ) || write, write, execute }
}

/// The page-aligned range of a call; `EINVAL` for an unaligned start, `overflow` for a length that does not fit.
fn page_range(addr: GuestAddr, len: u64, overflow: Errno) -> Result<(u64, u64), Errno> {
    if !addr.is_page_aligned() {
        return Err(Errno::EINVAL);
    }
    let len = page_up(len).ok_or(overflow)?;
    Ok((addr.raw(), addr.raw().checked_add(len).ok_or(overflow)?))
}
